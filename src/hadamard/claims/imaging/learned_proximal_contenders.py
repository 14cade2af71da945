"""Signals and photographs with networks that learned them, and the reconstructions by these and by others."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from hadamard.claims.imaging.learned_proximal_training import ATOMS, NETWORKS, train
from hadamard.data import photographs
from hadamard.imaging import GaussianBlur, LearnedProximal, pnp_admm, pnp_pgd
from hadamard.proximal import soft
from hadamard.training import load_checkpoint

__all__ = ["ADMM", "CNN", "ITERATIONS", "L1", "L2", "OURS", "TV", "learned", "problem", "run_admm", "run_cnn", "run_tv"]

OURS, L2, L1 = "LPN, proximal matching", "LPN, squared error", "LPN, absolute error"
ADMM, CNN, TV = "LPN, by ADMM", "CNN of equal size, plug-and-play", "TV (scikit-image)"
_LOSS = {OURS: "proximal", L2: "l2", L1: "l1"}
ITERATIONS = 200
_BLURS, _NOISES = [1.0, 2.0], [0.02, 0.04]
# Strength of each prior in units of the noise, of seven between 0.35 and 2.8, made by
# `python -c "from hadamard.claims.imaging.learned_proximal_contenders import tune; print(tune())"`.
_STRENGTH = {OURS: 0.7, CNN: 0.7, TV: 0.5, ADMM: 2.0}


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


def problem(
    seed: int, names: list[str], side: int, blurs: list[float], noises: list[float], again: bool, device: str = "cpu"
) -> dict[str, Any]:
    """Networks for two distributions of signals, if asked trained once more, and blurred noisy photographs."""
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


def learned(contender: str) -> Callable[[Any], dict[str, Any]]:
    """Ours by the loss it was trained with: looked at on signals, or restoring a photograph."""

    def run(case: _Signals | _Deblur) -> dict[str, Any]:
        if isinstance(case, _Deblur):
            return run_ours(case)
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


def run_ours(case: _Deblur, strength: float = _STRENGTH[OURS], max_iter: int = ITERATIONS) -> dict[str, Any]:
    alone = case.prior(case.noisy)
    return _descend(case, case.prior.at(strength * case.noise), torch.float64, max_iter) | {"alone": _psnr(case, alone)}


def run_cnn(case: _Deblur, strength: float = _STRENGTH[CNN], max_iter: int = ITERATIONS) -> dict[str, Any]:
    """Plug-and-play with the unconstrained denoiser, scaled to other noise levels as ours is."""
    alone, scale = case.plain(case.noisy.float()), strength * case.noise / case.prior.noise_level
    found = _descend(case, lambda v: scale * case.plain(v / scale), torch.float32, max_iter)
    return found | {"alone": _psnr(case, alone)}


def _descend(case: _Deblur, denoiser: Any, dtype: torch.dtype, max_iter: int) -> dict[str, Any]:
    found = pnp_pgd(case.operator, case.y.to(dtype), denoiser, step=0.99, tol=0.0, max_iter=max_iter, warn=False)
    return _outcome(case, found.value) | {"residuals": found.residuals, "objective": found.objective}


def run_admm(case: _Deblur, strength: float = _STRENGTH[ADMM], max_iter: int = 30) -> dict[str, Any]:
    """Ours by ADMM in place of proximal gradients."""
    prior = case.prior.at(strength * case.noise)
    found = pnp_admm(case.operator, case.y, prior, rho=1 / strength**2, tol=0.0, max_iter=max_iter, warn=False)
    return _outcome(case, found.value) | {"residuals": found.residuals}


def run_tv(case: _Deblur, strength: float = _STRENGTH[TV], max_iter: int = 60) -> dict[str, Any]:
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


_RUNS: dict[str, Callable[..., dict[str, Any]]] = {OURS: run_ours, CNN: run_cnn, ADMM: run_admm, TV: run_tv}


def _outcome(case: _Deblur, x: Tensor) -> dict[str, Any]:
    return {"image": x[0, 0].cpu(), "psnr": _psnr(case, x)}


def _psnr(case: _Deblur, x: Tensor) -> float:
    return float(-10 * torch.log10((x - case.clean).square().mean((1, 2, 3))).mean())
