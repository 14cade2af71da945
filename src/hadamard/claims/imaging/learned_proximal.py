"""Claim on learned proximal networks: the most probable signal, a prior that can be read, and a solver that settles."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.imaging.learned_proximal_training import ATOMS, NETWORKS, train
from hadamard.claims.plots import bars, lines, pictures
from hadamard.data import photographs
from hadamard.imaging import GaussianBlur, LearnedProximal, pnp_admm, pnp_pgd
from hadamard.proximal import soft
from hadamard.training import load_checkpoint

__all__ = ["claim", "train"]

_OURS, _L2, _L1 = "LPN, proximal matching", "LPN, squared error", "LPN, absolute error"
_ADMM, _CNN, _TV = "LPN, by ADMM", "CNN of equal size, plug-and-play", "TV (scikit-image)"
_LOSS = {_OURS: "proximal", _L2: "l2", _L1: "l1"}
_ITERATIONS = 200
_BLURS, _NOISES = [1.0, 2.0], [0.02, 0.04]
# Strength of each prior in units of the noise, of seven between 0.35 and 2.8, made by
# `python -c "from hadamard.claims.imaging import learned_proximal; print(learned_proximal.tune())"`.
_STRENGTH = {_OURS: 0.7, _CNN: 0.7, _TV: 0.5, _ADMM: 2.0}


@dataclass(frozen=True)
class _Signals:
    """Networks by loss that learned one distribution of short signals."""

    kind: str
    networks: dict[str, LearnedProximal]


@dataclass(frozen=True)
class _Deblur:
    """A blurred noisy photograph (or several of one size), the truth, the truth with noise, and the two denoisers."""

    clean: Tensor
    y: Tensor
    noisy: Tensor
    operator: GaussianBlur
    noise: float
    prior: LearnedProximal
    plain: nn.Module


def _problem(
    seed: int, names: list[str], side: int, blurs: list[float], noises: list[float], again: bool, device: str = "cpu"
) -> dict[str, Any]:
    cases: dict[str, Any] = {"Laplace": _signals("laplace"), "four points": _signals("mixture")}
    if again:
        with tempfile.TemporaryDirectory() as folder:
            train("quick", folder, seed=seed + 1, progress=False, data=("laplace", "mixture"))
            cases |= {f"{n}, trained again": _signals(k, folder) for n, k in (("Laplace", "laplace"),
                                                                            ("four points", "mixture"))}  # fmt: skip
    pictures = photographs("test")
    for blur in blurs:
        for noise in noises:
            for name in names:
                clean = _crop(pictures[name], side)
                cases[f"deblur {name}, blur {blur:g}, noise {noise:g}"] = _deblur(clean, blur, noise, seed, device)
    return cases


def tune() -> dict[str, float]:
    """Find each prior's strength with the best mean PSNR on the photographs to train on, of the same seven for all.

    Forty iterations choose two of the seven, the run's own number of iterations one of the two.
    """
    clean = torch.cat([_crop(picture, 48) for picture in photographs("train").values()])
    cases = [_deblur(clean, blur, noise, 100, "cpu") for blur in _BLURS for noise in _NOISES]
    best = {}
    for name, run in _RUNS.items():

        def mark(strength: float, *iterations: int, run: Callable[..., dict[str, Any]] = run) -> float:
            return sum(run(case, strength, *iterations)["psnr"] for case in cases)

        two = sorted((0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8), key=lambda s, mark=mark: mark(s, 40))[-2:]  # type: ignore[misc]
        best[name] = max(two, key=mark)
    return best


def _crop(picture: Tensor, side: int) -> Tensor:
    top, left = ((n - side) // 2 for n in picture.shape)
    return picture[None, None, top : top + side, left : left + side].double()


def _deblur(clean: Tensor, blur: float, noise: float, seed: int, device: str) -> _Deblur:
    generator = torch.Generator().manual_seed(seed)
    operator, prior = GaussianBlur(clean.shape[-2:], blur), _load("photographs").double()
    once, again = (torch.randn(clean.shape, generator=generator) for _ in range(2))
    y, noisy = operator(clean) + noise * once, clean + prior.noise_level * again
    clean, y, noisy = (x.to(device) for x in (clean, y, noisy))
    plain = _load("photographs_cnn").to(device)
    return _Deblur(clean, y, noisy, operator.to(device), noise, prior.to(device), plain)


def _signals(kind: str, folder: str | None = None) -> _Signals:
    names = {loss: f"{kind}_{loss}" for loss in ("l2", "l1", "proximal")}
    return _Signals(kind, {loss: _load(name, folder).double() for loss, name in names.items()})


def _load(name: str, folder: str | None = None) -> Any:
    name = f"learned_proximal_{name}"
    module = NETWORKS[name].build(torch.Generator())
    path = name if folder is None else f"{folder}/{name}.safetensors"
    return load_checkpoint(path, module).eval().requires_grad_(False)


def _learned(contender: str) -> Callable[[Any], dict[str, Any]]:
    def run(case: _Signals | _Deblur) -> dict[str, Any]:
        if isinstance(case, _Deblur):
            return _run_ours(case)
        network = case.networks[_LOSS[contender]]
        return _look_at_line(network) if case.kind == "laplace" else _look_at_points(network)

    return run


def _look_at_line(network: LearnedProximal) -> dict[str, Any]:
    """The learned map on [-4, 4] against the soft threshold, the learned prior on [-3, 3] against the modulus."""
    y = torch.linspace(-4, 4, 401, dtype=torch.float64)[:, None]
    x = torch.linspace(-3, 3, 121, dtype=torch.float64)[:, None]
    with torch.no_grad():
        error = network(y) - soft(y, 1.0)
    offset = network.prior(x, tol=1e-4) - x[:, 0].abs()
    density = _density(y)
    return {
        "y": y[:, 0],
        "f": network(y)[:, 0],
        "x": x[:, 0],
        "prior": offset - offset.mean() + x[:, 0].abs(),
        "rmse": float(error.square().mean().sqrt()),
        "weighted": float(((error.square() * density).sum() / density.sum()).sqrt()),
        "prior_error": float((offset - offset.mean()).abs().max()),
    }


def _density(y: Tensor) -> Tensor:
    """Density of a Laplace variable of scale 1 plus a normal one of variance 1, up to a factor."""
    root = math.sqrt(2)
    return torch.exp(y) * torch.erfc((1 + y) / root) + torch.exp(-y) * torch.erfc((1 - y) / root)


def _look_at_points(network: LearnedProximal) -> dict[str, Any]:
    """How much higher the prior is between each two of the four points than at the higher of the two."""
    points = ATOMS.double()
    pairs = list(combinations(range(len(points)), 2))
    middles = torch.stack([(points[i] + points[j]) / 2 for i, j in pairs])
    at, between = network.prior(torch.cat([points, middles]), tol=1e-4, max_iter=3000).split([len(points), len(pairs)])
    heights = [float(between[k] - torch.maximum(at[i], at[j])) for k, (i, j) in enumerate(pairs)]
    return {"heights": heights, "right": sum(h > 0 for h in heights)}


def _run_ours(case: _Deblur, strength: float = _STRENGTH[_OURS], max_iter: int = _ITERATIONS) -> dict[str, Any]:
    alone = case.prior(case.noisy)
    return _descend(case, case.prior.at(strength * case.noise), torch.float64, max_iter) | {"alone": _psnr(case, alone)}


def _run_cnn(case: _Deblur, strength: float = _STRENGTH[_CNN], max_iter: int = _ITERATIONS) -> dict[str, Any]:
    """Plug-and-play with the unconstrained denoiser, scaled to other noise levels as ours is."""
    alone, scale = case.plain(case.noisy.float()), strength * case.noise / case.prior.noise_level
    found = _descend(case, lambda v: scale * case.plain(v / scale), torch.float32, max_iter)
    return found | {"alone": _psnr(case, alone)}


def _descend(case: _Deblur, denoiser: Any, dtype: torch.dtype, max_iter: int) -> dict[str, Any]:
    found = pnp_pgd(case.operator, case.y.to(dtype), denoiser, step=0.99, tol=0.0, max_iter=max_iter, warn=False)
    return _outcome(case, found.value) | {"residuals": found.residuals, "objective": found.objective}


def _run_admm(case: _Deblur, strength: float = _STRENGTH[_ADMM], max_iter: int = 30) -> dict[str, Any]:
    prior = case.prior.at(strength * case.noise)
    found = pnp_admm(case.operator, case.y, prior, rho=1 / strength**2, tol=0.0, max_iter=max_iter, warn=False)
    return _outcome(case, found.value) | {"residuals": found.residuals}


def _run_tv(case: _Deblur, strength: float = _STRENGTH[_TV], max_iter: int = 60) -> dict[str, Any]:
    """Total variation by accelerated proximal gradients, its proximal map from scikit-image."""
    from skimage.restoration import denoise_tv_chambolle

    weight, y = (strength * case.noise) ** 2 / 0.02, case.y
    x = v = y
    t = 1.0
    for _ in range(max_iter):
        z = (v - 0.99 * case.operator.A_adjoint(case.operator.A(v) - y)).cpu().numpy()
        new = torch.stack([torch.from_numpy(denoise_tv_chambolle(p[0], weight=weight, max_num_iter=30)) for p in z])
        new, t_new = new[:, None].to(y), (1 + math.sqrt(1 + 4 * t * t)) / 2
        x, v, t = new, new + (t - 1) / t_new * (new - x), t_new
    return _outcome(case, x)


_RUNS: dict[str, Callable[..., dict[str, Any]]] = {_OURS: _run_ours, _CNN: _run_cnn, _ADMM: _run_admm, _TV: _run_tv}


def _outcome(case: _Deblur, x: Tensor) -> dict[str, Any]:
    return {"image": x[0, 0].cpu(), "psnr": _psnr(case, x)}


def _psnr(case: _Deblur, x: Tensor) -> float:
    return float(-10 * torch.log10((x - case.clean).square().mean((1, 2, 3))).mean())


def _ratio(outcome: dict[str, Any]) -> float | None:
    """The last fixed-point residual over the first."""
    return float(outcome["residuals"][-1] / outcome["residuals"][0]) if "residuals" in outcome else None


def _rise(outcome: dict[str, Any]) -> float | None:
    """The largest rise of the objective in one iteration, over its total decrease."""
    f = outcome.get("objective")
    return None if f is None else float((f[1:] - f[:-1]).max().clamp_min(0) / (f[0] - f[-1]))


def _deblurs(results: Results) -> list[str]:
    return [name for name in results.cases if name.startswith("deblur")]


def _wrong_orders(results: Results) -> float:
    """How many of the comparisons between losses come out the other way, over all sets of networks."""
    wrong = 0
    for name in (n for n in results.cases if n.startswith("Laplace")):
        errors = [results.value(name, k, "RMSE") for k in (_L2, _L1, _OURS)]
        wrong += sum(a <= b for a, b in pairwise(errors))
    for name in (n for n in results.cases if n.startswith("four")):
        wrong += results.value(name, _L2, "pairs") >= results.value(name, _OURS, "pairs")
    return float(wrong)


def _leads(results: Results) -> list[float]:
    """The lead over the plain denoiser in dB, run by run."""
    return [results.value(c, _OURS, "PSNR") - results.value(c, _CNN, "PSNR") for c in _deblurs(results)]


def _by_setting(results: Results, contender: str) -> dict[str, float]:
    """Mean PSNR over the photographs, for each blur and noise."""
    groups: dict[str, list[float]] = {}
    for case in _deblurs(results):
        groups.setdefault(case.partition(", ")[2], []).append(results.value(case, contender, "PSNR"))
    return {setting: fmean(values) for setting, values in groups.items()}


def _plot(results: Results) -> list[dict[str, Any]]:
    line = {k: results.outcomes["Laplace", k] for k in (_OURS, _L1, _L2)}
    y, x = line[_OURS]["y"], line[_OURS]["x"]
    maps = {k: (o["y"][::5].tolist(), o["f"][::5].tolist()) for k, o in line.items()}
    priors = {k: (o["x"][::3].tolist(), o["prior"][::3].tolist()) for k, o in line.items()}
    name = _deblurs(results)[0]
    case = results.cases[name]
    shown = {k: results.outcomes[name, k] for k in (_OURS, _CNN, _TV)}
    steps = list(range(1, _ITERATIONS + 1))
    images = {"truth": case.clean[0, 0], "blurred, noisy": case.y[0, 0]}
    images |= {f"{k}: {o['psnr']:.2f} dB": o["image"] for k, o in shown.items()}
    f = results.outcomes[name, _OURS]["objective"]
    return [
        lines(
            maps | {"soft threshold": (y[::5].tolist(), soft(y, 1.0)[::5].tolist())}, x="y", y="f(y)", markers=False,
            caption="Only proximal matching follows the most probable value, the soft threshold, into its flat part.",
        ),
        lines(
            priors | {"|x|": (x[::3].tolist(), x.abs()[::3].tolist())}, x="x", y="learned prior R(x)", markers=False,
            caption="The prior that each network carries; proximal matching recovers the kink of |x| at 0.",
        ),
        pictures(images, limits=(0, 1), caption=f"Restoring '{name}', each prior as strong as suits the photographs "
                 "that were trained on."),
        bars({k: _by_setting(results, k) for k in (_OURS, _ADMM, _CNN, _TV)}, y="PSNR in dB, mean over photographs",
             caption="Higher is better: what the guarantee costs."),
        lines(
            {k: (steps, shown[k]["residuals"].tolist()) for k in (_OURS, _CNN)}, x="iteration",
            y="change of the picture", log="y", markers=False,
            caption="How far each settles; only for the learned proximal map is it guaranteed that it does.",
        ),
        lines(
            {_OURS: (steps[:-1], (f[:-1] - f[-1]).tolist())}, x="iteration", y="objective above its last value",
            log="y", markers=False, caption="What is being minimised is known, and it falls in every iteration.",
        ),
    ]  # fmt: skip


_WHY = (
    "Part of the gap is the denoiser's: with noise alone and no blur (its own measure) the learned map is behind the "
    "free network on 'camera' and 'flower', pictures of sharp edges, and ahead on 'cat' and 'rocket'. With blur 2 the "
    "two are about level on average; it is with blur 1 that the learned map loses. How much is due to the "
    "constraint to gradients of convex functions and how much to the short training was not isolated."
)

claim = Claim(
    key="learned_proximal",
    statement="A denoiser built as the gradient of a convex network and trained by proximal matching gives the most "
    "probable signal, carries a prior that can be evaluated, and makes plug-and-play reconstruction of photographs "
    "descend a known objective. That costs PSNR against a free network of equal size, and against total variation, "
    "where edges are sharp. "
    "(The network's shape was first chosen with the test photographs in view; trained briefly without three of the "
    "training photographs and judged on those, widths 16 to 128 and patches of 6 and 8 differ by less than 0.1 dB.)",
    paper_figure="For a Laplace variable only proximal matching gives the soft threshold and the prior |x|; squared "
    "and absolute error do not (figure 2). Faces deblurred on a par with the best plug-and-play denoisers (blur 1 and "
    "2 pixels, noise 0.02 and 0.04), by networks trained for 40,000 steps.",
    sizes={
        "quick": {"names": ["camera", "cat"], "side": 48, "blurs": [1.0], "noises": [0.04], "again": False},
        "full": {
            "names": ["camera", "cat", "coins", "flower", "rocket"],
            "side": 64,
            "blurs": [1.0, 2.0],
            "noises": [0.02, 0.04],
            "again": True,
        },
        "gpu": {
            "names": ["camera", "cat", "coins", "flower", "rocket"],
            "side": 256,
            "blurs": [1.0, 2.0],
            "noises": [0.02, 0.04],
            "again": True,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        },
    },
    problem=_problem,
    contenders=[
        Contender(_OURS, _learned(_OURS)),
        Contender(_L2, _learned(_L2), role="baseline", cases=lambda name: not name.startswith("deblur")),
        Contender(_L1, _learned(_L1), role="baseline", cases=lambda name: not name.startswith("deblur")),
        Contender(_ADMM, _run_admm, cases=lambda name: name.startswith("deblur")),
        Contender(_CNN, _run_cnn, role="baseline", cases=lambda name: name.startswith("deblur")),
        Contender(_TV, _run_tv, role="peer", cases=lambda name: name.startswith("deblur")),
    ],
    measures=[
        Measure("RMSE", "", lambda case, outcome: outcome.get("rmse")),
        Measure("RMSE weighted by density", "", lambda case, outcome: outcome.get("weighted")),
        Measure("prior error", "", lambda case, outcome: outcome.get("prior_error")),
        Measure("pairs", "of 6", lambda case, outcome: outcome.get("right")),
        Measure("PSNR", "dB", lambda case, outcome: outcome.get("psnr")),
        Measure("PSNR, noise 0.1 alone", "dB", lambda case, outcome: outcome.get("alone")),
        Measure("last residual / first", "", lambda case, outcome: _ratio(outcome)),
        Measure("largest rise of the objective", "of its fall", lambda case, outcome: _rise(outcome)),
    ],
    bars=[
        Bar(
            text="Laplace: distance to the soft threshold, proximal matching over the better of the other two losses",
            source="card, claim 1",
            original_bound="RMSE on [-4,4] against soft-threshold at 1. Bar: PM <= 0.6 x the better of l2/l1",
            sense="<=",
            bound=0.6,
            value=lambda r: r.value("Laplace", _OURS, "RMSE") / min(r.value("Laplace", k, "RMSE") for k in (_L1, _L2)),
            headline=True,
        ),
        Bar(
            text="Laplace: largest distance of the learned prior from |x| on [-3, 3]",
            source="card, claim 1",
            original_bound="learned R within 0.2 of |x| on [-3,3] after removing the constant",
            sense="<=",
            bound=0.2,
            value=lambda r: r.value("Laplace", _OURS, "prior error"),
            headline=True,
        ),
        Bar(
            text="four points: pairs whose middle is less likely than both points, proximal matching",
            source="card, claim 2",
            original_bound="prior evaluated at modes < prior at midpoints (non-convex) in all 6 pairs",
            sense="==",
            bound=6,
            value=lambda r: r.value("four points", _OURS, "pairs"),
        ),
        Bar(
            text="four points: pairs for which the network trained by squared error says otherwise",
            source="card, claim 2",
            original_bound="l2-trained LPN fails at least one",
            sense=">=",
            bound=1,
            value=lambda r: 6 - r.value("four points", _L2, "pairs"),
        ),
        Bar(
            text="deblurring: share of runs whose objective never rises (beyond rounding, 1e-9 of its fall)",
            source="card, claim 3",
            original_bound="h + R/eta monotone non-increasing for PGD with eta < 1/L on 100 % of runs",
            sense=">=",
            bound=1.0,
            value=lambda r: (
                sum(r.value(c, _OURS, "largest rise of the objective") <= 1e-9 for c in _deblurs(r)) / len(_deblurs(r))
            ),
        ),
        Bar(
            text="deblurring: fixed-point residual after 200 iterations over the first, the worst run",
            source="card, claim 3",
            original_bound="fixed-point residual ratio r_200/r_1 <= 1e-3",
            sense="<=",
            bound=1e-3,
            value=lambda r: max(r.series(_OURS, "last residual / first", _deblurs(r))),
            why="The objective falls in every iteration of every run, but at noise 0.02, where the prior is weak, 200 "
            "steps of length 1/L do not finish.",
        ),
        Bar(
            text="deblurring: lead in PSNR over plug-and-play with the free network in dB, mean over the runs",
            source="card, claim 3",
            original_bound="PSNR >= CNN-PnP - 0.5 dB",
            sense=">=",
            bound=-0.5,
            value=lambda r: fmean(_leads(r)),
            why=_WHY,
        ),
        Bar(
            text="deblurring: lead in PSNR over plug-and-play with the free network in dB, the worst run",
            source="card, claim 3",
            original_bound="PSNR >= CNN-PnP - 0.5 dB",
            sense=">=",
            bound=-0.5,
            value=lambda r: min(_leads(r)),
            why=_WHY,
        ),
        Bar(
            text="comparisons between losses that come out the other way, with networks trained again too at size full",
            source="design, trained methods",
            original_bound="full trains again on a smaller budget and must give the same order",
            sense="==",
            bound=0,
            value=_wrong_orders,
        ),
    ],
    plot=_plot,
    requires=["skimage"],
    threads=1,
    rounds={"quick": 1, "full": 1, "gpu": 1},
    checkpoints=list(NETWORKS),
)
