"""Flows, predictions and perturbations on which spectral refinement is compared, and the contenders."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from hadamard.claims.pde.spectral_refiner_training import DT, FLOW, NETWORKS, OUT, flows, train_one
from hadamard.pde import STFNO, SpectralRefiner, gaussian_field, residual_norm
from hadamard.pde.residual_norm import ALPHA
from hadamard.spectral import resample, weighted_norm
from hadamard.training import load_checkpoint, provenance

__all__ = ["Case", "Estimates", "problem"]

OURS, L2, PLAIN, PLAIN_L2 = "H^-1, preconditioned", "L2, preconditioned", "H^-1, plain", "L2, plain"
MARCH, SOLVER = "IMEX-RK2 at the same step", "IFRK4, five steps a slice"
SHORT, LONG, YOUNG = "refine, dt = 0.05", "refine, dt = 0.2", "refine, young flow, dt = 0.05"
ERRORS, FAR, TRAINED, AGAIN, FINER = (
    "estimate, dt = 0.05",
    "estimate, dt = 0.2",
    "trained",
    "trained anew",
    "finer grid, 20 slices",
)
FEW, MANY, FNO = "ST-FNO, few epochs", "ST-FNO, five times as many", "FNO, as many"
REFINED, FNO_REFINED = "ST-FNO, few epochs, refined", "FNO, refined"
FILES = {FEW: "spectral_refiner_few", MANY: "spectral_refiner_many", FNO: "spectral_refiner_fno"}
ITERATIONS = 100


@dataclass(frozen=True)
class Case:
    """A known slice, what follows it, and how it is predicted."""

    dt: float
    last: Tensor
    truth: Tensor
    guess: Tensor | None = None
    known: Tensor | None = None
    nets: Mapping[str, nn.Module] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    perturbed: Tensor | None = None


@dataclass(frozen=True)
class Outcome:
    """A trajectory, and the norms of its residual on the way."""

    value: Tensor
    history: Tensor | None = None


@dataclass(frozen=True)
class Estimates:
    """What was estimated of each perturbed trajectory, and of the flow that stands still over that of the true one."""

    value: Tensor
    still: float


def error(case: Case, w: Tensor) -> float:
    """Relative error in L2 over space and time, the mean over a batch; infinite where the flow blew up."""
    if not bool(torch.isfinite(w).all()):
        return math.inf
    flat = 1 if w.ndim == 4 else 0
    return float(((w - case.truth).flatten(flat).norm(dim=-1) / case.truth.flatten(flat).norm(dim=-1)).mean())


def true_errors(case: Case) -> Tensor:
    """Relative errors of the perturbed trajectories."""
    assert case.perturbed is not None
    return (case.perturbed - case.truth).flatten(1).norm(dim=1) / case.truth.norm()


def problem(seed: int, size: int, tests: int, perturbations: int, retrain: str) -> dict[str, Case]:
    """Predictions to be refined, perturbed trajectories whose error is to be estimated, and trained networks."""
    generator = torch.Generator().manual_seed(100 + seed)
    start = gaussian_field((size, size), 1, generator=generator, dtype=torch.float64)[0]
    old = FLOW.solve(start, 0.02, 500, every=500)[-1]
    cases = {
        SHORT: _prediction(_scaled(old, 2.0), 0.05, generator), LONG: _prediction(_scaled(old, 2.0), 0.2, generator),
        YOUNG: _prediction(_scaled(start, 2.0), 0.05, generator),
    }  # fmt: skip
    fine = _scaled(resample(old, (64, 64)), 2.0)
    cases[ERRORS] = _perturbations(fine, 0.05, perturbations, generator)
    cases[FAR] = _perturbations(fine, 0.2, perturbations, generator)
    nets: dict[str, nn.Module] = {n: load_checkpoint(f, NETWORKS[f].build(None)).eval() for n, f in FILES.items()}
    seconds = {name: float(provenance(file)["seconds"]) for name, file in FILES.items()}
    known, later = flows(32, tests, 20_000 + seed)
    cases[TRAINED] = Case(DT, known[:, -1], later, known=known, nets=nets, seconds=seconds)
    known, later = flows(64, tests, 20_000 + seed, finer=2)
    cases[FINER] = Case(DT / 2, known[:, -1], later, known=known, nets=nets)
    if retrain:
        again = {n: train_one(NETWORKS[f], NETWORKS[f].epochs[retrain], 1 + seed) for n, f in FILES.items()}
        anew = {name: module for name, (module, _) in again.items()}
        took = {name: spent for name, (_, spent) in again.items()}
        base = cases[TRAINED]
        cases[AGAIN] = Case(DT, base.last, base.truth, known=base.known, nets=anew, seconds=took)
    return cases


def _scaled(w: Tensor, size: float) -> Tensor:
    return size * w / w.square().mean((-2, -1), keepdim=True).sqrt()


def _truth(w: Tensor, dt: float) -> Tensor:
    steps = math.ceil(dt / 0.005)
    return FLOW.solve(w, dt / steps, OUT * steps, every=steps)[1:]


def _prediction(w: Tensor, dt: float, generator: torch.Generator) -> Case:
    """The truth without its frequencies above 8, and with a smooth drift that grows to 5 per cent."""
    truth, n = _truth(w, dt), w.shape[-1]
    k = (torch.fft.fftfreq(n, 1 / n).abs() <= 8).double()
    low = torch.fft.irfft2(torch.fft.rfft2(truth) * k[:, None] * k[: n // 2 + 1], s=(n, n))
    drift = _scaled(gaussian_field((n, n), 1, generator=generator, dtype=torch.float64)[0], 0.05 * 2.0)
    return Case(dt, w, truth, low + drift * torch.linspace(0.1, 1, OUT).double()[:, None, None])


BANDS = (1, 2, 4, 8, 14)  # up to 21, the highest frequency that 64 points resolve without aliasing


def _perturbations(w: Tensor, dt: float, count: int, generator: torch.Generator) -> Case:
    """The truth plus drifts in bands of frequencies, of sizes from 1e-3 to 1e-1."""
    truth, n = _truth(w, dt), w.shape[-1]
    k = torch.fft.fftfreq(n, 1 / n)
    ring = (k[:, None].square() + k[: n // 2 + 1].square()).sqrt()
    out = []
    for number in range(count):
        low = BANDS[number % len(BANDS)]
        size = 10 ** (-3 + 2 * float(torch.rand((), generator=generator)))
        noise = torch.fft.rfft2(torch.randn(2, n, n, generator=generator, dtype=torch.float64))
        wave = _scaled(torch.fft.irfft2(noise * ((ring >= low) & (ring < 1.5 * low)), s=(n, n)), 1.0)
        t = torch.linspace(0.1, 1, OUT).double()[:, None, None]
        drift = t * wave[0] + t * (1 - t) * wave[1]
        out.append(truth + size * truth.norm() / drift.norm() * drift)
    return Case(dt, w, truth, perturbed=torch.stack(out))


# ---- contenders ----


def refine(case: Case, s: float = -1.0, precondition: bool = True) -> Outcome:
    """A hundred iterations from the case's prediction."""
    assert case.guess is not None
    refiner = SpectralRefiner(FLOW, case.dt, s=s, precondition=precondition)
    found = refiner.refine_fields(case.guess, case.last, max_iter=ITERATIONS)
    return Outcome(found.value, found.history)


