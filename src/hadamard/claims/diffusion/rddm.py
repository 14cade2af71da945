"""RDDM: exact steps, equality with DDIM, restoration in five calls against conditional DDIM and a regression."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.diffusion import clothes as shared
from hadamard.claims.diffusion import rddm_training as training
from hadamard.claims.diffusion.rddm_cases import Choice, Clothes, Converted, Exact, Photographs
from hadamard.claims.diffusion.rddm_problem import TASKS
from hadamard.claims.plots import bars, lines, pictures

__all__ = ["claim", "train"]

OURS, DDIM, REGRESSION, SWAPPED = "hadamard", "conditional DDIM", "regression", "two networks"
EXACT, SAME, CLOTHES, PHOTOGRAPHS, CHOICE = "known residual", "converted DDIM", "clothes", "photographs", "choice"
_AVERAGE = {"alpha_schedule": "average", "beta_schedule": "average"}


def train(size: str = "full", out: str | Path | None = None, resume: bool = True) -> list[Path]:
    """Train the networks of residual denoising and of its peers."""
    return training.train(size, out, resume)


def _problem(
    seed: int, T: int, count: int, side: int, steps: tuple[int, ...], samples: int, chain: int, rate: float
) -> Mapping[str, Any]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, 1, shared.SIZE, shared.SIZE, generator=generator)
    return {
        EXACT: Exact(T, seed),
        SAME: Converted(shared.trained(), noise, torch.arange(samples) % shared.NO_CLASS, chain),
        CLOTHES: Clothes.test(count, steps),
        PHOTOGRAPHS: Photographs.test(side),
        CHOICE: Choice(5, rate),
    }


def _ours(case: Any) -> Any:
    if isinstance(case, Clothes):
        return {steps: case.rddm(steps) for steps in case.steps}
    if isinstance(case, Photographs):
        return {steps: case.rddm(steps) for steps in (1, 5)}
    runs: dict[type, Callable[[Any], Any]] = {
        Exact: Exact.errors, Converted: Converted.compare, Choice: Choice.choose,
    }  # fmt: skip
    return runs[type(case)](case)


def _exchanged(case: Clothes) -> Any:
    return {"as trained": case.two(5), "average": case.two(5, **_AVERAGE)}


def _gap(steps: int) -> Callable[[Results], float]:
    """By how much five steps beat so many of DDIM's, in dB."""
    return lambda r: r.outcomes[CLOTHES, OURS][5].psnr - r.outcomes[CLOTHES, DDIM][steps].psnr


def _change(r: Results) -> float:
    found = r.outcomes[CLOTHES, SWAPPED]
    return abs(found["average"].psnr - found["as trained"].psnr)


def _chosen(task: str, kind: str) -> Callable[[Results], float]:
    return lambda r: r.outcomes[CHOICE, OURS][task].count(kind)


def _sheet(x: torch.Tensor, count: int = 8) -> torch.Tensor:
    return torch.cat(list(x[:count]), -1)


