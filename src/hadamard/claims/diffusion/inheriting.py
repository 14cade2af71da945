"""What is run in the claim on A-SDM: samplers that inherit, networks that are lighter."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hadamard.claims.diffusion import clothes, light_clothes, stable
from hadamard.claims.diffusion.light_clothes import EXPERTS, STUDENT
from hadamard.diffusion import CondConv2d, FeatureInheritance, Rule, SwitchUNet, dense_ends

__all__ = ["Light", "Samples", "Stable", "Wide", "schedule"]

OURS, PLAIN, FEWER = "hadamard", "every step", "fewer plain steps"
DEEP, ENCODER, SWITCH = "deep caching (as DeepCache)", "encoder propagation", "lighter UNet for early steps"
BOUNDARIES = (1000, 500, 0)  # timesteps; from 1000 to 0 more and more steps go to the lighter UNet
_ATTENTION, _RESNETS = "*.attentions.*", "*.resnets.*"


def _rules(long: bool) -> dict[str, str | Rule | list[Rule]]:
    """Settings of our own, by name; more of them where there is time."""
    found: dict[str, str | Rule | list[Rule]] = {
        "a_sdm": "a_sdm",
        "units, 2": Rule(f"{_RESNETS}|{_ATTENTION}", "unit", 2),
        "attention, 2": Rule(_ATTENTION, "unit", 2),
        "attention, 2, sums": Rule(_ATTENTION, "unit", 2, "output"),
        "units, 2, sums": Rule(f"{_RESNETS}|{_ATTENTION}", "unit", 2, "output"),
    }
    if long:
        found |= {
            "units, 3": Rule(f"{_RESNETS}|{_ATTENTION}", "unit", 3),
            "middle layers, 2": Rule("up_blocks.1.layers.*", "layer", 2),
            "middle layers, 2, sums": Rule("up_blocks.1.layers.*", "layer", 2, "output"),
            "a block and units": [
                Rule("down_blocks.[12]|mid_block|up_blocks.[01]", key_steps=dense_ends(3)),
                Rule("down_blocks.0.resnets.*|up_blocks.2.resnets.*", "unit", dense_ends(2)),
            ],
        }
    return found


@dataclass(frozen=True)
class Samples:
    """The trained network and the noise that every sampler starts from."""

    net: Any
    noise: Tensor
    labels: Tensor
    steps: int
    counts: tuple[int, ...]
    long: bool

    def __call__(self, kind: str) -> dict[str, tuple[Tensor, float]]:
        """Samples and the share of the full sampler's operations, by setting."""
        if kind == PLAIN:
            return {"all": (self._sample(self.steps), 1.0)}
        if kind == FEWER:
            return {f"{n} steps": (self._sample(n), n / self.steps) for n in self.counts}
        if kind == SWITCH:
            return self._switched()
        if kind == OURS:
            return {name: self._inherited(rules, None) for name, rules in _rules(self.long).items()}
        preset = "deepcache" if kind == DEEP else "encoder"
        return {f"every {m}": self._inherited(preset, m) for m in ((2, 3, 5) if self.long or kind == DEEP else (2,))}

    def _inherited(self, rules: Any, key_steps: int | None) -> tuple[Tensor, float]:
        path = schedule()
        fast = FeatureInheritance(SimpleNamespace(unet=self.net, scheduler=path), rules, key_steps=key_steps)
        cost = fast.share(self.steps, self.noise[:1], torch.tensor(0), self.labels[:1])
        with fast:
            return clothes.sample(self.net, self.noise, self.labels, self.steps, path), cost

    def _switched(self) -> dict[str, tuple[Tensor, float]]:
        """With the operations of one call of each network, and its calls counted."""
        nets = [light_clothes.trained(STUDENT), self.net]
        cost = [_operations(net, self.noise[:1], torch.tensor(0), self.labels[:1]) for net in nets]
        found = {}
        for boundary in BOUNDARIES:
            calls = [0, 0]
            hooks = [net.register_forward_hook(lambda *_, i=i, n=calls: n.__setitem__(i, n[i] + 1))
                     for i, net in enumerate(nets)]  # fmt: skip
            x = clothes.sample(SwitchUNet(nets, [boundary]), self.noise, self.labels, self.steps)
            for hook in hooks:
                hook.remove()
            found[f"{boundary}"] = x, sum(n * c for n, c in zip(calls, cost)) / (self.steps * cost[1])
        return found

    def _sample(self, steps: int) -> Tensor:
        return clothes.sample(self.net, self.noise, self.labels, steps)


@dataclass(frozen=True)
class Stable:
    """Stable Diffusion's network, or one of its blocks: the share of the operations, or some steps of it."""

    net: Any
    latent: Tensor
    text: Tensor
    steps: int = 50

    def __call__(self, kind: str) -> Any:
        """The share; or the last latent."""
        if self.net.device.type == "meta":
            return self.share()
        pipe = self._pipe()
        with FeatureInheritance(pipe, "a_sdm", key_steps=1 if kind == PLAIN else None):
            return stable.denoised(self.net, self.latent, self.text, pipe.scheduler, self.steps)

    def share(self) -> float:
        """Of the operations, by the preset."""
        return FeatureInheritance(self._pipe(), "a_sdm").share(self.steps, self.latent, torch.tensor(0), self.text)

    def _pipe(self) -> Any:
        return SimpleNamespace(unet=self.net, scheduler=schedule())


@dataclass(frozen=True)
class Light:
    """Lighter networks: their error on pictures that none of them has seen, or some calls of one sample."""

    nets: Mapping[str, Any]
    count: int

    def __call__(self, kind: str) -> float:
        """Mean squared error of the noise, or of nothing: calls."""
        net = self.nets[kind]
        if self.count:
            return light_clothes.held_out_error(net, self.count)
        x, t, y = torch.zeros(1, 1, clothes.SIZE, clothes.SIZE), torch.tensor(500), torch.tensor([3])
        with torch.no_grad():
            return float(torch.stack([net(x, t, y).sample.mean() for _ in range(20)]).mean())


class Wide:
    """A convolution of 320 channels, or four of them as experts."""

    def __init__(self, x: Tensor) -> None:
        convs = [torch.nn.Conv2d(320, 320, 3, padding=1) for _ in range(4)]
        self.x, self.convs = x, {STUDENT: convs[0], EXPERTS: CondConv2d.of(convs)}

    def __call__(self, kind: str) -> Tensor:
        """Convolve."""
        with torch.no_grad():
            return self.convs[kind](self.x)


def _operations(net: Any, *inputs: Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*inputs)
    return float(counter.get_total_flops())


def schedule() -> Any:
    """Deterministic DDIM on timesteps that end at the noise the network was trained with."""
    return clothes.scheduler(timestep_spacing="trailing")
