"""How the networks of the claim on learned proximal networks are trained: all of them by one command and one budget."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.claims.shipping import shipping
from hadamard.data import photographs
from hadamard.imaging import ICNN, LearnedProximal, PatchICNN, ProximalMatchingSchedule
from hadamard.training import fit

__all__ = ["ATOMS", "NETWORKS", "Network", "PlainDenoiser", "train"]

ATOMS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
_SIDE, _CONTRAST = 32, 4.0

Draw = Callable[[torch.Generator], tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor, int], Tensor]


class PlainDenoiser(nn.Module):
    """The usual residual convolutional denoiser, without constraints: the contender of the learned proximal network.

    Parameters
    ----------
    width, layers
        Channels and number of hidden convolutions; the defaults give as many weights as :class:`PatchICNN` has.
    generator
        Draws the initial weights.
    """

    def __init__(self, width: int = 24, layers: int = 4, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        sizes = [1, *[width] * (layers + 1), 1]
        layers_ = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)]
        for layer in layers_:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(cast(Tensor, layer.bias))
        nn.init.zeros_(layers_[-1].weight)
        self.layers = nn.ModuleList(layers_)

    def forward(self, y: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Subtract the noise that the network sees."""
        z = y
        for layer in self.layers[:-1]:
            z = torch.relu(layer(z))
        return y - self.layers[-1](z)


@dataclass(frozen=True)
class Network:
    """One network: how it is built, what it learns from, and by which loss (``l2``, ``l1`` or ``proximal``)."""

    build: Callable[[torch.Generator], nn.Module]
    data: str
    loss: str


NETWORKS = {
    **{
        f"learned_proximal_laplace_{loss}": Network(
            lambda g: LearnedProximal(ICNN(1, generator=g), strong_convexity=1e-3), "laplace", loss
        )
        for loss in ("l2", "l1", "proximal")
    },
    **{
        f"learned_proximal_mixture_{loss}": Network(
            lambda g: LearnedProximal(ICNN(2, (50, 50, 50), generator=g), strong_convexity=0.02), "mixture", loss
        )
        for loss in ("l2", "l1", "proximal")
    },
    "learned_proximal_photographs": Network(
        lambda g: LearnedProximal(PatchICNN(generator=g), strong_convexity=2e-6, noise_level=0.1),
        "photographs",
        "proximal",
    ),
    "learned_proximal_photographs_cnn": Network(lambda g: PlainDenoiser(generator=g), "photographs", "proximal"),
}

_STEPS = {
    "quick": {"laplace": 1000, "mixture": 600, "photographs": 400},
    "full": {"laplace": 2500, "mixture": 1500, "photographs": 2500},
}
_DATA = {
    "laplace": "samples of a Laplace distribution of scale 1 with noise of standard deviation 1",
    "mixture": "the four points (+-1, +-1) with noise of standard deviation 1",
    "photographs": "hadamard.data.photographs('train'), grey crops of 32 x 32 with contrast 1 to 4, noise 0.1",
}


def train(
    size: str = "full",
    out: str | Path | None = None,
    resume: bool = True,
    *,
    seed: int = 0,
    progress: bool = True,
    data: Sequence[str] = ("laplace", "mixture", "photographs"),
) -> list[Path]:
    """Train the networks of the claim and write each with its provenance.

    Parameters
    ----------
    size
        ``"full"``: as shipped, about eight minutes on one core; ``"quick"``: a sixth of it.
    out
        Folder; ``None``: where the shipped networks lie.
    resume
        Go on from what an interrupted training left in ``out``.
    seed
        Of the initial weights and the data.
    progress
        Show a progress bar for each network.
    data
        Which networks: those that learn from these.

    Returns
    -------
    list of Path
        The files.
    """
    if size not in _STEPS:
        raise ValueError(f"size must be one of 'quick', 'full', got {size!r}")
    with shipping("learned_proximal", size, out, resume, seed=seed) as shelf:
        for name, network in NETWORKS.items():
            if network.data not in data:
                continue
            steps = _STEPS[size][network.data]
            module = _train_one(network, steps, seed, shelf.state(name), name if progress else "")
            shelf.write(name, module, data=_DATA[network.data], loss=network.loss, steps=str(steps))
    return shelf.paths


def _train_one(network: Network, steps: int, seed: int, state: Path, progress: str) -> nn.Module:
    """Train one network: a constant learning rate for the warm start, a falling one for the rest."""
    generator = torch.Generator().manual_seed(seed)
    module = network.build(generator)
    photographs = network.data == "photographs"
    warm = steps // 2 if photographs else 2 * steps // 5
    potential = getattr(module, "network", None)
    slow = potential.slow_parameters() if isinstance(potential, PatchICNN) else []
    fast = [p for p in module.parameters() if not any(p is q for q in slow)]
    optimizer = torch.optim.Adam([{"params": fast, "lr": 1e-3}, {"params": slow, "lr": 1e-4}], fused=True)

    def rate(step: int) -> float:
        if photographs:
            return 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))
        return 1.0 if step < warm else 0.4 * (0.02 + 0.49 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))))

    loss = _loss(network, steps, warm)
    fit(
        module,
        lambda module, batch, step: loss(module(batch[0]), batch[1], step),
        _draw(network.data),
        steps=steps,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, rate),
        after_step=module.project_ if isinstance(module, LearnedProximal) else None,
        generator=generator,
        state=state,
        progress=progress,
    )
    return module


def _loss(network: Network, steps: int, warm: int) -> Loss:
    if network.loss == "l2":
        return lambda prediction, target, step: nn.functional.mse_loss(prediction, target)
    if network.loss == "l1":
        return lambda prediction, target, step: nn.functional.l1_loss(prediction, target)
    if network.data == "photographs":
        schedule = ProximalMatchingSchedule(_SIDE**2, steps, warm)
    else:
        gamma = {"laplace": 0.15, "mixture": 0.3}[network.data]
        schedule = ProximalMatchingSchedule(1, steps, warm, stages=3, gamma_min=gamma)
    return lambda prediction, target, step: schedule.loss(step)(prediction, target)


def _draw(data: str) -> Draw:
    return {"laplace": lambda: _laplace, "mixture": lambda: _mixture, "photographs": _crops}[data]()


def _laplace(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    u = torch.rand(1000, 1, generator=generator) - 0.5
    clean = -u.sign() * torch.log1p(-2 * u.abs())
    return clean + torch.randn(clean.shape, generator=generator), clean


def _mixture(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    clean = ATOMS[torch.randint(len(ATOMS), (1000,), generator=generator)]
    return clean + torch.randn(clean.shape, generator=generator), clean


def _crops() -> Draw:
    """Crops of the photographs to train on, turned and mirrored, with their contrast raised by up to four."""
    pictures = list(photographs("train").values())

    def integer(high: int, generator: torch.Generator) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    def crop(generator: torch.Generator) -> Any:
        picture = pictures[integer(len(pictures), generator)]
        top, left = (integer(n - _SIDE + 1, generator) for n in picture.shape)
        part = picture[top : top + _SIDE, left : left + _SIDE].rot90(integer(4, generator))
        return part.T if integer(2, generator) else part

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        clean = torch.stack([crop(generator) for _ in range(16)])[:, None]
        clean = clean * _CONTRAST ** torch.rand(16, 1, 1, 1, generator=generator)
        return clean + 0.1 * torch.randn(clean.shape, generator=generator), clean

    return draw
