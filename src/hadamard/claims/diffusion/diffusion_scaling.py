"""Scaling of diffusion backbones: what they cost to the operation, and laws that forecast runs not yet paid for."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.diffusion.diffusion_scaling_training import DEPTHS, WIDTHS, name, train, trained, validation_loss
from hadamard.claims.plots import bars, lines
from hadamard.diffusion import ScalingLaw, profile, sdxl_variant

__all__ = ["claim", "train"]

OURS, LINE, SDXL = "hadamard", "straight line through the logarithms", "SDXL"
COST, TIME, KNOWN, RUNS = "costs at full width", "time, narrower, on the CPU", "losses of a known law", "trained here"
_DEPTHS = {SDXL: (0, 2, 10), "TD4_4": (0, 4, 4), "TD2_4": (0, 2, 4), "TD2": (0, 2, 2), "TD4_8": (0, 4, 8)}
_E, _A, _B, _a, _b = 1.7, 400.0, 410.0, 0.34, 0.28


class _Line:
    """Least squares of the logarithm of the loss on those of the sizes: the usual way, which knows no floor."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "_Line":
        self.weights = np.linalg.lstsq(_with_one(X), np.log(y), rcond=None)[0]
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.exp(_with_one(X) @ self.weights)


@dataclass(frozen=True)
class _Costs:
    """The study's UNets at full width, counted without memory for them."""

    def __call__(self, kind: str) -> dict[str, tuple[int, int]]:
        """Parameters and operations by name."""
        wanted = [SDXL] if kind == SDXL else [key for key in _DEPTHS if key != SDXL]
        found = {key: profile(sdxl_variant(320, _DEPTHS[key]), 32) for key in wanted}
        return {key: (cost.parameters, cost.macs) for key, cost in found.items()}


@dataclass(frozen=True)
class _Calls:
    """One call of a narrower SDXL and of TD4_4, with weights that are all alike."""

    nets: Mapping[str, nn.Module]
    inputs: tuple[Any, ...]
    added: dict[str, torch.Tensor]

    @torch.no_grad()
    def __call__(self, kind: str) -> torch.Tensor:
        """The output, which nobody looks at."""
        return self.nets[kind](*self.inputs, added_cond_kwargs=self.added).sample


@dataclass(frozen=True)
class _Known:
    """Runs of a law that is known, 64 sizes with 1 % of noise, again and again."""

    seed: int
    trials: int
    bootstrap: int

    def __call__(self, kind: str) -> dict[str, np.ndarray]:
        """By trial: the exponents, whether their intervals hold the true ones, and the forecast's error."""
        N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e9, 8), np.geomspace(1e8, 1e11, 8)))
        rng, beyond = np.random.default_rng(self.seed), np.array([[1e9, 1e11]]) * np.sqrt(10)
        exponents, held, errors = [], [], []
        for _ in range(self.trials):
            losses = _loss(N, D) * np.exp(0.01 * rng.standard_normal(N.size))
            law = _law(kind, self.bootstrap).fit(np.column_stack([N, D]), losses)
            errors.append(abs(law.predict(beyond)[0] / _loss(*beyond[0]) - 1))
            if isinstance(law, ScalingLaw):
                ranges = law.intervals(0.9)
                exponents.append(law.exponents_)
                held.append([ranges["a0"][0] <= _a <= ranges["a0"][1], ranges["a1"][0] <= _b <= ranges["a1"][1]])
        return {"exponents": np.array(exponents), "held": np.array(held), "errors": np.array(errors)}


@dataclass(frozen=True)
class _Runs:
    """Networks that were trained here: parameters and loss on test pictures, by name."""

    sizes: Mapping[str, int]
    losses: Mapping[str, float]

    def __call__(self, kind: str) -> dict[str, Any]:
        """The law of all widths, and the loss of the widest as the others forecast it."""
        widths = [name(*key) for key in WIDTHS]
        x, y = (np.array([table[key] for key in widths]) for table in (self.sizes, self.losses))
        grid = np.geomspace(x[0], x[-1], 30)
        law = _law(kind, 100).fit(x[:, None], y)
        partial = _law(kind, 0).fit(x[:-1, None], y[:-1])
        found: dict[str, Any] = {"forecast": float(partial.predict(x[-1:, None])[0]), "truth": float(y[-1])}
        found |= {"sizes": grid, "law": law.predict(grid[:, None])}
        if isinstance(law, ScalingLaw):
            found |= {"exponent": float(law.exponents_[0]), "range": law.intervals(0.9)["a0"], "floor": law.offset_}
        return found