def march(case: Case, scheme: str = "imex_rk2", steps: int = 1) -> Outcome:
    """The solver, so many steps a slice."""
    try:
        return Outcome(FLOW.solve(case.last, case.dt / steps, steps * OUT, every=steps, scheme=scheme)[..., 1:, :, :])
    except FloatingPointError:
        return Outcome(torch.full_like(case.truth, math.nan))


def predict(name: str) -> Callable[[Case], Outcome]:
    """A trained network; twice as many slices where the case asks for them."""

    @torch.no_grad()
    def run(case: Case) -> Outcome:
        assert case.known is not None
        net, known = case.nets[name], case.known.float()
        return Outcome((net(known, case.truth.shape[1]) if isinstance(net, STFNO) else net(known)).double())

    return run


def refined(name: str) -> Callable[[Case], Outcome]:
    """A trained network's prediction, refined."""

    def run(case: Case) -> Outcome:
        guess = predict(name)(case).value
        found = SpectralRefiner(FLOW, case.dt).refine_fields(guess, case.last, max_iter=ITERATIONS)
        return Outcome(found.value, found.history)

    return run


def estimate(case: Case, s: float = -1.0) -> Estimates:
    """Norms of the residuals of the perturbed trajectories."""
    return _estimates(case, lambda w: residual_norm(FLOW, w, case.dt, s=s))


def published(case: Case) -> Estimates:
    """The same with the time derivative of the paper's code: a tiny step of the equation itself from each slice."""
    tiny = 1e-6

    def norm(w: Tensor) -> Tensor:
        ahead = FLOW.step(w, tiny, "imex_cn")
        residual = (ahead - w) / tiny + FLOW.residual(torch.stack([w, w], -3), 1.0).squeeze(-3)
        weight = FLOW.sobolev_weight(w, -1.0, ALPHA)
        return (case.dt * weighted_norm(residual, weight, squared=True).sum(-1)).sqrt()

    return _estimates(case, norm)


def _estimates(case: Case, norm: Callable[[Tensor], Tensor]) -> Estimates:
    assert case.perturbed is not None
    still = case.last.expand_as(case.truth)
    flows = torch.cat([case.truth[None], still[None], case.perturbed])
    true, frozen, *others = norm(torch.cat([case.last.expand(len(flows), 1, *case.last.shape), flows], 1))
    return Estimates(torch.stack(others), float(frozen / true))


RUNS: dict[str, Callable[[Case], Outcome]] = {
    OURS: refine,
    L2: partial(refine, s=0.0),
    PLAIN: partial(refine, precondition=False),
    PLAIN_L2: partial(refine, s=0.0, precondition=False),
    MARCH: march,
    SOLVER: partial(march, scheme="ifrk4", steps=5),
}
