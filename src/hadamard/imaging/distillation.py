"""What a student's representation of images takes from a teacher's: directions, and the middle of their spectrum.

References
----------
Z. Li, C. Ma, J. Chen, J. Zhang, H. Shan. Learning to Distill Global Representation for Sparse-View CT. ICCV 2023,
arXiv:2308.08463.

P. Khosla et al. Supervised Contrastive Learning. NeurIPS 2020.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.spectral import dct
from hadamard.validation import check_range, check_tensor

__all__ = ["BandPassContrastive", "DirectionalDistillation"]


class DirectionalDistillation(nn.Module):
    """One minus the cosine between two representations, pixel by pixel along the channels, on average.

    Directions alone are compared; lengths are free.

    Examples
    --------
    >>> import torch
    >>> g = torch.rand(2, 3, 4, 4)
    >>> float(DirectionalDistillation()(2 * g, g).abs() < 1e-6)
    1.0
    """

    def forward(self, student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """Compare representations (B, C, H, W); no gradient reaches the teacher's.

        Raises
        ------
        ValueError
            If they differ in shape or are not finite.
        """
        _check(student, teacher)
        return (1 - F.cosine_similarity(student, teacher.detach(), dim=1)).mean()


class BandPassContrastive(nn.Module):
    """A contrastive loss of two representations' middle frequencies: the same slice belongs together, others do not.

    Each representation is expanded in cosines over height and width, what lies in the band is kept and scaled to
    length 1. For each of the ``2 B`` vectors ``a`` of a batch, with its partner ``p`` from the other network, the loss
    is ``-log(exp(a.p / tau) / sum_c exp(a.c / tau))``, where ``c`` runs over all other vectors of the batch and over
    the bank, which holds the student's vectors of earlier batches, oldest out first.

    Parameters
    ----------
    bank
        How many earlier vectors are held, at least 0. They are taken for other slices: let it be smaller than the data.
    band
        Lowest and highest frequency that is kept, ``max(i / H, j / W)`` of the coefficient ``(i, j)``, within [0, 1].
    tau
        Temperature.

    Attributes
    ----------
    memory
        The bank, shape (entries, features); it is part of the state.

    Notes
    -----
    Until the bank is full, and for a single slice without a bank, the loss is 0. The bank fills in training mode only.
    In the paper's program, the entries of the bank share one label and so draw each other together; here they are
    negatives alone.

    Examples
    --------
    >>> import torch
    >>> loss = BandPassContrastive(bank=2)
    >>> g = torch.rand(2, 3, 8, 8)
    >>> float(loss(g, g)) == 0, len(loss.memory), float(loss(g, g)) > 0
    (True, 2, True)
    """

    memory: Tensor

    def __init__(self, bank: int = 300, band: tuple[float, float] = (0.1, 0.6), tau: float = 0.07) -> None:
        super().__init__()
        self.bank = check_range(bank, "bank", 0, integer=True)
        low, high = band
        check_range(low, "band[0]", 0, 1)
        check_range(high, "band[1]", low, 1)
        self.band, self.tau = (float(low), float(high)), check_range(tau, "tau", 0, closed="neither")
        self.register_buffer("memory", torch.empty(0, 0))

    def forward(self, student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """Compare representations (B, C, H, W) of the same slices; no gradient reaches the teacher's or the bank.

        Raises
        ------
        ValueError
            If they differ in shape or are not finite, no frequency lies in the band, or the bank holds vectors of
            another size.
        """
        _check(student, teacher)
        own, shown = self.features(student), self.features(teacher.detach())
        memory, size = self.memory.to(own), own.shape[1]
        if len(memory) and memory.shape[1] != size:
            raise ValueError(f"student must give {memory.shape[1]} features, as those in the bank, got {size}")
        if self.training and self.bank:
            kept = own.detach() if not len(memory) else torch.cat([memory, own.detach()])
            self.memory = kept[-self.bank :]
        if len(memory) < self.bank or (len(own) == 1 and not self.bank):
            return own.sum() * 0
        anchors = torch.cat([own, shown])
        others = torch.cat([anchors, memory]) if self.bank else anchors
        alike = (anchors @ others.mT / self.tau).fill_diagonal_(-math.inf)
        partner = torch.arange(len(anchors), device=own.device).roll(len(own))
        return F.cross_entropy(alike, partner)

    def features(self, g: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """Expand in cosines, keep the band, scale to length 1."""
        low, high = self.band
        height, width = g.shape[-2:]
        keep = [min(math.floor(high * n) + 1, n) for n in (height, width)]
        X = dct(g, (-2, -1), keep)
        i, j = (torch.arange(k, device=g.device) / n for k, n in zip(keep, (height, width)))
        at = torch.maximum(i[:, None], j)
        inside = (at >= low) & (at <= high)
        if not bool(inside.any()):
            raise ValueError(f"band must hold a frequency of a {height} x {width} grid, got {self.band}")
        return F.normalize(X[..., inside].flatten(1), dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}memory")
        if saved is not None:
            self.memory = self.memory.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _check(student: Tensor, teacher: Tensor) -> None:
    for name, g in {"student": student, "teacher": teacher}.items():
        check_tensor(g, name, ndim=4, dtype="floating")
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
