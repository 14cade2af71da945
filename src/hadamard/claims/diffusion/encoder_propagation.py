"""Encoder propagation: operations saved, and distance to the full sampler beside fewer steps and deep caching."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.diffusion import clothes, stable
from hadamard.claims.plots import lines, pictures
from hadamard.diffusion import EncoderPropagation, FeatureInheritance

__all__ = ["claim", "train"]

OURS, PLAIN, FEWER, DEEP = "hadamard", "every step", "fewer plain steps", "deep caching (as DeepCache)"
SAMPLES, TRUE, SMALL, CHANGE = "samples", "Stable Diffusion 1.5", "its blocks, narrower", "change of features"
_STEPS = 50
_KEYS: tuple[str | int, ...] = (2, 3, 4, 5, "50ls")
_INTERVALS, _COUNTS = (2, 3, 5), (40, 25, 10)


def train(size: str = "full", out: str | Path | None = None, resume: bool = True) -> list[Path]:
    """Train the model that the claims of this family share."""
    return clothes.train_network("encoder_propagation", size, out, resume)


@dataclass(frozen=True)
class _Samples:
    """The trained model and the noise that every sampler starts from."""

    net: Any
    noise: Tensor
    labels: Tensor

    def __call__(self, kind: str) -> dict[str, Any]:
        """Samples and the share of the full sampler's operations, by setting."""
        if kind == PLAIN:
            return {"50": (self._sample(_STEPS), 1.0)}
        if kind == FEWER:
            return {f"{n} steps": (self._sample(n), n / _STEPS) for n in _COUNTS}
        if kind == DEEP:
            return {f"every {m}": self._inherited("deep", m) for m in _INTERVALS}
        return {keys if isinstance(keys, str) else f"every {keys}": self._inherited("encoder", keys) for keys in _KEYS}

    def _sample(self, steps: int) -> Tensor:
        return clothes.sample(self.net, self.noise, self.labels, steps)

    def _inherited(self, preset: str, keys: str | int) -> tuple[Tensor, float]:
        schedule = clothes.scheduler(timestep_spacing="trailing")
        pipe = SimpleNamespace(unet=self.net, scheduler=schedule)
        counted = FeatureInheritance(pipe, preset, key_steps=keys)
        cost = counted.share(_STEPS, self.noise[:1], torch.tensor(0), self.labels[:1])
        with counted if preset == "deep" else EncoderPropagation(pipe, keys):
            return clothes.sample(self.net, self.noise, self.labels, _STEPS, schedule), cost


@dataclass(frozen=True)
class _Change:
    """How much the output of each block changes from step to step, relative to its norm."""

    samples: _Samples

    def __call__(self, kind: str) -> dict[str, list[float]]:
        """Means over the blocks of the encoder and of the decoder, by step."""
        net = self.samples.net
        halves = {"encoder": net.down_blocks, "decoder": net.up_blocks}
        seen: dict[str, list[list[Tensor]]] = {half: [[] for _ in blocks] for half, blocks in halves.items()}
        hooks = [
            block.register_forward_hook(
                lambda _, __, out, store=store: store.append(out[0] if isinstance(out, tuple) else out)
            )
            for half, blocks in halves.items()
            for block, store in zip(blocks, seen[half])
        ]
        case = self.samples
        clothes.sample(net, case.noise[:1], case.labels[:1], _STEPS)
        for hook in hooks:
            hook.remove()
        change = lambda a, b: float((b - a).norm() / a.norm())  # noqa: E731
        return {
            half: torch.tensor([[change(a, b) for a, b in pairwise(s)] for s in stores]).mean(0).tolist()
            for half, stores in seen.items()
        }


@dataclass(frozen=True)
class _Stable:
    """A network of Stable Diffusion's blocks: its operations, or fifty steps of it."""

    net: Any
    latent: Tensor
    text: Tensor

    def __call__(self, kind: str) -> Any:
        """The share of the operations; or the last latent."""
        schedule = clothes.scheduler(timestep_spacing="trailing")
        pipe = SimpleNamespace(unet=self.net, scheduler=schedule)
        if self.net.device.type == "meta":
            fast = FeatureInheritance(pipe, "encoder", key_steps="50ls")
            return fast.share(_STEPS, self.latent, torch.tensor(0), self.text)
        with EncoderPropagation(pipe, 1 if kind == PLAIN else "50ls"):
            return stable.denoised(self.net, self.latent, self.text, schedule, _STEPS)


def _problem(seed: int, count: int, width: int, latent: int) -> Mapping[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 1, clothes.SIZE, clothes.SIZE, generator=generator)
    samples = _Samples(clothes.trained(), noise, torch.arange(count) % clothes.NO_CLASS)
    return {
        SAMPLES: samples,
        CHANGE: _Change(samples),
        TRUE: _Stable(*stable.network(device="meta")),
        SMALL: _Stable(*stable.network(width, latent)),
    }


def _distances(r: Results, kind: str) -> dict[str, tuple[float, float]]:
    """Share of the operations and root mean square distance to the full sampler, by setting."""
    full = r.outcomes[SAMPLES, PLAIN]["50"][0]
    found = r.outcomes[SAMPLES, kind].items()
    return {name: (cost, float((x - full).square().mean().sqrt())) for name, (x, cost) in found}


def _over_half_the_steps(r: Results) -> float:
    return _distances(r, OURS)["every 2"][1] / _distances(r, FEWER)["25 steps"][1]


