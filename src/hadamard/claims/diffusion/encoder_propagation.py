"""Encoder propagation: operations saved, and distance to the full sampler beside fewer steps and deep caching."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.diffusion import clothes
from hadamard.claims.plots import lines, pictures
from hadamard.diffusion import EncoderPropagation
from hadamard.diffusion._inheritance import Clock, Inheritance

clothes.torchvision_shim.install()
from diffusers import DDIMScheduler, UNet2DConditionModel  # noqa: E402

__all__ = ["claim", "train"]

OURS, PLAIN, FEWER, DEEP = "hadamard", "every step", "fewer plain steps", "deep caching (as DeepCache)"
SAMPLES, TRUE, SMALL, CHANGE = "samples", "Stable Diffusion 1.5", "its blocks, narrower", "change of features"
_STEPS = 50
_KEYS: tuple[str | int, ...] = (2, 3, 4, 5, "50ls")
_INTERVALS, _COUNTS = (2, 3, 5), (40, 34, 25, 17, 10)
_BLOCKS = ("CrossAttn",) * 3 + ("",)


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
        full, encoder, deep = _shares(self.net, self.noise[:1], torch.tensor(0), self.labels[:1])
        if kind == DEEP:
            return {f"every {m}": (self._deep(m), _cost(_ceil(m), 1 - deep / full)) for m in _INTERVALS}
        found = {}
        for keys in _KEYS:
            schedule = clothes.scheduler(timestep_spacing="trailing")
            with EncoderPropagation(SimpleNamespace(unet=self.net, scheduler=schedule), keys) as fast:
                x = clothes.sample(self.net, self.noise, self.labels, _STEPS, schedule)
            found[keys if isinstance(keys, str) else f"every {keys}"] = x, _cost(fast.key_calls, 1 - encoder / full)
        return found

    def _sample(self, steps: int) -> Tensor:
        return clothes.sample(self.net, self.noise, self.labels, steps)

    def _deep(self, interval: int) -> Tensor:
        """Sample with all but the outermost blocks stored between every so many steps."""
        inner, clock, run = Inheritance(), Clock(), self.net.forward

        def forward(x: Tensor, t: Tensor, *args: Any) -> Any:
            inner.fresh = clock.tick(t) % interval == 0
            return run(x, t, *args)

        inner.inherit([*self.net.down_blocks[1:], self.net.mid_block, *self.net.up_blocks[:-1]])
        inner.patch(self.net, forward)
        try:
            return self._sample(_STEPS)
        finally:
            inner.restore()


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
        self.samples(PLAIN)
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
    count: bool

    def __call__(self, kind: str) -> Any:
        """Operations in all and of encoder and middle; or the last latent."""
        if self.count:
            full, encoder, _ = _shares(self.net, self.latent, torch.tensor(0), self.text)
            return {"operations": full / 1e9, "encoder": encoder / full}
        schedule = DDIMScheduler(timestep_spacing="trailing")
        schedule.set_timesteps(_STEPS)
        fast = EncoderPropagation(SimpleNamespace(unet=self.net, scheduler=schedule), 1 if kind == PLAIN else "50ls")
        x = self.latent
        with torch.no_grad(), fast:
            for t in schedule.timesteps:
                x = schedule.step(self.net(x, t, self.text).sample, t, x).prev_sample
        return x


def _stable(width: int, latent: int, device: str) -> _Stable:
    with torch.device(device), torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = UNet2DConditionModel(
            sample_size=latent,
            cross_attention_dim=768,
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            down_block_types=[f"{kind}DownBlock2D" for kind in _BLOCKS],
            up_block_types=[f"{kind}UpBlock2D" for kind in reversed(_BLOCKS)],
            norm_num_groups=32,
        )
        return _Stable(
            net.eval(), torch.randn(1, 4, latent, latent), torch.randn(1, 77, 768), device == "meta"
        )  # fmt: skip


@torch.no_grad()
def _shares(net: Any, *inputs: Tensor) -> tuple[float, float, float]:
    """Multiplications and additions of one call: all, those of encoder and middle, those that deep caching stores."""

    def counted(modules: list[nn.Module]) -> float:
        stored = Inheritance()
        stored.inherit(modules)
        try:
            net(*inputs)
            stored.fresh = False
            with FlopCounterMode(display=False) as counter:
                net(*inputs)
        finally:
            stored.restore()
        return counter.get_total_flops() / 2

    with FlopCounterMode(display=False) as counter:
        net(*inputs)
    full = counter.get_total_flops() / 2
    encoder = full - counted([net.conv_in, *net.down_blocks, net.mid_block])
    return full, encoder, full - counted([*net.down_blocks[1:], net.mid_block, *net.up_blocks[:-1]])


def _ceil(interval: int) -> int:
    return -(-_STEPS // interval)


def _cost(keys: int, rest: float) -> float:
    """Share of the operations where so many calls of 50 are whole and the others take ``rest`` of one."""
    return (keys + (_STEPS - keys) * rest) / _STEPS


def _problem(seed: int, count: int, width: int, latent: int) -> Mapping[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 1, clothes.SIZE, clothes.SIZE, generator=generator)
    samples = _Samples(clothes.trained(), noise, torch.arange(count) % clothes.NO_CLASS)
    return {
        SAMPLES: samples,
        CHANGE: _Change(samples),
        TRUE: _stable(320, 64, "meta"),
        SMALL: _stable(width, latent, "cpu"),
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


def _saved(r: Results) -> float:
    return _cost(9, 1 - r.outcomes[TRUE, OURS]["encoder"])


def _agree(case: Any, outcomes: Mapping[str, Any]) -> str:
    if not isinstance(case, _Samples) or PLAIN not in outcomes:
        return ""
    schedule = clothes.scheduler(timestep_spacing="trailing")
    with EncoderPropagation(SimpleNamespace(unet=case.net, scheduler=schedule), 1):
        same = clothes.sample(case.net, case.noise, case.labels, _STEPS, schedule)
    return "" if torch.equal(same, outcomes[PLAIN]["50"][0]) else "with every step a key step the samples differ"


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
    sizes={"quick": {"count": 4, "width": 32, "latent": 8}, "full": {"count": 100, "width": 64, "latent": 32}},
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
        Measure("operations", "GMAC", lambda case, out: out["operations"] if isinstance(case, _Stable) and case.count
                else None),
        Measure("mean change, encoder", "", lambda case, out: sum(out["encoder"]) / len(out["encoder"])
                if isinstance(case, _Change) else None),
        Measure("mean change, decoder", "", lambda case, out: sum(out["decoder"]) / len(out["decoder"])
                if isinstance(case, _Change) else None),
    ],
    bars=[
        Bar("Stable Diffusion 1.5, nine key steps of 50: share of the operations", "card, claim 1", _C1, "<=", 0.74,
            _saved, headline=True),
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