def _plot(r: Results) -> list[dict[str, Any]]:
    case, photos = r.cases[CLOTHES], r.cases[PHOTOGRAPHS]
    ours, ddim, two = (r.outcomes[CLOTHES, kind] for kind in (OURS, DDIM, SWAPPED))
    regression = r.outcomes[CLOTHES, REGRESSION][1]
    curves = {kind: (list(found), [f.psnr for f in found.values()]) for kind, found in ((OURS, ours), (DDIM, ddim))}
    found = r.outcomes[PHOTOGRAPHS, OURS]
    groups = {f"{OURS}, {words}": {task: f.psnr for task, f in found[n].items()} for n, words in (
        (5, "five calls"), (1, "one call"))}  # fmt: skip
    groups["degraded"] = photos.levels()
    mine = found[5]
    rows = {"degraded": case.degraded, f"{OURS}, five steps": ours[5].images, f"{DDIM}, five steps": ddim[5].images}
    rows |= {f"{DDIM}, fifty steps": ddim[50].images, f"{REGRESSION}, one call": regression.images, "true": case.clean}
    paths = {"as trained": two["as trained"].images, "both schedules average": two["average"].images}
    return [
        lines(
            curves, x="calls of the network", y="PSNR (dB)", log="x",
            reference={f"{REGRESSION}, one call": regression.psnr},
            caption="Clothes that were darkened, rained on and blurred: residual denoising is best with one or two "
            "calls and stays above conditional DDIM; the regression is above both.",
        ),
        pictures({name: _sheet(x[:, 0]) for name, x in rows.items()}, limits=(0, 1),
                 caption="Test pictures that were darkened, rained on and blurred, and what each makes of them."),
        bars(groups, y="PSNR (dB)", caption="Middles of five photographs that were not trained on, degraded in five "
             "ways, restored by one small network that is told which."),
        pictures({f"{task}{note}": torch.cat(list(x[:3]), -1) for task in mine for note, x in (
            ("", photos.degraded[task]), (", restored", mine[task].images))}, limits=(0, 1),
            caption="Three of these photographs, degraded and restored in five calls."),
        pictures({name: _sheet(x[:, 0]) for name, x in paths.items()}, limits=(0, 1),
                 caption="Two networks, for the residual and for the noise, that are told the sums, on the "
                 "schedules of training and on other ones."),
    ]  # fmt: skip


def _on(kind: type, what: Callable[[Any], float | None]) -> Callable[[Any, Any], float | None]:
    return lambda case, out: what(out) if isinstance(case, kind) else None


def _psnr(steps: Any) -> Callable[[Any], float | None]:
    return lambda out: out[steps].psnr if steps in out else None


def _restored(task: str) -> Callable[[Any], float]:
    return lambda out: out[5][task].psnr


def _residuals(task: str) -> Callable[[Any], float]:
    return lambda out: out[task].count("residual")


def _difference(name: str) -> Callable[[Results], float]:
    return lambda r: r.outcomes[SAME, OURS][name]


_C1 = "oracle (I_res, eps), any schedule, any S in {1,2,5,10,T}, eta 0 -> I_0 within 1e-5 (closed form)."
_C2 = (
    "for `from_ddim`, same eps-net: RDDM step == DDIMScheduler.step (clip off, set_alpha_to_one) for eta 0, and for "
    'eta 1 with `variance_type="ddim"` and shared z. Measured over 50 chained steps: 4e-6 (eta 0), 2e-4 (eta 1), the '
    "rest being the scheduler's fp32 tables; bar 1e-3 chained, 1e-6 per step."
)
_C3 = (
    "Bar: PSNR(RDDM,5) >= PSNR(cond DDIM,5) + 1 dB and >= PSNR(cond DDIM,50); within 0.5 dB of regression. RDDM needs "
    "<= 1/10 of the calls."
)
_C4 = (
    "after training with (decreased, increased), sampling pred_res_noise with average/average changes PSNR < 0.5 dB if "
    "time inputs are (abar,bbar)."
)
_C5 = "AOSA picks residual on the deterministic degradation and noise for I_in = 0 generation in >= 4/5 seeds."
_WHY_REGRESSION = (
    "In three quarters of the timesteps of training the clean picture shows through the sample (its share exceeds the "
    "noise), and the network learns to read it off; restoring from the degraded picture alone is learnt in the last "
    "quarter. Already its first call, which is a regression, is behind, and each further step costs a little more."
)
_WHY_CHANGE = (
    "With both schedules average the sample has more noise for the same share of the residual (0.07 against 0.03 at "
    "one half) than the networks, each told its own sum only, have met in training; exchanging one of the two costs "
    "about half as much. The noise's network was trained for 600 steps only."
)
_WHY_NOISE = (
    "The residual is chosen in nearly every run (clothes, their negatives, photographs): the noise that follows "
    "from a residual is divided by its small standard deviation, so that the noise's loss is the greater one from the "
    "start, and the weight moves towards the smaller loss."
)

_DIFFERENCES = {"step, eta 0": 1e-6, "all, eta 0": 1e-3, "step, eta 1": 1e-6, "all, eta 1": 1e-3}

