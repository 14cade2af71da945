"""What happens to pictures on the way: blur and missing pixels, as linear operators, and photons that are counted."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hadamard.operators.base import LinearOperator
from hadamard.validation import check_range, check_tensor

__all__ = ["GaussianBlur", "Inpainting", "photon_noise"]


class GaussianBlur(LinearOperator):
    """Blur pictures with a Gaussian, continuing them by reflection (the edge pixel is repeated).

    The operator is its own adjoint and its norm is 1.

    Parameters
    ----------
    shape
        Height and width.
    sigma
        Standard deviation in pixels, above 0.

    Examples
    --------
    >>> blur = GaussianBlur((5, 5), 0.5)
    >>> float(blur(torch.ones(5, 5)).mean())
    1.0
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, shape: Sequence[int], sigma: float) -> None:
        super().__init__(tuple(shape), tuple(shape))
        check_range(sigma, "sigma", 0, closed="neither")
        if len(self.in_shape) != 2:
            raise ValueError(f"shape must be height and width, got {tuple(shape)}")
        self.register_buffer("rows", _blur_matrix(self.in_shape[0], sigma))
        self.register_buffer("columns", _blur_matrix(self.in_shape[1], sigma))

    def A(self, x: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
        """Blur."""
        self.check_in(x)
        return self.rows.to(x.dtype) @ x @ self.columns.to(x.dtype)

    def A_adjoint(self, y: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
        """Blur: the operator is symmetric."""
        return self.A(y)


class Inpainting(LinearOperator):
    """Keep the known pixels of a picture and set the others to 0; a projection, its own adjoint and pseudo-inverse.

    Parameters
    ----------
    known
        True where a pixel was measured, of shape (height, width); at least one is.

    Examples
    --------
    >>> Inpainting(torch.tensor([[True, False]]))(torch.tensor([[3.0, 4.0]]))
    tensor([[3., 0.]])
    """

    known: Tensor

    def __init__(self, known: Bool[Tensor, "h w"]) -> None:
        check_tensor(known, "known", ndim=2, dtype=torch.bool)
        if not bool(known.any()):
            raise ValueError("known must be true somewhere, got a mask with no known pixel")
        super().__init__(tuple(known.shape), tuple(known.shape))
        self.register_buffer("known", known)

    def A(self, x: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
        """Set unknown pixels to 0."""
        return self.check_in(x) * self.known

    def A_adjoint(self, y: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
        """Set unknown pixels to 0."""
        return self.A(y)

    def A_dagger(self, y: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
        """Set unknown pixels to 0 (exact)."""
        return self.A(y)


def photon_noise(
    y: Float[Tensor, "*batch p a"], photons: float, *, generator: torch.Generator | None = None
) -> Float[Tensor, "*batch p a"]:
    """Measure line integrals of attenuation by counting photons, whose number is Poisson-distributed.

    Parameters
    ----------
    y
        Line integrals, without unit: attenuation per centimetre times centimetres.
    photons
        Sent out for each ray, above 0; ``photons * exp(-y)`` arrive on average.
    generator
        Draws them; ``None``: torch's own.

    Returns
    -------
    Tensor
        ``-log(counts / photons)``, where none arrived as if one had.

    Raises
    ------
    ValueError
        If ``y`` is not finite or ``photons`` is not positive.

    Examples
    --------
    >>> noisy = photon_noise(torch.full((5, 4), 3.0), 1e6)
    >>> bool((noisy - 3).abs().max() < 0.03)
    True
    """
    check_tensor(y, "y", dtype="floating")
    check_range(photons, "photons", 0, closed="neither")
    counts = torch.poisson(photons * (-y).exp(), generator=generator)
    return -(counts.clamp(min=1) / photons).log()


def _blur_matrix(n: int, sigma: float) -> Float[Tensor, "n n"]:
    """Gaussian blur along one axis with reflected ends, as a symmetric matrix whose rows sum to 1."""
    reach = min(n - 1, max(1, round(4 * sigma)))
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-offsets.double().square() / (2 * sigma**2))
    at = torch.arange(n)[:, None] + offsets
    at = torch.where(at < 0, -1 - at, torch.where(at >= n, 2 * n - 1 - at, at))
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, at, (weights / weights.sum()).expand(n, -1))
