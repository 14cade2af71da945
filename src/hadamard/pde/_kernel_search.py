"""The search for the spectral mixture kernels under which an equation's data are most likely."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hadamard.pde._collocation import Problem, evidence
from hadamard.pde.spectral_mixture import SpectralMixture, mean_spacing
from hadamard.results import Solution
from hadamard.solvers import minimize

__all__ = ["KernelSearch"]

DECAYS, _LENGTHS = (2.0, 4.0, 0.0), (2.0, 5.0, 12.0)  # where the search starts


class KernelSearch:
    """The parameters of all kernels as one vector, and the search for them."""

    def __init__(
        self, problem: Problem, envelope: str, q: int, mixed: bool, tops: Sequence[float], start: int, floor: float,
        guess: Tensor,
    ) -> None:  # fmt: skip
        self.problem, self.mixed, self.guess = problem, mixed, guess
        self.start = []
        for x, top in zip(problem.axes, tops):
            kernel = SpectralMixture.start(x, q, envelope, top, DECAYS[start], floor)
            if not mixed:
                length = x.new_full((1,), math.log(_LENGTHS[start] * mean_spacing(x)))
                kernel = replace(kernel, log_lengths=length, frequencies=x.new_zeros(1))
            self.start.append(kernel)
        self.spacing = [top / max(q - 1, 1) for top in tops]

    def kernels(self, vector: Tensor) -> list[SpectralMixture]:
        """The kernels that a vector of changes stands for: frequencies in units of their spacing at the start."""
        parts = vector.reshape(len(self.start), 3 if self.mixed else 1, -1)
        result = []
        for kernel, change, spacing in zip(self.start, parts, self.spacing):
            lengths = kernel.log_lengths + change[0]
            if not self.mixed:
                result.append(replace(kernel, log_lengths=lengths))
                continue
            frequencies = kernel.frequencies + change[2] * spacing
            result.append(
                replace(
                    kernel, log_weights=kernel.log_weights + change[1], log_lengths=lengths, frequencies=frequencies
                )
            )
        return result

    def loss(self, vector: Tensor) -> Tensor:
        """Negative logarithm of the evidence; a solution that was found is where the next is sought."""
        value, u, _ = evidence(self.problem, self.kernels(vector), self.guess)
        if u.isfinite().all():
            self.guess = u.detach()[torch.meshgrid(*self.problem.free, indexing="ij")]
        return value

    def run(self, max_iter: int) -> Solution:
        """Search, with a floor that is raised until the start is regular."""
        like = self.start[0].log_weights
        vector = like.new_zeros(len(self.start) * (3 if self.mixed else 1) * len(like))
        while True:
            value, _, _ = evidence(self.problem, self.start, self.guess)
            floor = self.start[0].floor
            if value.isfinite():
                return minimize(self.loss, vector, tol=1e-4, max_iter=max_iter, warn=False)
            if floor > 1e-3:
                raise ValueError(
                    "terms, ends and boundary must give a system that can be solved, got a singular one or a diverging "
                    f"Newton iteration up to floor={floor:.0e}"
                )
            self.start = [replace(k, floor=10 * floor) for k in self.start]
