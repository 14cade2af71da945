"""The ascent to a semi-discrete transport map: averaged Adam on the heights, on fresh samples at each step."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hadamard.transport.power_diagram import assign, measure_cells

__all__ = ["Ascent"]

_BETAS, _DECAY, _TAIL = (0.5, 0.99), 0.75, 3.0  # of Adam; of its step length; of the weights of the average
_GROWTH = 1.5  # from one measurement of the masses to the next


class Ascent:
    """The heights on their way, and all that has to be saved of them."""

    _SAVED = (
        "heights", "average", "mean", "square", "iteration", "next", "error", "value", "empty", "history", "gap"
    )  # fmt: skip

    def __init__(
        self, sites: Tensor, nu: Tensor, draw: Callable[[int], Tensor], batch: int, rate: float, needed: int
    ) -> None:
        self.centre = sites.mean(0)
        self.sites, self.nu, self.draw, self.batch, self.rate = sites - self.centre, nu, draw, batch, rate
        self.heights, self.gap = _start(self.sites, nu, draw(max(1000, min(batch, 10_000))))
        self.average, self.mean, self.square = self.heights, torch.zeros_like(nu), torch.zeros_like(nu)
        self.needed, self.next = needed, max(25 * batch, needed)
        self.iteration, self.error, self.value, self.empty = 0, torch.inf, 0.0, 0
        self.history: list[tuple[int, float]] = []

    def step(self) -> None:
        self.iteration += 1
        t, (slow, slower) = self.iteration, _BETAS
        gradient = measure_cells(self.draw, self.sites, self.heights, self.batch)[0] - self.nu
        self.mean = self.mean.lerp(gradient, 1 - slow)
        self.square = self.square.lerp(gradient.square(), 1 - slower)
        size = (self.square / (1 - slower**t)).sqrt() + 1e-12
        moved = self.heights - self.rate * self.gap * t**-_DECAY * self.mean / (1 - slow**t) / size
        self.heights = moved - moved.mean()
        self.average = self.average.lerp(self.heights, _TAIL / (t + _TAIL - 1))

    def measure(self) -> None:
        masses, best = measure_cells(self.draw, self.sites, self.average, self.needed, self.centre)
        self.error, self.empty = float((masses - self.nu).abs().sum()), int((masses == 0).sum())
        squares = (self.sites + self.centre).double().square().sum(1) / 2
        self.value = float((self.nu * (self.average + squares)).sum()) - best
        self.history.append((self.iteration, self.error))
        self.next = int(_GROWTH * self.iteration * self.batch)

    def save(self, path: str | Path, generator: torch.Generator) -> None:
        content = {name: getattr(self, name) for name in self._SAVED}
        part = Path(f"{path}.part")
        torch.save(content | {"key": self._key(), "generator": generator.get_state()}, part)
        os.replace(part, path)

    def restore(self, path: str | Path | None, generator: torch.Generator) -> None:
        if path is None or not Path(path).exists():
            return
        content = torch.load(path, map_location=self.sites.device, weights_only=True)
        if not isinstance(content, dict) or content.get("key") != self._key():
            raise ValueError(f"state must be a file of the same problem, got {path}")
        for name in self._SAVED:
            setattr(self, name, content[name])
        generator.set_state(content["generator"].cpu())

    def _key(self) -> str:
        """What the problem and the steps depend on."""
        digest = hashlib.sha256(f"{self.batch} {self.rate}".encode())
        for tensor in (self.sites, self.centre, self.nu):
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


def _start(sites: Tensor, nu: Tensor, x: Tensor) -> tuple[Tensor, float]:
    """Heights of the lower energy of two guesses, and the mean gap between the best and the second best score."""
    if len(sites) == 1:
        return torch.zeros_like(nu), 1.0
    middle = x.mean(0)
    spread = (x - middle).square().sum(1).mean().sqrt()
    squares = sites.square().sum(1)
    offset = sites @ middle
    near = -offset - squares / 2 * spread / squares.mean().sqrt()
    rare = torch.special.ndtri(1 - nu).to(sites.dtype)
    even = -offset - rare * squares.sqrt() * spread / sites.shape[1] ** 0.5
    guesses = [(guess - guess.mean()) for guess in (near, even)]
    energies = [float(assign(x, sites, h)[0].double().mean() - (nu * h.double()).sum()) for h in guesses]
    heights = guesses[int(energies[1] < energies[0])]
    scores = torch.cat([torch.addmm(heights, part, sites.T).topk(2, dim=1)[0] for part in x[:1000].split(100)])
    return heights.double(), float((scores[:, 0] - scores[:, 1]).mean())
