"""A-SDM: quality against cost of what a denoiser inherits, and of what a lighter one learns."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from hadamard.claims import Bar, Claim, Contender, Interval, Measure, Results
from hadamard.claims.diffusion import clothes, light_clothes, stable
from hadamard.claims.diffusion.inheriting import (
    BOUNDARIES,
    DEEP,
    ENCODER,
    FEWER,
    OURS,
    PLAIN,
    SWITCH,
    Light,
    Samples,
    Stable,
    Wide,
    schedule,
)
from hadamard.claims.diffusion.light_clothes import EXPERTS, SCRATCH, STUDENT
from hadamard.claims.plots import bars, lines, pictures
from hadamard.diffusion import EncoderPropagation, FeatureInheritance
from hadamard.training import load_checkpoint

__all__ = ["claim", "train"]

TEACHER = "the whole network"
SAMPLES, TRUE, SMALL = "samples", "Stable Diffusion 1.5", "its blocks, narrower"
LIGHT, AGAIN, CALLS = "lighter networks", "lighter networks, trained again", "calls of one sample"
WIDE = "a convolution of Stable Diffusion"


def train(size: str = "full", out: str | Path | None = None, resume: bool = True) -> list[Path]:
    """Train the lighter networks: assembled and distilled, with experts, and from scratch."""
    return light_clothes.train_all(size, out, resume)


def _problem(seed: int, steps: int, counts: tuple[int, ...], count: int, pictures: int, width: int, latent: int,
             again: bool) -> Mapping[str, Any]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 1, clothes.SIZE, clothes.SIZE, generator=generator)
    nets = {kind: light_clothes.trained(kind) for kind in light_clothes.NAMES}
    cases: dict[str, Any] = {
        SAMPLES: Samples(clothes.trained(), noise, torch.arange(count) % clothes.NO_CLASS, steps, counts, again),
        TRUE: Stable(*stable.network(device="meta")),
        SMALL: Stable(*stable.network(width, latent), steps),
        LIGHT: Light(nets | {TEACHER: clothes.trained()}, pictures),
        CALLS: Light(nets, 0),
        WIDE: Wide(torch.randn(1, 320, 64, 64, generator=generator)),
    }
    if again:
        with TemporaryDirectory() as folder:
            light_clothes.train_all("quick", folder, False, seed=1, progress=False)
            fresh = {
                kind: load_checkpoint(
                    Path(folder) / f"{name}.safetensors", light_clothes.light(kind, clothes.network())
                )
                for kind, name in light_clothes.NAMES.items()
            }
        cases[AGAIN] = Light(fresh, pictures)
    return cases


def _distances(r: Results, kind: str) -> dict[str, tuple[float, float]]:
    """Share of the operations and root mean square distance to the full sampler, by setting."""
    full = r.outcomes[SAMPLES, PLAIN]["all"][0]
    return {
        name: (cost, float((x - full).square().mean().sqrt())) for name, (x, cost) in r.outcomes[SAMPLES, kind].items()
    }


def _over_plain(r: Results) -> float:
    """Distance over that of plain steps at equal cost, for the setting where this is least.

    Plain steps of a nested grid are off by nearly a multiple of 1 / cost - 1, along which it is interpolated; between
    two of them costs a sampler that takes long steps on a part of the way.
    """
    plain = np.array(sorted((1 / x - 1, y) for x, y in [(1.0, 0.0), *_distances(r, FEWER).values()])).T
    found = [d for kind in (OURS, DEEP, ENCODER) for d in _distances(r, kind).values()]
    return min(off / float(np.interp(1 / cost - 1, plain[0], plain[1])) for cost, off in found)


def _increments(r: Results, units: str) -> float:
    found = _distances(r, OURS)
    return found[units][1] / found[f"{units}, sums"][1]


def _saved(r: Results) -> float:
    return 100 * (1 - r.outcomes[TRUE, OURS])


def _latency(r: Results) -> Interval:
    """Per cent between the ratio of times and that of operations."""
    share = r.cases[SMALL].share()
    pairs = zip(r.samples[SMALL, OURS, "seconds"], r.samples[SMALL, PLAIN, "seconds"], strict=True)
    return Interval.of([100 * abs(a / b / share - 1) for a, b in pairs])


def _over_scratch(r: Results) -> float:
    cases = [case for case in (LIGHT, AGAIN) if case in r.cases]
    return max(r.outcomes[case, STUDENT] / r.outcomes[case, SCRATCH] for case in cases)


def _experts_slower(r: Results, case: str) -> Interval:
    ratio = r.ratio(case, EXPERTS, STUDENT)
    return Interval(*(100 * (v - 1) for v in (ratio.value, ratio.low, ratio.high)))


def _out_of_order(r: Results) -> float:
    off = [y for _, y in _distances(r, SWITCH).values()]
    return sum(b < a for a, b in pairwise(off))


def _not_affine(r: Results) -> float:
    """Largest distance of the counted operations from the line between no and all steps by the lighter UNet."""
    case = r.cases[SAMPLES]
    path = schedule()
    path.set_timesteps(case.steps)
    costs = [x for x, _ in _distances(r, SWITCH).values()]
    light = [int((path.timesteps >= b).sum()) / case.steps for b in BOUNDARIES]
    return max(abs(c - (costs[0] + s * (costs[-1] - costs[0]))) for s, c in zip(light, costs))


def _agree(case: Any, outcomes: Mapping[str, Any]) -> str:
    if not isinstance(case, Samples) or PLAIN not in outcomes:
        return ""
    steps = 5
    plain = clothes.sample(case.net, case.noise, case.labels, steps)
    for fast in (FeatureInheritance(case.net, "units", key_steps=1), FeatureInheritance(case.net, "deep", key_steps=1)):
        with fast:
            if not torch.equal(clothes.sample(case.net, case.noise, case.labels, steps), plain):
                return "with every step a key step the samples differ"
    found = []
    pair: list[Any] = [FeatureInheritance(case.net, "encoder", key_steps=2), EncoderPropagation(case.net, 2)]
    for fast in pair:
        with fast:
            found.append(clothes.sample(case.net, case.noise, case.labels, steps))
    return "" if torch.equal(*found) else "the preset and encoder propagation differ"


def _plot(r: Results) -> list[dict[str, Any]]:
    ours = _distances(r, OURS)
    groups = {
        "preset a_sdm": [ours["a_sdm"]],
        "units, increments": [ours[name] for name in ("units, 2", "units, 3") if name in ours],
        "units, sums": [ours["units, 2, sums"]],
    }
    groups |= {kind: list(_distances(r, kind).values()) for kind in (DEEP, ENCODER, SWITCH, FEWER)}
    curves = {}
    for name, found in groups.items():
        points = sorted((x, y) for x, y in found if y)
        curves[name] = [x for x, _ in points], [y for _, y in points]
    rows = {"all steps": r.outcomes[SAMPLES, PLAIN]["all"][0], "a_sdm": r.outcomes[SAMPLES, OURS]["a_sdm"][0]}
    rows |= {f"deep caching, {name}": r.outcomes[SAMPLES, DEEP][name][0] for name in ("every 2", "every 5")}
    rows |= {"the distilled student alone": r.outcomes[SAMPLES, SWITCH]["0"][0]}
    nets = [TEACHER, STUDENT, EXPERTS, SCRATCH]
    return [
        lines(curves, x="share of the operations", y="distance to the samples of all steps", log="y",
              caption="The same noise, denoised by all steps and by what costs less. Fewer plain steps are nearest at "
              "equal cost on this model; deep caching comes next."),
        pictures({name: torch.cat(list(x[:10, 0]), -1) for name, x in rows.items()}, limits=(-1, 1),
                 caption="The first samples of each."),
        bars({"mean squared error of the noise": {kind: r.outcomes[LIGHT, kind] for kind in nets}},
             y="on held-out pictures",
             caption="A network with a layer less in each block, after 1000 steps: with the whole network's weights "
             "and as its student, and from scratch."),
    ]  # fmt: skip


_C1 = (
    "a preset exists with time saving >= 28.6 % (the paper's +40 % speed = 1/1.4) and its measured CPU latency ratio "
    "within 10 % of its MAC ratio"
)
_C2 = 'best inheritance preset <= 0.7x RMSE of "fewer steps at the same MACs".'
_C3 = "increment RMSE <= 0.5x sum RMSE."
_C4 = (
    "student at 60 % MACs initialised by assembly + 1000 distillation steps has val eps-MSE <= 0.9x that of the same "
    "architecture from scratch with the same steps; ME-CondConv adds <= 5 % latency and does not worsen MSE."
)
_WHY_PLAIN = (
    "The model is trained well and its path is smooth: with half the plain steps it is off by a hundredth of its "
    "range. What inherits at half of the steps uses features of another sample there and comes no nearer, at any level."
)
_WHY_SUMS = (
    "Where all units keep sums, the last one's is what the network gives: then the noise of the step before is used "
    "again, which is to take half of the plain steps, and these are this model's best. Increments pay where what is "
    "around them runs, as the bar above shows."
)
_WHY_SLOW = (
    "Calls of this small network are short and mostly overhead, which the routing adds to. How much of it is left at "
    "Stable Diffusion's width the next bar measures."
)
_C5 = "quality monotone in s; cost affine in s."


def _contender(kind: str, role: Any, *cases: str, once: bool = True) -> Contender:
    return Contender(kind, lambda case: case(kind), role, lambda name: name in cases, once=once)


claim = Claim(
    key="a_sdm",
    statement="Without training: Stable Diffusion 1.5 takes a third fewer operations where all but its outermost "
    "layers run at two thirds of the steps; with every step a key step the samples are the plain ones, to the bit. "
    "With training: a lighter network that takes over weights and learns from the whole one is better than the same "
    "network from scratch. On a small model that is trained well, fewer plain steps come nearer to the full sampler "
    "than any inheritance at equal cost.",
    paper_figure="Stable Diffusion: 22.4 % faster generation by model assembly, 40.0 % faster by feature inheritance, "
    "near the original's quality (abstract).",
    sizes={
        "quick": {"steps": 24, "counts": (12, 8, 6, 4), "count": 3, "pictures": 100, "width": 32, "latent": 8,
                  "again": False},
        "full": {"steps": 50, "counts": (25, 10, 5), "count": 10, "pictures": 500, "width": 64, "latent": 32,
                 "again": True},
    },
    problem=_problem,
    contenders=[
        _contender(OURS, "method", SAMPLES, TRUE),
        Contender(OURS, lambda case: case(OURS), "method", lambda name: name == SMALL),
        _contender(PLAIN, "baseline", SAMPLES),
        Contender(PLAIN, lambda case: case(PLAIN), "baseline", lambda name: name == SMALL),
        _contender(FEWER, "baseline", SAMPLES),
        _contender(DEEP, "peer", SAMPLES),
        _contender(ENCODER, "peer", SAMPLES),
        _contender(SWITCH, "method", SAMPLES),
        _contender(STUDENT, "method", LIGHT, AGAIN),
        Contender(STUDENT, lambda case: case(STUDENT), "method", lambda name: name in (CALLS, WIDE)),
        _contender(EXPERTS, "method", LIGHT, AGAIN),
        Contender(EXPERTS, lambda case: case(EXPERTS), "method", lambda name: name in (CALLS, WIDE)),
        _contender(SCRATCH, "baseline", LIGHT, AGAIN),
        _contender(TEACHER, "baseline", LIGHT),
    ],
    measures=[
        Measure("error of the noise", "", lambda case, out: out if isinstance(case, Light) and case.count else None),
    ],
    bars=[
        Bar("Stable Diffusion 1.5, preset a_sdm, 50 steps: operations saved in %", "card, claim 1", _C1, ">=", 28.6,
            _saved, headline=True),
        Bar("the same blocks, narrower, on the CPU: % between the shares of time and operations", "card, claim 1", _C1,
            "<=", 10, _latency, seconds=True),
        Bar("distance to the full sampler over that of fewer plain steps at equal cost, least of all settings",
            "card, claim 2", _C2, "<=", 0.7, _over_plain, headline=True, why=_WHY_PLAIN),
        Bar("attention inherits at every second step: distance with increments over that with sums", "card, claim 3",
            _C3, "<=", 0.5, lambda r: _increments(r, "attention, 2")),
        Bar("all units inherit at every second step: the same", "card, claim 3", _C3, "<=", 0.5,
            lambda r: _increments(r, "units, 2"), why=_WHY_SUMS),
        Bar("student (a layer less in each block, the least a UNet2DModel allows) over the same from scratch: error of "
            "the noise (size full: trained again, too)",
            "card, claim 4", _C4, "<=", 0.9, _over_scratch),
        Bar("student with experts over without: error of the noise", "card, claim 4", _C4, "<=", 1,
            lambda r: r.outcomes[LIGHT, EXPERTS] / r.outcomes[LIGHT, STUDENT]),
        Bar("student with experts, one sample: % slower than without", "card, claim 4", _C4, "<=", 5,
            lambda r: _experts_slower(r, CALLS), seconds=True, why=_WHY_SLOW),
        Bar("a convolution of Stable Diffusion with four experts: % slower than without", "card, claim 4", _C4, "<=", 5,
            lambda r: _experts_slower(r, WIDE), seconds=True),
        Bar("more steps by the lighter UNet that come nearer", "card, claim 5", _C5, "==", 0, _out_of_order),
        Bar("its counted operations off a line in the number of those steps", "card, claim 5", _C5, "<=", 1e-12,
            _not_affine),
    ],
    plot=_plot,
    agree=_agree,
    threads=1,
    rounds={"quick": 2, "full": 3},
    checkpoints=[clothes.NAME, *light_clothes.NAMES.values()],
)  # fmt: skip