def _with_one(X: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(X)), np.log(X)])


def _loss(N: Any, D: Any) -> Any:
    return _E + _A * N**-_a + _B * D**-_b


def _law(kind: str, bootstrap: int) -> Any:
    return ScalingLaw(bootstrap=bootstrap, random_state=0) if kind == OURS else _Line()


def _calls(width: int) -> _Calls:
    from diffusers import UNet2DConditionModel

    nets = {}
    for kind, key in ((OURS, "TD4_4"), (SDXL, SDXL)):
        with torch.device("meta"):
            net = UNet2DConditionModel(**sdxl_variant(width, _DEPTHS[key], head_width=32)).eval()
        nets[kind] = net.to_empty(device="cpu")
        for parameter in net.parameters():
            nn.init.constant_(parameter, 1e-3)
    inputs = (torch.ones(1, 4, 32, 32), torch.tensor(10), torch.ones(1, 77, 2048))
    return _Calls(nets, inputs, {"text_embeds": torch.ones(1, 1280), "time_ids": torch.ones(1, 6)})


def _problem(seed: int, width: int, trials: int, bootstrap: int, batches: int) -> Mapping[str, Any]:
    nets = {name(*key): trained(*key) for key in (*WIDTHS, *DEPTHS)}
    runs = _Runs(
        {key: sum(p.numel() for p in net.parameters()) for key, net in nets.items()},
        {key: validation_loss(net, batches) for key, net in nets.items()},
    )
    return {COST: _Costs(), TIME: _calls(width), KNOWN: _Known(seed, trials, bootstrap), RUNS: runs}


def _share(r: Results, which: int) -> float:
    return r.outcomes[COST, OURS]["TD4_4"][which] / r.outcomes[COST, SDXL][SDXL][which]


def _worst_exponent(r: Results) -> float:
    return float(np.abs(r.outcomes[KNOWN, OURS]["exponents"] / [_a, _b] - 1).max())


def _fall(r: Results) -> float:
    """Pairs of neighbouring widths of which the wider one has the larger loss."""
    losses = [r.cases[RUNS].losses[name(*key)] for key in WIDTHS]
    return sum(b >= a for a, b in pairwise(losses))


def _plot(r: Results) -> list[dict[str, Any]]:
    runs, found = r.cases[RUNS], r.outcomes[RUNS, OURS]
    points = {
        title: ([runs.sizes[name(*key)] for key in keys], [runs.losses[name(*key)] for key in keys])
        for title, keys in (("trained here, by width", WIDTHS), ("by depth", ((12, 1), *DEPTHS)))
    }
    costs = {**r.outcomes[COST, SDXL], **r.outcomes[COST, OURS]}
    largest = max(costs.values())
    known = r.outcomes[KNOWN, OURS]
    trials = range(1, len(known["errors"]) + 1)
    return [
        lines({**points, "law": (found["sizes"], found["law"]),
               "straight line": (found["sizes"], r.outcomes[RUNS, LINE]["law"])},
              x="parameters", y="mean squared error of the noise", log="xy",
              caption="Networks trained equally long on the same pictures, the law of those by width, and the straight "
              "line through their logarithms."),
        bars({key: {"parameters": p / largest[0], "operations": m / largest[1]} for key, (p, m) in costs.items()},
             y="share of the largest", caption="The study's UNets at full width: transformers moved from the lowest "
             "level to the middle one save parameters, and fewer of them save operations."),
        lines({"a": (trials, known["exponents"][:, 0]), "b": (trials, known["exponents"][:, 1])},
              x="trial", y="exponent", reference={"true a": _a, "true b": _b},
              caption="Exponents of a law of two variables, found again from 64 runs with 1 % of noise."),
    ]  # fmt: skip


