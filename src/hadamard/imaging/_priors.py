"""What a series of images is expected to look like: few edges, slow change, few independent frames."""

from dataclasses import dataclass

import torch
from jaxtyping import Inexact, Real
from torch import Tensor

from hadamard.imaging._operators import UNFOLDINGS, Unfold
from hadamard.imaging._primal_dual import Term, condat_vu
from hadamard.operators import Difference
from hadamard.proximal import spectral_ball, svt
from hadamard.results import warn_short
from hadamard.validation import check_option, check_range, check_tensor

_AXES = {"space": (-2, -1), "time": (-3,)}


@dataclass(frozen=True)
class TVPrior:
    """Total variation of a series in space or in time: ``weight`` times the sum of the moduli of its differences.

    Differences do not wrap around. In space the two directions are coupled (isotropic); real and imaginary part are
    coupled by the modulus everywhere.

    Parameters
    ----------
    along
        ``"space"`` (height and width) or ``"time"``.
    weight
        Factor, at least 0.

    Examples
    --------
    >>> series = torch.zeros(1, 2, 3, 3)
    >>> series[:, :, :, 1:] = 1.0
    >>> TVPrior("space").value(series)
    tensor(6.)
    >>> round(float(TVPrior("time").value(series)), 6)
    0.0
    """

    along: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_option(self.along, "along", tuple(_AXES))
        check_range(self.weight, "weight", 0)

    @property
    def norm_squared(self) -> float:
        """An upper bound on the squared norm of the differences."""
        return 4.0 * len(_AXES[self.along])

    def operator(self, shape: tuple[int, int, int, int]) -> Difference:
        """The differences of a series of shape (1, T, H, W)."""
        return Difference(shape, _AXES[self.along])

    def project_dual(self, p: Inexact[Tensor, "*batch d c t h w"]) -> Inexact[Tensor, "*batch d c t h w"]:
        """Project on the dual ball: scale each pixel's differences down to modulus ``weight``."""
        floor = max(self.weight**2, torch.finfo(p.dtype).tiny)
        return p * (self.weight * _squared_modulus(p).sum(-5, keepdim=True).clamp(min=floor).rsqrt())

    def value(self, x: Inexact[Tensor, "*batch c t h w"]) -> Real[Tensor, "*batch"]:
        """Evaluate the prior on series of shape (..., 1, T, H, W)."""
        differences = self.operator(_shape(x)).A(x)
        squares = _squared_modulus(differences).sum(-5).clamp(min=torch.finfo(x.dtype).tiny)
        return self.weight * squares.sqrt().sum((-4, -3, -2, -1))

    def prox(
        self, x: Inexact[Tensor, "*batch c t h w"], step: float, *, tol: float = 1e-6, max_iter: int = 2000
    ) -> Inexact[Tensor, "*batch c t h w"]:
        """Denoise: minimise ``step * value(u) + ||u - x||^2 / 2`` over ``u``, by iteration.

        Parameters
        ----------
        x
            Series of shape (..., 1, T, H, W).
        step
            At least 0.
        tol, max_iter
            Relative change at which the iteration stops, and the greatest number of iterations (a short stop warns
            ``ConvergenceWarning``).
        """
        check_tensor(x, "x")
        check_range(step, "step", 0)
        scaled = TVPrior(self.along, self.weight * step)
        term = Term(lambda p, _: scaled.project_dual(p), self.operator(_shape(x)), self.norm_squared)
        pull = lambda v, tau: (v + tau * x) / (1 + tau)  # noqa: E731
        solution = condat_vu(None, 0.0, pull, [term], x, relaxation=1.8, tol=tol, max_iter=max_iter)
        if not solution.converged:
            warn_short(f"TVPrior.prox {solution.message}")
        return solution.value


@dataclass(frozen=True)
class LowRankPrior:
    """Nuclear norm of a series laid out as a matrix: ``weight`` times the sum of its singular values.

    Parameters
    ----------
    unfold
        ``"casorati"``: a row for each frame (few independent frames); ``"mode-h"``, ``"mode-w"``: a row for each
        image row or column, of all frames.
    weight
        Factor, at least 0.

    Examples
    --------
    >>> series = torch.ones(1, 4, 3, 3)
    >>> LowRankPrior("casorati").value(series)
    tensor(6.)
    >>> float(LowRankPrior("casorati").prox(series, 3.0)[0, 0, 0, 0])
    0.5
    """

    unfold: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_option(self.unfold, "unfold", UNFOLDINGS)
        check_range(self.weight, "weight", 0)

    @property
    def norm_squared(self) -> float:
        """The squared norm of the unfolding, which is a permutation."""
        return 1.0

    def operator(self, shape: tuple[int, int, int, int]) -> Unfold:
        """The unfolding of a series of shape (1, T, H, W)."""
        return Unfold(shape, self.unfold)

    def project_dual(self, p: Inexact[Tensor, "*batch m n"]) -> Inexact[Tensor, "*batch m n"]:
        """Project on the dual ball: clip the singular values at ``weight``."""
        return spectral_ball(p, self.weight)

    def value(self, x: Inexact[Tensor, "*batch c t h w"]) -> Real[Tensor, "*batch"]:
        """Evaluate the prior on series of shape (..., 1, T, H, W)."""
        return self.weight * singular_values(self.operator(_shape(x)).A(x)).sum(-1).to(x.real.dtype)

    def prox(self, x: Inexact[Tensor, "*batch c t h w"], step: float) -> Inexact[Tensor, "*batch c t h w"]:
        """Shrink the singular values by ``step * weight``: the exact proximal map."""
        op = self.operator(_shape(x))
        return op.A_adjoint(svt(op.A(x), step * self.weight))


def singular_values(Z: Inexact[Tensor, "*batch m n"]) -> Real[Tensor, "*batch k"]:
    """Singular values, ascending, from the smaller Gram matrix in double precision."""
    Z = Z.to(torch.promote_types(Z.dtype, torch.float64))
    gram = Z @ Z.mH if Z.shape[-2] <= Z.shape[-1] else Z.mH @ Z
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()


def _squared_modulus(x: Tensor) -> Tensor:
    return (x * x.conj()).real if x.is_complex() else x * x


def _shape(x: Tensor) -> tuple[int, int, int, int]:
    check_tensor(x, "x", shape=(1, None, None, None), finite=False)
    return tuple(x.shape[-4:])  # type: ignore[return-value]
