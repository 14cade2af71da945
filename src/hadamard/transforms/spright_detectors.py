"""How a bin of a sparse Walsh-Hadamard transform tells which coefficient it holds.

A bin is the vector of its values under ``P`` offsets ``d_p``; one coefficient ``X[k]`` makes it ``X[k] (-1)^<d_p, k>``
plus noise. Each detector chooses offsets from which it can read ``k``.
"""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["Detector", "detector", "random_full_rank"]


@runtime_checkable
class Detector(Protocol):
    """Offsets of shape (P, n), and what reads the index out of bins of shape (bins, P)."""

    offsets: Bool[Tensor, "P n"]

    def __call__(
        self, V: Float[Tensor, "bins P"], M: Bool[Tensor, "bins n b"], cell: Int64[Tensor, "bins"]
    ) -> Bool[Tensor, "bins n"]:
        """Guess the index of each bin, given the bin's hashing and number."""


def detector(method: str, n: int, repeats: int, generator: torch.Generator) -> Detector:
    """The detector of :func:`~hadamard.transforms.spright.sparse_wht`'s ``method``."""
    if method == "noiseless":
        return _Signs(n, torch.zeros(1, n, dtype=torch.bool))
    if method == "so":
        return _Codeword(n, repeats, generator)
    base = torch.rand(repeats, n, generator=generator) < 0.5
    return _Signs(n, base) if method == "nso" else _MaximumLikelihood(n, base)


def random_full_rank(n: int, b: int, generator: torch.Generator) -> Bool[Tensor, "n b"]:
    """A uniformly random binary matrix of full column rank."""
    while True:
        M = torch.rand(n, b, generator=generator) < 0.5
        if _rank(M) == b:
            return M


class _Signs:
    """Base offsets ``d_r`` and their neighbours ``d_r + e_q``: bit ``q`` flips the sign between the two.

    The products of the two values are added up over the base offsets before the sign is taken.
    """

    def __init__(self, n: int, base: Tensor) -> None:
        steps = torch.cat([torch.zeros(1, n, dtype=torch.bool), torch.eye(n, dtype=torch.bool)])
        self.offsets = (base[:, None] ^ steps[None]).reshape(-1, n)
        self._repeats = len(base)

    def __call__(self, V: Tensor, M: Tensor, cell: Tensor) -> Tensor:
        W = V.reshape(len(V), self._repeats, -1)
        return (W[..., :1] * W[..., 1:]).sum(1) < 0


class _MaximumLikelihood(_Signs):
    """All ``2^(n - b)`` indices that fall into the bin are compared with it."""

    def __call__(self, V: Tensor, M: Tensor, cell: Tensor) -> Tensor:
        n = self.offsets.shape[1]
        every = ((torch.arange(1 << n)[:, None] >> torch.arange(n)) & 1).bool()
        signs = 1 - 2 * (self.offsets.float() @ every.float().T % 2)
        correlation = (V.float() @ signs).abs()
        bits = torch.einsum("kn,inb->ikb", every.float(), M.float()) % 2
        place = (bits.long() << torch.arange(M.shape[-1])).sum(-1)
        return every[correlation.masked_fill(place != cell[:, None], -1).argmax(-1)]


class _Codeword:
    """Offsets are the rows of a systematic repeat-accumulate code's generator: the signs are a noisy codeword of ``k``.

    Message bit ``q`` is seen directly under ``e_q``; parity ``i`` is parity ``i - 1`` plus three message bits. Both
    signs of the coefficient are decoded by 20 sweeps of the min-sum algorithm, and the better fit is kept.
    """

    _DEGREE = 3
    _SWEEPS = 20

    def __init__(self, n: int, rate: int, generator: torch.Generator) -> None:
        checks = (rate - 1) * n
        parts = min(self._DEGREE, n)
        # Each bit takes part in about equally many checks: shuffled decks of all bits, dealt out in hands.
        decks = [torch.randperm(n, generator=generator) for _ in range(-(-checks * parts // n))]
        self._bits = torch.cat(decks)[: checks * parts].reshape(checks, parts)
        sums = torch.zeros(checks, n, dtype=torch.int64).scatter_add_(1, self._bits, torch.ones_like(self._bits)) % 2
        parities = sums.cumsum(0) % 2
        self.offsets = torch.cat([torch.eye(n, dtype=torch.int64), parities]).bool()
        # Variables of each check: its message bits, its parity, and the parity before it (a known zero at the start).
        own = n + torch.arange(checks)
        self._checks = torch.cat([self._bits, own[:, None], torch.where(own > n, own - 1, n + checks)[:, None]], dim=1)
        self._n = n

    def __call__(self, V: Tensor, M: Tensor, cell: Tensor) -> Tensor:
        bits = torch.stack([self._decode(V), self._decode(-V)])
        signs = 1 - 2 * (self.offsets.float() @ bits.float().transpose(1, 2) % 2)
        fit = torch.einsum("bp,spb->sb", V.float(), signs).abs()
        return torch.where((fit[0] >= fit[1])[:, None], bits[0], bits[1])

    def _decode(self, V: Tensor) -> Tensor:
        """Message bits from values whose sign is the bit and whose modulus is the confidence."""
        flat = self._checks.reshape(-1)
        channel = torch.cat([V.float(), V.new_full((len(V), 1), 1e6, dtype=torch.float32)], dim=1)
        to_variable = V.new_zeros(len(V), *self._checks.shape, dtype=torch.float32)
        for _ in range(self._SWEEPS):
            total = channel.clone().index_add_(1, flat, to_variable.flatten(1))
            to_check = total[:, flat].reshape(to_variable.shape) - to_variable
            modulus = to_check.abs()
            least = modulus.topk(2, dim=-1, largest=False)
            others = torch.where(modulus == least.values[..., :1], least.values[..., 1:], least.values[..., :1])
            sign = torch.where(to_check < 0, -1.0, 1.0)
            to_variable = 0.8 * sign.prod(-1, keepdim=True) * sign * others
        total = channel.clone().index_add_(1, flat, to_variable.flatten(1))
        return total[:, : self._n] < 0


def _rank(M: Tensor) -> int:
    """Rank over the field of two elements, by elimination on columns packed into Python integers."""
    rows = [int.from_bytes(column.tobytes()) for column in np.packbits(M.numpy().T, axis=1)]
    rank = 0
    while rows:
        pivot = rows.pop()
        if pivot:
            rank += 1
            low = pivot & -pivot
            rows = [row ^ pivot if row & low else row for row in rows]
    return rank
