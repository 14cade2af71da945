"""Rescaling with two latents against one, against interpolation, learned enlargement and JPEG; and hiding."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hadamard.claims import Bar, Claim, Contender, Interval, Measure, Results
from hadamard.claims.imaging.dual_latent_rescaling_problem import (
    BICUBIC,
    DOWN,
    HIDING,
    JPEG,
    LANCZOS,
    LEARNED,
    LSB,
    OURS,
    SINGLE,
    UP,
    Case,
    Outcome,
    enlarge_bicubic,
    enlarge_lanczos,
    enlarge_learned,
    hide,
    hide_in_bits,
    jpeg,
    png_bytes,
    problem,
    rescale,
)
from hadamard.claims.imaging.dual_latent_rescaling_training import NETWORKS, train
from hadamard.claims.plots import Figure, bars, lines, pictures

__all__ = ["claim", "train"]

_LUMA = torch.tensor([65.481, 128.553, 24.966])[:, None, None] / 255


def psnr(a: Tensor, b: Tensor, border: int) -> float:
    """On the luma of Rec. 601 (16 to 235), without the border, in dB."""
    error = ((a - b) * _LUMA).sum(-3)[..., border : a.shape[-2] - border, border : a.shape[-1] - border]
    return float(-10 * error.square().mean().log10())


def _restored(case: Case, outcome: Outcome) -> np.ndarray:
    """PSNR of what came back, (photographs, seeds)."""
    rows = [[psnr(up, case.pictures[name], case.scale) for _, up in pairs] for name, pairs in outcome.items()]
    return np.array(rows)


def _small(case: Case, outcome: Outcome) -> np.ndarray:
    """PSNR of what is kept, against the bicubic reduction or the cover."""
    rows = [
        [
            psnr(small, case.beside[name], case.scale)
            for small, _ in pairs
            if small is not None and small is not case.beside[name]
        ]
        for name, pairs in outcome.items()
    ]
    return np.array(rows)


def _timed(name: str) -> bool:
    return name[0].isdigit() and " x " in name


def _rescales(name: str) -> bool:
    return name.split(",")[0] in ("2x", "4x")


def _mean(of: Callable[[Case, Outcome], np.ndarray], hiding: bool) -> Callable[[Any, Any], float | None]:
    """Mean over photographs and seeds."""

    def value(case: Case, outcome: Any) -> float | None:
        if not isinstance(outcome, dict) or hiding != (case.scale == 1):
            return None
        values = of(case, outcome)
        return float(values.mean()) if values.size else None

    return value


def _bytes(case: Case, outcome: Any) -> float | None:
    if not isinstance(outcome, dict) or case.scale == 1:
        return None
    kept = [8 * png_bytes(pairs[0][0]) / case.pictures[n][0, 0].numel() for n, pairs in outcome.items()
            if pairs[0][0] is not None]  # fmt: skip
    return fmean(kept) if kept else None


def _gain(case: str, name: str, other: str) -> Callable[[Results], Interval]:
    """Mean difference of PSNR, seeds averaged first, with a bootstrap interval of 95 % over the photographs."""

    def value(r: Results) -> Interval:
        c = r.cases[case]
        ours, theirs = (_restored(c, r.outcomes[case, who]).mean(1) for who in (name, other))
        draws = np.random.default_rng(0).choice(ours - theirs, (2000, len(ours))).mean(1)
        return Interval(float((ours - theirs).mean()), *map(float, np.quantile(draws, (0.025, 0.975))))

    return value


def _likeness(case: str) -> Callable[[Results], float]:
    return lambda r: r.value(case, OURS, "PSNR, small against bicubic")


def _wrong_orders(r: Results) -> float:
    """Comparisons with bicubic and learned enlargement in which ours is not ahead, shipped or trained again."""
    pairs = [(c, other) for c in r.cases if _rescales(c) for other in (BICUBIC, LEARNED)]
    return float(sum(r.value(c, OURS, "PSNR") <= r.value(c, other, "PSNR") for c, other in pairs))


def plot(r: Results) -> list[Figure]:
    """What comes back, by photograph and scale; what is kept; hiding; time."""
    figures = []
    everyone = (OURS, SINGLE, LEARNED, BICUBIC, LANCZOS, JPEG)
    for case in ("2x", "4x"):
        c = r.cases[case]
        heights = {who: _restored(c, r.outcomes[case, who]).mean(1) for who in everyone}
        figures.append(
            bars({who: dict(zip(c.pictures, map(float, h))) for who, h in heights.items()}, y="PSNR in dB",
                 caption=f"{case}: what comes back, by photograph; higher is better. JPEG keeps the large picture "
                 "in the bytes that our small one needs.")
        )  # fmt: skip
    case, name = r.cases["2x"], "cat"
    ours, single = (_restored(case, r.outcomes["2x", who]) for who in (OURS, SINGLE))
    gains = {f"seed {i}": dict(zip(case.pictures, map(float, gain))) for i, gain in enumerate((ours - single).T)}
    figures.append(bars(gains, y="gain of the second latent in dB", caption="2x: above 0 the second latent helps. "
                        "It differs between seeds as much as between photographs."))  # fmt: skip
    x = case.pictures[name]
    top, left = ((n - 96) // 4 * 2 for n in x.shape[-2:])
    crop = (slice(None), slice(top, top + 96), slice(left, left + 96))
    half = (slice(None), slice(top // 2, top // 2 + 48), slice(left // 2, left // 2 + 48))
    small = r.outcomes["2x", OURS][name][0][0]
    shown = {"original": x[0][crop], "ours, small": small[0][half], "bicubic, small": case.beside[name][0][half]}
    for who in (OURS, BICUBIC):
        up = r.outcomes["2x", who][name][0][1]
        shown[f"{who}: {psnr(up, x, 2):.1f} dB"] = up[0][crop]
        shown[f"{who}, error x 10"] = (10 * (up - x)[0][crop].abs()).clamp(0, 1)
    figures.append(pictures(shown, limits=(0, 1), caption="The middle of 'cat', 2x: the small pictures look alike, and "
                            "one of them carries what restores the large one."))  # fmt: skip
    c, name = r.cases[HIDING], "cat"
    hidden = {"cover": c.beside[name][0], "secret": c.pictures[name][0]}
    for who in (OURS, LSB):
        carrier, secret = r.outcomes[HIDING, who][name][0]
        hidden[f"{who}, carrier: {psnr(carrier, c.beside[name], 1):.1f} dB"] = carrier[0]
        hidden[f"{who}, secret: {psnr(secret, c.pictures[name], 1):.1f} dB"] = secret[0]
    figures.append(pictures(hidden, limits=(0, 1), caption="A photograph hidden in another one of its size."))
    sizes = [c for c in r.cases if _timed(c)]
    pixels = [float(c.split(" x ")[0]) ** 2 for c in sizes]
    series = {who: (pixels, r.series(who, "seconds", sizes)) for who in (UP, DOWN)}
    figures.append(lines(series, x="pixels of the large picture", y="seconds", log="xy",
                         caption="2x on one thread: time grows with the number of pixels, alike in both "
                         "directions."))  # fmt: skip
    return figures


def _contenders() -> list[Contender]:
    first = ("2x", "4x").__contains__
    return [
        Contender(OURS, rescale(OURS), cases=_rescales, once=True),
        Contender(SINGLE, rescale(SINGLE), "baseline", cases=_rescales, once=True),
        Contender(LEARNED, enlarge_learned, "peer", cases=_rescales, once=True),
        Contender(BICUBIC, enlarge_bicubic, "baseline", cases=_rescales, once=True),
        Contender(LANCZOS, enlarge_lanczos, "peer", cases=first, once=True),
        Contender(JPEG, jpeg, "peer", cases=first, once=True),
        Contender(OURS, hide(OURS), cases=HIDING.__eq__, once=True),
        Contender(SINGLE, hide(SINGLE), "baseline", cases=HIDING.__eq__, once=True),
        Contender(LSB, hide_in_bits, "baseline", cases=HIDING.__eq__, once=True),
        Contender(UP, torch.no_grad()(lambda case: case.networks[OURS][0].upscale(case.beside["x"])), cases=_timed),
        Contender(
            DOWN, torch.no_grad()(lambda case: case.networks[OURS][0].downscale(case.pictures["x"])), cases=_timed
        ),
    ]


_BETTER = "PSNR(x^) on held-out >= bicubic down/up + 3 dB with 8-bit LR"
_LIKE = "PSNR(LR, bicubic LR) >= 35 dB"
_DUAL = "d = 2 vs d = 0, same steps, 3 seeds: mean gain >= +0.1 dB on CPU scale"
_COST = "upscale of 512x512 < 3 s on 2 cores, forward/inverse cost ratio 0.8..1.25"

claim = Claim(
    key="dual_latent_rescaling",
    statement="Photographs that an invertible network made 2 times smaller, into pictures of 8 bits that look like "
    "the bicubic ones, come back with five decibels more than by bicubic interpolation and three to four "
    "more than by a network of equal size and training time that enlarges the bicubic ones; at 4x with "
    "three and two more, after one to ten minutes of training. What the second latent adds at 2x is a quarter "
    "of a decibel on average over three seeds, half a decibel for one and nothing for another. It loses "
    "up to half a decibel at 4x (one seed), and in hiding it spoils the carrier "
    "by two, so that the four lowest bits are better. And where bytes are counted rather than pixels, "
    "JPEG is better than all of them, by far.",
    paper_figure="PSNR on luma over DIV2K: 35.55 dB at 4x against 35.07 dB of IRN, about 45.6 against 44.32 dB at 2x, "
    "after 500,000 steps (arXiv 2207.11844; not checked against its tables).",
    sizes={
        "quick": {"side": 128, "sizes": [256, 512], "again": False},
        "full": {"side": None, "sizes": [256, 512, 1024], "again": True},
    },
    problem=problem,
    contenders=_contenders(),
    measures=[
        Measure("PSNR", "dB", _mean(_restored, False)),
        Measure("PSNR, small against bicubic", "dB", _mean(_small, False)),
        Measure("bits as PNG", "per pixel of the large picture", _bytes),
        Measure("PSNR, secret", "dB", _mean(_restored, True)),
        Measure("PSNR, carrier against cover", "dB", _mean(_small, True)),
    ],
    bars=[
        Bar("2x: PSNR of what comes back above bicubic's, in dB (interval: bootstrap over photographs)",
            "card, claim 1", _BETTER, ">=", 3.0, _gain("2x", OURS, BICUBIC), headline=True),
        Bar("4x: PSNR of what comes back above bicubic's, in dB", "card, claim 1", _BETTER, ">=", 3.0,
            _gain("4x", OURS, BICUBIC),
            why="The bound was set for 2x. At 4x the gain still rises with training: 800 steps gave 2.0 dB, 2000 gave "
            "2.95, the shipped 4000 give what is measured here."),
        Bar("2x: PSNR of the small picture against the bicubic one, in dB", "card, claim 2", _LIKE, ">=", 35.0,
            _likeness("2x")),
        Bar("4x: PSNR of the small picture against the bicubic one, in dB", "card, claim 2", _LIKE, ">=", 35.0,
            _likeness("4x")),
        Bar("2x: PSNR with the second latent above that without, in dB, mean over three seeds", "card, claim 3", _DUAL,
            ">=", 0.1, _gain("2x", OURS, SINGLE), headline=True),
        Bar("512 x 512: seconds to make it large again, on one core", "card, claim 4", _COST, "<", 3.0,
            lambda r: r.interval("512 x 512", UP, "seconds"), seconds=True),
        Bar("512 x 512: time down over time up, at least", "card, claim 4", _COST, ">=", 0.8,
            lambda r: r.ratio("512 x 512", DOWN, UP), seconds=True),
        Bar("512 x 512: time down over time up, at most", "card, claim 4", _COST, "<=", 1.25,
            lambda r: r.ratio("512 x 512", DOWN, UP), seconds=True),
        Bar("Comparisons with bicubic and learned enlargement in which ours is not ahead, with networks trained again "
            "too at size full", "design, trained methods",
            "full trains again on a smaller budget and must give the same order", "==", 0.0, _wrong_orders,
            why="At 4x a sixteenth of the training is too little to be ahead of learned enlargement; the shipped "
            "networks are, by two decibels."),
    ],
    plot=plot,
    requires=("skimage", "PIL"),
    rounds={"quick": 3, "full": 5},
    threads=1,
    checkpoints=list(NETWORKS),
)  # fmt: skip