def _rises(r: Results) -> float:
    """Pairs of neighbouring intervals of which the longer one is nearer to the full sampler."""
    found = [_distances(r, OURS)[f"every {m}"][1] for m in (2, 3, 4, 5)]
    return sum(b < a for a, b in pairwise(found))


def _agree(case: Any, outcomes: Mapping[str, Any]) -> str:
    if not isinstance(case, _Samples) or PLAIN not in outcomes:
        return ""
    with EncoderPropagation(case.net, 1):
        same = case._sample(10)
    return "" if torch.equal(same, case._sample(10)) else "with every step a key step the samples differ"


def _plot(r: Results) -> list[dict[str, Any]]:
    change = r.outcomes[CHANGE, PLAIN]
    points = {kind: sorted(_distances(r, kind).values()) for kind in (OURS, DEEP, FEWER)}
    curves = {kind: ([x for x, _ in found], [y for _, y in found]) for kind, found in points.items()}
    rows = {"all 50 steps": r.outcomes[SAMPLES, PLAIN]["50"][0]}
    rows |= {f"key steps: {name}": r.outcomes[SAMPLES, OURS][name][0] for name in ("every 2", "every 5", "50ls")}
    rows |= {name: r.outcomes[SAMPLES, FEWER][name][0] for name in ("25 steps", "10 steps")}
    return [
        lines(curves, x="share of the operations of 50 steps",
              y="distance to the samples of 50 steps", log="y",
              caption="The same noise, denoised by 50 steps and by what costs less. At equal cost fewer plain steps "
              "are nearest on this model, deep caching comes next, then encoder propagation."),
        pictures({name: torch.cat(list(x[:10, 0]), -1) for name, x in rows.items()}, limits=(-1, 1),
                 caption="The first samples of each: with nine early key steps of 50 the pictures are others, with "
                 "every second step they cannot be told apart."),
        lines({half: (range(1, len(values) + 1), values) for half, values in change.items()}, x="step",
              y="relative change of a block's output", log="y",
              caption="How much the blocks' outputs change from one step to the next, on average over the blocks."),
    ]  # fmt: skip


_C1 = "MACs(50ls)/MACs(full) <= 0.74; wall time on CPU with reduced width, sequential: ratio <= 0.85."
_C2 = "uniform-2 RMSE <= 0.6x that of DDIM-25; 50ls compared and reported; monotone in |K|."
_WHY = (
    "The model is trained well and its path is smooth: plain DDIM with half the steps is off by less than 0.02 of a "
    "range of 2, which nothing that ignores the current sample at half of the steps reaches. It is the same with 20, "
    "10 and 6 steps as the full sampler. After 100 steps of training, when the path is rough, the card measured half "
    "the distance of 25 steps."
)


def _contender(kind: str, role: Any, where: Callable[[str], bool], once: bool = True) -> Contender:
    return Contender(kind, lambda case: case(kind), role, where, once=once)


claim = Claim(
    key="encoder_propagation",
    statement="A UNet's encoder runs at 9 of 50 sampling steps and its decoder at all of them: Stable Diffusion 1.5 "
    "then takes 27 % fewer operations, and with every step a key step the samples are those of the plain sampler, bit "
    "for bit. On a small model that is trained well, fewer plain steps come nearer to the full sampler at equal cost: "
    "there the method does not pay.",
    paper_figure="Stable Diffusion, DDIM with 50 steps: 41 % less time at unchanged FID; DeepFloyd IF 24 % less "
    "(abstract), on a GPU, where steps decoded in parallel fill it.",
    sizes={"quick": {"count": 3, "width": 32, "latent": 8}, "full": {"count": 100, "width": 64, "latent": 32}},
    problem=_problem,
    contenders=[
        _contender(OURS, "method", lambda c: c in (SAMPLES, TRUE)),
        _contender(OURS, "method", lambda c: c == SMALL, once=False),
        _contender(PLAIN, "baseline", lambda c: c in (SAMPLES, CHANGE)),
        _contender(PLAIN, "baseline", lambda c: c == SMALL, once=False),
        _contender(FEWER, "baseline", lambda c: c == SAMPLES),
        _contender(DEEP, "peer", lambda c: c == SAMPLES),
    ],
    measures=[
        Measure("share of the operations", "", lambda case, out: out if isinstance(out, float) else None),
        Measure("mean change, encoder", "", lambda case, out: sum(out["encoder"]) / len(out["encoder"])
                if isinstance(case, _Change) else None),
        Measure("mean change, decoder", "", lambda case, out: sum(out["decoder"]) / len(out["decoder"])
                if isinstance(case, _Change) else None),
    ],
    bars=[
        Bar("Stable Diffusion 1.5, nine key steps of 50: share of the operations", "card, claim 1", _C1, "<=", 0.74,
            lambda r: r.outcomes[TRUE, OURS], headline=True),
        Bar("the same blocks, narrower, on the CPU: share of the time", "card, claim 1", _C1, "<=", 0.85,
            lambda r: r.ratio(SMALL, OURS, PLAIN), seconds=True),
        Bar("distance to the full sampler, every second step a key step, over that of 25 plain steps", "card, claim 2",
            _C2, "<=", 0.6, _over_half_the_steps, headline=True, why=_WHY),
        Bar("key steps further apart that come nearer", "card, claim 2", _C2, "==", 0, _rises),
    ],
    plot=_plot,
    agree=_agree,
    threads=1,
    rounds={"quick": 2, "full": 3},
    checkpoints=[clothes.NAME],
)  # fmt: skip
