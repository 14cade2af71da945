"""Claim on learned proximal networks: the most probable signal, a prior that can be read, and a solver that settles."""

from itertools import pairwise
from statistics import fmean
from typing import Any

import torch

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.imaging.learned_proximal_contenders import (
    ADMM,
    CNN,
    ITERATIONS,
    L1,
    L2,
    OURS,
    TV,
    learned,
    problem,
    run_admm,
    run_cnn,
    run_tv,
)
from hadamard.claims.imaging.learned_proximal_training import NETWORKS, train
from hadamard.claims.plots import bars, lines, pictures
from hadamard.proximal import soft

__all__ = ["claim", "train"]


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
        errors = [results.value(name, k, "RMSE") for k in (L2, L1, OURS)]
        wrong += sum(a <= b for a, b in pairwise(errors))
    for name in (n for n in results.cases if n.startswith("four")):
        wrong += results.value(name, L2, "pairs") >= results.value(name, OURS, "pairs")
    return float(wrong)


def _leads(results: Results) -> list[float]:
    """The lead over the plain denoiser in dB, run by run."""
    return [results.value(c, OURS, "PSNR") - results.value(c, CNN, "PSNR") for c in _deblurs(results)]


def _by_setting(results: Results, contender: str) -> dict[str, float]:
    """Mean PSNR over the photographs, for each blur and noise."""
    groups: dict[str, list[float]] = {}
    for case in _deblurs(results):
        groups.setdefault(case.partition(", ")[2], []).append(results.value(case, contender, "PSNR"))
    return {setting: fmean(values) for setting, values in groups.items()}


def _plot(results: Results) -> list[dict[str, Any]]:
    line = {k: results.outcomes["Laplace", k] for k in (OURS, L1, L2)}
    y, x = line[OURS]["y"], line[OURS]["x"]
    maps = {k: (o["y"][::5].tolist(), o["f"][::5].tolist()) for k, o in line.items()}
    priors = {k: (o["x"][::3].tolist(), o["prior"][::3].tolist()) for k, o in line.items()}
    name = _deblurs(results)[0]
    case = results.cases[name]
    shown = {k: results.outcomes[name, k] for k in (OURS, CNN, TV)}
    steps = list(range(1, ITERATIONS + 1))
    images = {"truth": case.clean[0, 0], "blurred, noisy": case.y[0, 0]}
    images |= {f"{k}: {o['psnr']:.2f} dB": o["image"] for k, o in shown.items()}
    f = results.outcomes[name, OURS]["objective"]
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
        bars({k: _by_setting(results, k) for k in (OURS, ADMM, CNN, TV)}, y="PSNR in dB, mean over photographs",
             caption="Higher is better: what the guarantee costs."),
        lines(
            {k: (steps, shown[k]["residuals"].tolist()) for k in (OURS, CNN)}, x="iteration",
            y="change of the picture", log="y", markers=False,
            caption="How far each settles; only for the learned proximal map is it guaranteed that it does.",
        ),
        lines(
            {OURS: (steps[:-1], (f[:-1] - f[-1]).tolist())}, x="iteration", y="objective above its last value",
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
    problem=problem,
    contenders=[
        Contender(OURS, learned(OURS)),
        Contender(L2, learned(L2), role="baseline", cases=lambda name: not name.startswith("deblur")),
        Contender(L1, learned(L1), role="baseline", cases=lambda name: not name.startswith("deblur")),
        Contender(ADMM, run_admm, cases=lambda name: name.startswith("deblur")),
        Contender(CNN, run_cnn, role="baseline", cases=lambda name: name.startswith("deblur")),
        Contender(TV, run_tv, role="peer", cases=lambda name: name.startswith("deblur")),
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
            value=lambda r: r.value("Laplace", OURS, "RMSE") / min(r.value("Laplace", k, "RMSE") for k in (L1, L2)),
            headline=True,
        ),
        Bar(
            text="Laplace: largest distance of the learned prior from |x| on [-3, 3]",
            source="card, claim 1",
            original_bound="learned R within 0.2 of |x| on [-3,3] after removing the constant",
            sense="<=",
            bound=0.2,
            value=lambda r: r.value("Laplace", OURS, "prior error"),
            headline=True,
        ),
        Bar(
            text="four points: pairs whose middle is less likely than both points, proximal matching",
            source="card, claim 2",
            original_bound="prior evaluated at modes < prior at midpoints (non-convex) in all 6 pairs",
            sense="==",
            bound=6,
            value=lambda r: r.value("four points", OURS, "pairs"),
        ),
        Bar(
            text="four points: pairs for which the network trained by squared error says otherwise",
            source="card, claim 2",
            original_bound="l2-trained LPN fails at least one",
            sense=">=",
            bound=1,
            value=lambda r: 6 - r.value("four points", L2, "pairs"),
        ),
        Bar(
            text="deblurring: share of runs whose objective never rises (beyond rounding, 1e-9 of its fall)",
            source="card, claim 3",
            original_bound="h + R/eta monotone non-increasing for PGD with eta < 1/L on 100 % of runs",
            sense=">=",
            bound=1.0,
            value=lambda r: (
                sum(r.value(c, OURS, "largest rise of the objective") <= 1e-9 for c in _deblurs(r)) / len(_deblurs(r))
            ),
        ),
        Bar(
            text="deblurring: fixed-point residual after 200 iterations over the first, the worst run",
            source="card, claim 3",
            original_bound="fixed-point residual ratio r_200/r_1 <= 1e-3",
            sense="<=",
            bound=1e-3,
            value=lambda r: max(r.series(OURS, "last residual / first", _deblurs(r))),
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
