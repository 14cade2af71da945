"""The scans of the claim on GloReDi, its networks, and what is measured of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from hadamard.claims.imaging.gloredi_training import (
    NETWORKS,
    SIZE,
    UNIT,
    VIEWS,
    back_project,
    build,
    fan,
    measure,
    train_one,
)
from hadamard.claims.imaging.primal_dual_unet_problem import Case as Scan
from hadamard.claims.imaging.primal_dual_unet_problem import total_variation as _total_variation
from hadamard.data import ct_slices, ellipses, mr_slices, mr_volumes, volume_slices
from hadamard.imaging import DirectionalDistillation, GloReDistiller, GloReNet
from hadamard.training import load_checkpoint

__all__ = ["CEILING", "CNN", "FBP", "OURS", "POST", "REACH", "SEEDS", "STUDENT", "TV", "Case", "cosine", "coverage",
           "encode", "network", "problem", "project", "psnr", "ssim", "total_variation", "tune",
           "views_name"]  # fmt: skip

OURS, STUDENT, CNN, POST = "GloReDi", "the same, not distilled", "3x3 convolutions", "FBPConvNet"
FBP, TV, TEACHER = "FBP", "total variation", "teacher"
REACH = "one element's view, 64 x 64"
CEILING = "given the truth itself"
SEEDS = "trained again, seed {}"
SHIPPED = dict(zip((OURS, STUDENT, CNN, POST), NETWORKS)) | {TEACHER: "gloredi_teacher"}
AGAIN = 16  # views, as the card has it

# Weight of total variation and step of its solver, made by
# `python -c "from hadamard.claims.imaging.gloredi_problem import tune; print(tune())"`.
TUNED = {8: (1e-5, 400.0), 16: (3e-5, 20.0), 32: (3e-5, 20.0)}


@dataclass(frozen=True)
class Case:
    """Slices (n, 1, N, N) in [0, 1], the person of each, and what so many views see of them."""

    x: Tensor
    views: int = 0
    people: tuple[str, ...] = ()
    y: Tensor = field(default_factory=lambda: torch.empty(0))
    start: Tensor = field(default_factory=lambda: torch.empty(0))  # filtered back-projection
    more: Tensor = field(default_factory=lambda: torch.empty(0))  # of twice as many views
    nets: Mapping[str, nn.Module] = field(default_factory=dict)


def views_name(views: int) -> str:
    """The name of a case."""
    return f"{views} views"


def problem(seed: int, volumes: bool, encoder: list[int], retrain: int) -> dict[str, Case]:
    """Slices of people whom no network has seen, at each number of views; and what the networks are measured by."""
    nets: dict[str, nn.Module] = {
        name: load_checkpoint(file, NETWORKS[file].build() if file in NETWORKS else build()).eval()
        for name, file in SHIPPED.items()
    }
    slices = {f"{name} (CT)": image[None] for name, image in ct_slices(SIZE).items()}
    if volumes:
        slices |= {"head, volume (CT)": volume_slices("head_ct", SIZE, step=4)}
        slices |= {f"{name} (MR)": _inside(images) for name, images in mr_volumes("test", SIZE).items()}
    else:
        slices |= {f"{name} (MR)": image[None] for name, image in mr_slices(SIZE).items()}
    x = torch.cat(list(slices.values()))[:, None] / 3
    people = tuple(name for name, images in slices.items() for _ in images)
    cases = {views_name(v): _case(x, v, people, nets, 1000 + seed) for v in VIEWS}
    for k in range(retrain):
        phantoms = ellipses(16, SIZE, generator=torch.Generator().manual_seed(2000 + k)) / 3
        one = _case(phantoms, AGAIN, tuple(map(str, range(16))), _train_again(1 + k), 3000 + k)
        cases[SEEDS.format(1 + k)] = one
    cases[CEILING] = Case(x, people=people, start=x, nets=nets)
    cases[REACH] = Case(x[:1])
    return cases | {f"encoder, {n} x {n}": Case(torch.rand(1, 1, n, n), nets=nets) for n in encoder}


def _inside(slices: Tensor) -> Tensor:
    """The inscribed circle, which is what a scan sees."""
    line = (torch.arange(SIZE) - (SIZE - 1) / 2) * (2 / SIZE)
    return slices * (line**2 + line[:, None] ** 2 <= 1)


def _case(x: Tensor, views: int, people: tuple[str, ...], nets: Mapping[str, nn.Module], seed: int) -> Case:
    y = measure(x, views, seed)
    more = back_project(measure(x, 2 * views, seed + 1), 2 * views)
    return Case(x, views, people, y, back_project(y, views), more, nets)


def _train_again(seed: int, steps: int = 150) -> dict[str, nn.Module]:
    """The networks but for the U-Net, on phantoms and 16 views alone, in fewer steps."""
    pool = ellipses(300, SIZE, generator=torch.Generator().manual_seed(4000 + seed)) / 3
    nets: dict[str, nn.Module] = {}
    for name in (OURS, STUDENT, CNN):
        network = NETWORKS[SHIPPED[name]]
        module = train_one(
            network.build, steps, seed, distilled=network.distilled, pool=lambda: pool, views=(AGAIN,)
        ).eval()  # fmt: skip
        if isinstance(module, GloReDistiller):
            nets[TEACHER], module = module.teacher, module.student
        nets[name] = module
    return nets


# ---- contenders ----


def network(name: str) -> Callable[[Case], Tensor]:
    """A trained network."""

    @torch.no_grad()
    def run(case: Case) -> Tensor:
        return case.nets[name](case.start)

    return run


def project(case: Case) -> Tensor:
    """Filtered back-projection: for each slice the better of the two filters, as an oracle would choose."""
    sharp, smooth = (back_project(case.y, case.views, filter=filter) for filter in ("ramp", "hann"))
    errors = [(image - case.x).square().mean((1, 2, 3), keepdim=True) for image in (sharp, smooth)]
    return torch.where(errors[0] < errors[1], sharp, smooth)


def total_variation(case: Case, tuned: tuple[float, float] | None = None) -> Tensor:
    """Least squares and total variation, non-negative."""
    scan = Scan(fan(case.views), case.x, case.y / UNIT, tuned=tuned or TUNED[case.views])
    return _total_variation(scan, max_iter=300)


def coverage(local: bool) -> Callable[[Case], float]:
    """Share of the pixels that one element of the representation depends on, after one residual block."""

    def run(case: Case) -> float:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            net = GloReNet(width=4, n_enc=1, n_dec=0, global_ratio=0.0 if local else 0.75).double().eval()
        x = (0.5 + 0.1 * case.x.double()).requires_grad_()
        g = net.encode(x)
        g[0, :, g.shape[2] // 2, g.shape[3] // 2].sum().backward()
        assert x.grad is not None
        return float((x.grad != 0).double().mean())

    return run


@torch.no_grad()
def encode(case: Case) -> Tensor:
    """The encoder alone."""
    net = case.nets[OURS]
    assert isinstance(net, GloReNet)
    return net.encode(case.x)


def tune() -> dict[int, tuple[float, float]]:
    """Find what gives total variation the least mean square error on phantoms of their own."""
    x = ellipses(6, SIZE, generator=torch.Generator().manual_seed(7)) / 3
    grid = [(weight, step) for weight in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3) for step in (20.0, 100.0, 400.0)]
    best = {}
    for v in VIEWS:
        case = replace(Case(x, v), y=measure(x, v, 3))
        best[v] = grid[int(np.argmin([float((total_variation(case, t) - x).square().mean()) for t in grid]))]
    return best


# ---- measures ----


def psnr(case: Case, out: Tensor) -> Tensor:
    """Of each slice, for a peak at the slice's largest value."""
    return 10 * (case.x.amax((1, 2, 3)).square() / (out - case.x).square().mean((1, 2, 3))).log10()


def ssim(case: Case, out: Tensor) -> Tensor:
    """Of each slice, by scikit-image."""
    from skimage.metrics import structural_similarity

    pairs = zip(case.x[:, 0].numpy(), out[:, 0].numpy())
    return torch.tensor([structural_similarity(a, b, data_range=float(a.max())) for a, b in pairs])


def cosine(case: Case, name: str) -> float:
    """Between a network's representation of few views and the teacher's of twice as many, in the distilled channels."""
    own, teacher = case.nets[name], case.nets[TEACHER]
    assert isinstance(own, GloReNet)
    assert isinstance(teacher, GloReNet)
    with torch.no_grad():
        g, shown = own.encode(case.start), teacher.encode(case.more)
    taught = g.shape[1] // 2
    return 1 - float(DirectionalDistillation()(g[:, :taught], shown[:, :taught]))
