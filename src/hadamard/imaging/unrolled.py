"""The learned primal-dual loop: a network that corrects an image and its data in turn, joined by the physics."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Inexact
from torch import Tensor, nn

from hadamard.operators import LinearOperator
from hadamard.validation import check_option, check_tensor

__all__ = ["LearnedPrimalDual", "standardise"]

Inverse = Callable[[LinearOperator, Tensor], Tensor]
Normalise = Callable[[Tensor], tuple[Tensor, Tensor]]


class LearnedPrimalDual(nn.Module):
    """Some rounds of: correct the data by a network, then the image by another, each shown the other's view.

    With images ``f`` and data ``h`` of several channels, a round is
    ``h += w_d * D([h, A(mean f), y])`` and ``f += w_p * P([f, A_inverse(mean h)])``; the result is the mean of ``f``.

    Parameters
    ----------
    dual_blocks, primal_blocks
        The networks of each round: ``n_dual + 2`` to ``n_dual`` channels, and ``n_primary + 1`` to ``n_primary``.
    n_dual, n_primary
        Channels of ``h`` and ``f``.
    inverse
        ``inverse(physics, y) -> x``, from data back to an image; ``None``: ``physics.A_dagger``. It need be no adjoint.
    normalise
        ``normalise(y) -> (shift, scale)`` of each sample, which broadcast against ``y``: the dual networks see
        ``(y - shift) / scale``.
    init
        ``"inverse"``: begin with the inverse of the data, on every channel; or ``"zeros"``.

    Notes
    -----
    ``w_p`` begins with 0, so that the untrained network returns what it begins with. Channels are averaged before the
    physics is applied, which by linearity is the same as afterwards and no dearer. The physics may be another one in
    each call.

    References
    ----------
    J. Adler, O. Öktem. Learned primal-dual reconstruction. IEEE Transactions on Medical Imaging 37, 2018.
    arXiv:1707.06474.
    """

    def __init__(
        self,
        dual_blocks: Sequence[nn.Module],
        primal_blocks: Sequence[nn.Module],
        n_dual: int,
        n_primary: int,
        *,
        inverse: Inverse | None = None,
        normalise: Normalise | None = None,
        init: str = "inverse",
    ) -> None:
        super().__init__()
        self.init = check_option(init, "init", ("inverse", "zeros"))
        self.dual_blocks, self.primal_blocks = nn.ModuleList(dual_blocks), nn.ModuleList(primal_blocks)
        self.n_dual, self.n_primary = n_dual, n_primary
        self.inverse: Inverse = inverse or _dagger
        self.normalise: Normalise = normalise or standardise
        rounds = len(self.dual_blocks)
        self.dual_steps = nn.Parameter(torch.ones(rounds, n_dual, 1, 1))
        self.primal_steps = nn.Parameter(torch.zeros(rounds, n_primary, 1, 1))

    def forward(self, y: Inexact[Tensor, "b 1 p a"], physics: LinearOperator) -> Inexact[Tensor, "b 1 h w"]:
        """Reconstruct images from data.

        Parameters
        ----------
        y
            Data, shape (B, 1, *physics.out_shape).
        physics
            What made the data of images; ``hadamard.operators.from_deepinv`` adapts deepinv's.

        Returns
        -------
        Tensor
            Images, shape (B, 1, *physics.in_shape).

        Raises
        ------
        ValueError
            If ``y`` is not finite or does not fit the physics.
        """
        check_tensor(y, "y", ndim=4, shape=(1, *physics.out_shape))
        shift, scale = self.normalise(y)
        g = (y - shift) / scale
        h = g.new_zeros(len(y), self.n_dual, *physics.out_shape)
        if self.init == "inverse":
            f = self.inverse(physics, y).expand(-1, self.n_primary, -1, -1)
        else:
            f = g.new_zeros(len(y), self.n_primary, *physics.in_shape)
        rounds = zip(self.dual_blocks, self.primal_blocks, self.dual_steps, self.primal_steps)
        for dual, primal, dual_step, primal_step in rounds:
            seen = (physics.A(f.mean(1, keepdim=True)) - shift) / scale
            h = h + dual_step * self.correct_data(dual, torch.cat([h, seen, g], 1), physics)
            back = self.inverse(physics, h.mean(1, keepdim=True) * scale + shift)
            f = f + primal_step * self.correct_image(primal, torch.cat([f, back], 1), physics)
        return f.mean(1, keepdim=True)

    def correct_data(self, block: nn.Module, x: Tensor, physics: LinearOperator) -> Tensor:
        """Apply a round's network to data; for subclasses whose networks want to know the physics."""
        return block(x)

    def correct_image(self, block: nn.Module, x: Tensor, physics: LinearOperator) -> Tensor:
        """Apply a round's network to images; for subclasses likewise."""
        return block(x)


def _dagger(physics: LinearOperator, y: Tensor) -> Tensor:
    return physics.A_dagger(y)


def standardise(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each sample's data, the latter never 0.

    Examples
    --------
    >>> [float(v) for v in standardise(torch.tensor([[[[1.0, 3.0]]]]))]
    [2.0, 1.0]
    """
    scale = y.std((-2, -1), correction=0, keepdim=True)
    return y.mean((-2, -1), keepdim=True), torch.where(scale > 0, scale, 1)
