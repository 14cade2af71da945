"""A pipeline's UNet whose modules inherit features: which steps are key steps, when it is on, when it is off."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hadamard.diffusion._inheritance import Patches
from hadamard.validation import check_option, check_range

__all__ = ["Accelerated", "Clock", "KeySteps", "name_of", "timestep_of"]

Self = TypeVar("Self", bound="Accelerated")
Keys = str | int | Sequence[int] | Callable[[int, int], bool]

KEY_STEPS = {
    "50ls": (0, 1, 2, 3, 5, 10, 15, 25, 35),
    "50if": (0, 1, 2, 3, 5, 10, 15, 25, 35, 40),
}
"""Key steps of 50 that the authors of encoder propagation use: for Stable Diffusion, and for DeepFloyd IF."""


class KeySteps:
    """Which steps of a generation, counted from 0 at the noisiest, are key steps.

    Given are a name of ``KEY_STEPS`` (positions out of 50, scaled to the number of steps), a whole number m (every
    m-th), the steps themselves, or a function of the step and the number of steps. Step 0 is always a key step.
    """

    def __init__(self, given: Keys) -> None:
        self.given: Any = given
        if isinstance(given, str):
            check_option(given, "key_steps", KEY_STEPS)
        elif isinstance(given, int):
            check_range(given, "key_steps", 1, integer=True)
        elif not callable(given):
            self.given = frozenset(check_range(k, "key_steps", 0, integer=True) for k in given)
            if 0 not in self.given:
                raise ValueError(f"key_steps must hold step 0, got {sorted(self.given) or 'none'}")

    @property
    def need_steps(self) -> bool:
        """Whether they depend on the number of steps."""
        return isinstance(self.given, str) or callable(self.given)

    def __call__(self, step: int, steps: int) -> bool:
        """Say whether a step of so many (0: not known) is one."""
        if isinstance(self.given, int):
            return step % self.given == 0
        if isinstance(self.given, str):
            return step in {round(k * steps / 50) for k in KEY_STEPS[self.given]}
        if callable(self.given):
            return step == 0 or bool(self.given(step, steps))
        if steps and max(self.given) >= steps:
            raise ValueError(f"key_steps must be below the number of steps, {steps}, got {max(self.given)}")
        return step in self.given


class Clock:
    """Counts the calls of a network within one generation; a timestep that does not fall begins the next one."""

    def __init__(self) -> None:
        self.call, self.timestep = -1, float("-inf")

    def peek(self, timestep: Tensor | float) -> int:
        """Say which number the call at this timestep will have."""
        return 0 if self.call < 0 or timestep_of(timestep) >= self.timestep else self.call + 1

    def tick(self, timestep: Tensor | float) -> int:
        """Count a call and return its number."""
        self.call, self.timestep = self.peek(timestep), timestep_of(timestep)
        return self.call


class Accelerated:
    """A pipeline's UNet whose forward pass is exchanged, from ``enable`` to ``disable``, and whose calls are counted.

    A subclass says in ``_exchange`` what becomes of the modules, and in ``_wrapped`` of the UNet's call.
    """

    def __init__(self, model: Any) -> None:
        self.unet = getattr(model, "unet", model)
        self.scheduler: Any = getattr(model, "scheduler", None)
        parts = ("conv_in", "down_blocks", "mid_block", "up_blocks")
        if not isinstance(self.unet, nn.Module) or not all(hasattr(self.unet, part) for part in parts):
            raise TypeError(f"model must be, or have as unet, a UNet with {', '.join(parts)}, got {name_of(self.unet)}")
        self.calls = 0
        self._clock, self._patches = Clock(), Patches()
        self._times = torch.empty(0)
        self._shape: tuple[Any, ...] = ()

    def enable(self: Self) -> Self:
        """Exchange the forward passes; the pipeline is used as before. A second call does nothing."""
        if self.enabled:
            return self
        if getattr(self.scheduler, "order", 1) > 1:
            raise ValueError(
                f"the scheduler must call the network once a step, got {name_of(self.scheduler)} of order "
                f"{self.scheduler.order}"
            )
        self._clock, self.calls = Clock(), 0
        self._exchange()
        self._patches.patch(self.unet, self._wrapped(self.unet.forward))
        return self

    def disable(self) -> None:
        """Put the model back as it was."""
        self._patches.restore()

    @property
    def enabled(self) -> bool:
        """Whether the model's forward passes are exchanged."""
        return self._patches.active

    def __enter__(self: Self) -> Self:
        return self.enable()

    def __exit__(self, *_: object) -> None:
        self.disable()

    def _exchange(self) -> None:
        raise TypeError(f"{name_of(self)} exchanges nothing")

    def _wrapped(self, run: Callable[..., Any]) -> Callable[..., Any]:
        return run

    def _began(self, sample: Tensor, timestep: Tensor | float) -> tuple[int, bool]:
        """Count a call; give its step, and whether nothing may be inherited at it."""
        step = self._clock.tick(timestep)
        if step == 0:
            self._times = self._times_from(timestep)
        if self.unet.training and torch.is_grad_enabled():
            raise RuntimeError(
                "a network that inherits features cannot be trained: use eval() or no_grad(), or disable"
            )
        shape = (sample.shape, sample.dtype, sample.device, torch.is_autocast_enabled(sample.device.type))
        changed, self._shape, self.calls = step == 0 or shape != self._shape, shape, self.calls + 1
        return step, changed

    def _times_from(self, timestep: Tensor | float) -> Tensor:
        """The timesteps of this generation, which begins in their middle where a picture is given."""
        if self.scheduler is None:
            return torch.empty(0)
        times = self.scheduler.timesteps
        first = (times == timestep_of(timestep)).nonzero()
        return times[int(first[0]) :] if len(first) else times[:0]


def timestep_of(timestep: Tensor | float) -> float:
    """Read the timestep, the first one where each row has its own."""
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)


def name_of(thing: Any) -> str:
    """The name of its class."""
    return type(thing).__name__