_C1 = (
    "params(TD4_4)/params(SDXL) in [0.54,0.56]; MACs ratio in [0.70,0.73] ... Latency ratio on one block-true "
    "half-width CPU model <= 0.80."
)
_C2 = "exponents within 10 %, 90 % CI covers truth in >= 80 % of 50 trials; extrapolation 10x compute within 3 %."
_C3 = "Validation eps-MSE vs params: monotone fit with b > 0 and held-out largest model predicted within 10 %"

claim = Claim(
    key="diffusion_scaling",
    statement="Moved from the lowest level to the middle one, SDXL's transformers cost 45 % fewer parameters and 29 % "
    "fewer operations, counted without a byte of weights; and a law fitted to small runs forecasts larger ones.",
    paper_figure="TD4_4 against SDXL: 45 % smaller, 28 % faster at equal alignment of text and picture (abstract).",
    sizes={"quick": {"width": 64, "trials": 50, "bootstrap": 60, "batches": 3},
           "full": {"width": 160, "trials": 200, "bootstrap": 200, "batches": 40}},
    problem=_problem,
    contenders=[
        Contender(OURS, lambda case: case(OURS), "method", lambda c: c != TIME, once=True),
        Contender(OURS, lambda case: case(OURS), "method", lambda c: c == TIME),
        Contender(SDXL, lambda case: case(SDXL), "baseline", lambda c: c == COST, once=True),
        Contender(SDXL, lambda case: case(SDXL), "baseline", lambda c: c == TIME),
        Contender(LINE, lambda case: case(LINE), "baseline", lambda c: c in (KNOWN, RUNS), once=True),
    ],
    measures=[
        Measure("largest error of a forecast", "%", lambda case, out: 100 * float(out["errors"].max())
                if isinstance(case, _Known) else None),
        Measure("forecast of the widest", "", lambda case, out: out["forecast"] if isinstance(case, _Runs) else None),
        Measure("its loss", "", lambda case, out: out["truth"] if isinstance(case, _Runs) else None),
    ],
    bars=[
        Bar("parameters of TD4_4 over SDXL's, at most", "card, claim 1", _C1, "<=", 0.56, lambda r: _share(r, 0),
            headline=True),
        Bar("parameters of TD4_4 over SDXL's, at least", "card, claim 1", _C1, ">=", 0.54, lambda r: _share(r, 0)),
        Bar("operations of TD4_4 over SDXL's, at most", "card, claim 1", _C1, "<=", 0.73, lambda r: _share(r, 1)),
        Bar("operations of TD4_4 over SDXL's, at least", "card, claim 1", _C1, ">=", 0.70, lambda r: _share(r, 1)),
        Bar("time of TD4_4 over SDXL's, narrower (full: half as wide), on the CPU", "card, claim 1", _C1, "<=", 0.80,
            lambda r: r.ratio(TIME, OURS, SDXL), seconds=True),
        Bar("known law: largest relative error of an exponent over the trials", "card, claim 2", _C2, "<=", 0.1,
            _worst_exponent),
        Bar("known law: share of the 90 % intervals that hold the exponent", "card, claim 2", _C2, ">=", 0.8,
            lambda r: float(r.outcomes[KNOWN, OURS]["held"].mean(0).min())),
        Bar("known law: largest relative error of a forecast at 10 times the compute", "card, claim 2", _C2, "<=", 0.03,
            lambda r: float(r.outcomes[KNOWN, OURS]["errors"].max()), headline=True),
        Bar("trained here: exponent of the law", "card, claim 3", _C3, ">", 0.0,
            lambda r: r.outcomes[RUNS, OURS]["exponent"]),
        Bar("trained here: wider networks that are not better", "card, claim 3", _C3, "==", 0, _fall),
        Bar("trained here: relative error of the widest one's loss, forecast from the others", "card, claim 3", _C3,
            "<=", 0.1, lambda r: abs(r.outcomes[RUNS, OURS]["forecast"] / r.outcomes[RUNS, OURS]["truth"] - 1)),
    ],
    plot=_plot,
    threads=1,
    rounds={"quick": 2, "full": 5},
    checkpoints=[name(*key) for key in (*WIDTHS, *DEPTHS)],
)  # fmt: skip