claim = Claim(
    key="rddm",
    statement="One scheduler removes a residual and noise by two schedules. Its steps are exact for any schedule, and "
    "those of DDIM after a change of coefficients. On degraded pictures of clothes, five steps are better than fifty "
    "of a conditional DDIM that was trained alike; a plain regression, one call, is better still.",
    paper_figure="Raindrop 32.51 dB, LOL 25.39 dB and GoPro 32.40 dB in 2 to 10 calls, with one generic UNet and an L1 "
    "loss at batch size 1; no regression by the same network in its tables.",
    sizes={
        "quick": {"T": 100, "count": 24, "side": 64, "steps": (1, 2, 5, 10), "samples": 2, "chain": 10, "rate": 1e-3},
        "full": {"T": 1000, "count": 200, "side": 192, "steps": (1, 2, 5, 10, 50), "samples": 4, "chain": 50,
                 "rate": 8e-5},
    },
    problem=_problem,
    contenders=[
        Contender(OURS, _ours, "method", once=True),
        Contender(DDIM, lambda case: {steps: case.ddim(steps) for steps in (5, 10, 50)}, "baseline",
                  lambda name: name == CLOTHES, once=True),
        Contender(REGRESSION, lambda case: {1: case.regression()}, "peer", lambda name: name == CLOTHES, once=True),
        Contender(SWAPPED, _exchanged, "ablation", lambda name: name == CLOTHES, once=True),
    ],
    measures=[
        Measure("largest error", "", _on(Exact, lambda out: max(out.values()))),
        *(Measure(f"difference ({name})", "", _on(Converted, itemgetter(name)))
          for name in _DIFFERENCES),
        *(Measure(f"PSNR, {n} {'step' if n == 1 else 'steps'}", "dB", _on(Clothes, _psnr(n)))
          for n in (1, 2, 5, 10, 50)),
        *(Measure(f"PSNR, {name}", "dB", _on(Clothes, _psnr(name))) for name in ("as trained", "average")),
        *(Measure(f"PSNR, {task}", "dB", _on(Photographs, _restored(task))) for task in TASKS),
        *(Measure(f"residual chosen to {task}", "of 5", _on(Choice, _residuals(task)))
          for task in ("restore", "generate")),
    ],
    bars=[
        Bar("known residual and noise, any schedule and steps: largest error", "card, claim 1", _C1, "<=", 1e-5,
            lambda r: max(r.outcomes[EXACT, OURS].values())),
        *(Bar(f"converted DDIM: largest difference ({name})", "card, claim 2", _C2, "<=", bound,
              _difference(name)) for name, bound in _DIFFERENCES.items()),
        Bar("clothes: PSNR of five steps over that of five of conditional DDIM, dB", "card, claim 3", _C3, ">=", 1,
            _gap(5)),
        Bar("clothes: PSNR of five steps over that of fifty of conditional DDIM, dB", "card, claim 3", _C3, ">=", 0,
            _gap(50), headline=True),
        Bar("clothes: PSNR of the regression over that of five steps, dB", "card, claim 3", _C3, "<=", 0.5,
            lambda r: r.outcomes[CLOTHES, REGRESSION][1].psnr - r.outcomes[CLOTHES, OURS][5].psnr, why=_WHY_REGRESSION),
        Bar("clothes: calls over those of conditional DDIM that is no better", "card, claim 3", _C3, "<=", 0.1,
            lambda r: r.outcomes[CLOTHES, OURS][5].calls / r.outcomes[CLOTHES, DDIM][50].calls),
        Bar("clothes: change of PSNR when both schedules become average, dB", "card, claim 4", _C4, "<", 0.5, _change,
            why=_WHY_CHANGE),
        Bar("choice of the objective: residual to restore, of five seeds", "card, claim 5", _C5, ">=", 4,
            _chosen("restore", "residual")),
        Bar("choice of the objective: noise to generate, of five seeds", "card, claim 5", _C5, ">=", 4,
            _chosen("generate", "epsilon"), why=_WHY_NOISE),
    ],
    plot=_plot,
    threads=1,
    rounds={"quick": 1, "full": 1},
    checkpoints=[*training.NAMES, shared.NAME],
)  # fmt: skip
