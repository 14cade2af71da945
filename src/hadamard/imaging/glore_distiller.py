"""Distillation of a global representation: a network learns beside a teacher that sees twice as many views.

References
----------
Z. Li, C. Ma, J. Chen, J. Zhang, H. Shan. Learning to Distill Global Representation for Sparse-View CT. ICCV 2023,
arXiv:2308.08463.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from hadamard.imaging.distillation import BandPassContrastive, DirectionalDistillation
from hadamard.imaging.gloredi import GloReNet, check_images
from hadamard.validation import check_range, check_tensor

__all__ = ["GloReDistiller"]


class GloReDistiller(nn.Module):
    """Train a network beside a teacher that sees twice as many views.

    Each step has two halves. The teacher's encoder learns to reconstruct through a copy of the student's decoder; then
    the student learns to reconstruct and to represent a slice as the teacher does.

    Parameters
    ----------
    student
        The network to be trained, in place; the teacher begins as its copy.
    momentum
        Of the decoder's copy: the weight of its old values in each step; 0 copies, 1 never changes.
    direction, contrast
        Weights of :class:`~hadamard.imaging.DirectionalDistillation` and
        :class:`~hadamard.imaging.BandPassContrastive`; with 0 a term is not computed.
    share
        Of the representation's channels that are distilled, the first ones, in (0, 1].
    band_pass
        The contrastive loss; ``None``: with the paper's settings.

    Raises
    ------
    ValueError
        If a number is out of range, or the images of a step differ in shape.

    Notes
    -----
    One optimizer serves both halves, as the teacher's encoder and the student share no parameter: give it
    ``[p for p in distiller.parameters() if p.requires_grad]``. It must skip parameters without a gradient, as torch's
    do. Running means of normalisations in the decoder's copy follow with the same momentum. The loss on images is the
    smooth l1 norm. The paper trains with the teacher for 140 epochs and with the loss on images alone for the last ten:
    call :meth:`pixel_loss` for those.

    ``x_mid`` is meant to show more views than ``x_sparse``; nothing in the images tells, so this is not checked. The
    contrastive loss needs a bank of slices that are other ones than those of the batch: fewer than there are in all.

    Examples
    --------
    >>> distiller = GloReDistiller(GloReNet(width=4, n_enc=1, n_dec=1))
    >>> optimizer = torch.optim.Adam([p for p in distiller.parameters() if p.requires_grad], 5e-4)
    >>> few, more, truth = torch.rand(3, 2, 1, 16, 16)
    >>> sorted(distiller.training_step(optimizer, few, more, truth))
    ['contrast', 'direction', 'pixel', 'student', 'teacher']
    """

    def __init__(
        self,
        student: GloReNet,
        *,
        momentum: float = 0.0,
        direction: float = 0.1,
        contrast: float = 1e-6,
        share: float = 0.5,
        band_pass: BandPassContrastive | None = None,
    ) -> None:
        super().__init__()
        check_range(direction, "direction", 0)
        check_range(contrast, "contrast", 0)
        self.momentum = check_range(momentum, "momentum", 0, 1)
        self.share = check_range(share, "share", 0, 1, closed="right")
        self.weights = {"direction": direction, "contrast": contrast}
        self.student, self.teacher = student, copy.deepcopy(student)
        self.teacher.decoder.requires_grad_(False)
        self.pixel = nn.SmoothL1Loss()
        self.directions = DirectionalDistillation()
        self.band_pass = BandPassContrastive() if band_pass is None else band_pass

    def training_step(
        self,
        optimizer: Optimizer,
        x_sparse: Float[Tensor, "b c h w"],
        x_mid: Float[Tensor, "b c h w"],
        truth: Float[Tensor, "b c h w"],
    ) -> dict[str, float]:
        """Make one step of the teacher and one of the student.

        Parameters
        ----------
        optimizer
            Of all parameters that require a gradient.
        x_sparse, x_mid
            Back-projections of K and of 2 K views, shape (B, C, H, W) with H and W multiples of 4.
        truth
            What they should have been.

        Returns
        -------
        dict
            The losses ``teacher`` and ``student``, and the latter's terms ``pixel``, ``direction`` and ``contrast``,
            without their weights.
        """
        teacher = self.teacher_step(optimizer, x_mid, truth)
        optimizer.zero_grad(set_to_none=True)
        losses = self.student_losses(x_sparse, x_mid, truth)
        losses["student"].backward()
        optimizer.step()
        return {"teacher": teacher} | {name: float(loss.detach()) for name, loss in losses.items()}

    def teacher_step(
        self, optimizer: Optimizer, x_mid: Float[Tensor, "b c h w"], truth: Float[Tensor, "b c h w"]
    ) -> float:
        """Make the teacher's step and return its loss; see :meth:`training_step`."""
        self._follow()
        optimizer.zero_grad(set_to_none=True)
        loss = self.pixel_loss(x_mid, truth, self.teacher)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def student_losses(
        self, x_sparse: Float[Tensor, "b c h w"], x_mid: Float[Tensor, "b c h w"], truth: Float[Tensor, "b c h w"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute the student's loss and its terms, none of which has a gradient in the teacher."""
        _check_pair(x_sparse, "x_sparse", truth)
        _check_pair(x_mid, "x_mid", truth)
        own = self.student.encode(x_sparse)
        with torch.no_grad():
            shown = self.teacher.encode(x_mid)
        losses = {"pixel": self.pixel(self.student.finish(self.student.decode(own), x_sparse), truth)}
        taught = max(int(self.share * own.shape[1]), 1)
        zero = own.new_zeros(())
        for name, loss in {"direction": self.directions, "contrast": self.band_pass}.items():
            losses[name] = loss(own[:, :taught], shown[:, :taught]) if self.weights[name] else zero
        total = losses["pixel"] + sum(weight * losses[name] for name, weight in self.weights.items())
        return losses | {"student": total}

    def pixel_loss(
        self, x: Float[Tensor, "b c h w"], truth: Float[Tensor, "b c h w"], network: GloReNet | None = None
    ) -> Float[Tensor, ""]:
        """Compute the loss on images alone, of the student or of another network."""
        _check_pair(x, "x", truth)
        return self.pixel((network or self.student)(x), truth)

    @torch.no_grad()
    def _follow(self) -> None:
        """The decoder's copy moves towards the student's."""
        own = self.student.decoder.state_dict()
        for name, value in self.teacher.decoder.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(own[name], 1 - self.momentum)
            else:
                value.copy_(own[name])


def _check_pair(x: Tensor, name: str, truth: Tensor) -> None:
    check_images(x, name)
    check_tensor(truth, "truth", ndim=4, dtype="floating")
    if x.shape != truth.shape:
        raise ValueError(f"{name} and truth must have the same shape, got {tuple(x.shape)} and {tuple(truth.shape)}")
