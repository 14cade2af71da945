"""What a scanner measures, as operators: Fourier transforms on and off the grid, sampled, and coils."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Complex, Float, Real
from torch import Tensor

from hadamard.operators.base import LinearOperator
from hadamard.operators.gradient import with_adjoint
from hadamard.spectral.fft import fft_centred, ifft_centred
from hadamard.validation import check_range, check_tensor

__all__ = ["Coils", "Fourier", "Masked", "NonUniformFourier"]


class Fourier(LinearOperator):
    """The orthonormal discrete Fourier transform over some dimensions.

    Parameters
    ----------
    shape
        Trailing shape of input and output.
    dims
        Dimensions to transform, counted from the end (negative).
    centred
        Whether origin and zero frequency lie at ``n // 2`` (k-space as it is usually stored) or at index 0.

    Examples
    --------
    >>> op = Fourier((4, 4))
    >>> bool(torch.allclose(op.A_dagger(op.A(torch.eye(4))).real, torch.eye(4), atol=1e-6))
    True
    """

    def __init__(self, shape: Sequence[int], dims: Sequence[int] = (-2, -1), centred: bool = True) -> None:
        super().__init__(shape, shape)
        self.dims, self.centred = tuple(dims), centred

    def A(self, x: Tensor) -> Tensor:
        """Transform images to frequencies."""
        if self.centred:
            return fft_centred(x, self.dims)
        return torch.fft.fftn(x, dim=self.dims, norm="ortho")

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Transform frequencies to images."""
        if self.centred:
            return ifft_centred(y, self.dims)
        return torch.fft.ifftn(y, dim=self.dims, norm="ortho")

    def A_dagger(self, y: Tensor) -> Tensor:
        """Invert exactly: the adjoint, as the transform is unitary."""
        return self.A_adjoint(y)


class Masked(LinearOperator):
    """An operator of which only some outputs are measured; the others read 0.

    Parameters
    ----------
    op
        The operator whose output is sampled.
    mask
        Ones where it is measured and zeros elsewhere; broadcasts against the output.

    Examples
    --------
    >>> Masked(Fourier((2, 2), centred=False), torch.tensor([1.0, 0.0]))(torch.ones(2, 2)).real
    tensor([[2., 0.],
            [0., 0.]])
    """

    mask: Tensor

    def __init__(self, op: LinearOperator, mask: Real[Tensor, "..."]) -> None:
        super().__init__(op.in_shape, op.out_shape)
        self.op = op
        self.register_buffer("mask", mask)

    def A(self, x: Tensor) -> Tensor:
        """Apply the operator and keep the measured outputs."""
        return self.op.A(x) * self.mask

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Apply the operator's adjoint to the measured outputs."""
        return self.op.A_adjoint(y * self.mask)


class Coils(LinearOperator):
    """What each coil sees of an image, (..., 1, H, W) to (..., C, H, W), or of a series, with T before H.

    Parameters
    ----------
    sens
        Sensitivities of shape (..., C, H, W).
    frames
        Number of frames T of a series; ``None``: images.

    Examples
    --------
    >>> sens = torch.ones(3, 4, 4, dtype=torch.complex64)
    >>> Coils(sens)(torch.ones(1, 4, 4)).shape, Coils(sens, frames=2)(torch.ones(1, 2, 4, 4)).shape
    (torch.Size([3, 4, 4]), torch.Size([3, 2, 4, 4]))
    """

    sens: Tensor

    def __init__(self, sens: Complex[Tensor, "*batch c h w"], frames: int | None = None) -> None:
        coils, *size = check_tensor(sens, "sens", shape=(None, None, None), dtype="complex").shape[-3:]
        size = size if frames is None else [frames, *size]
        super().__init__((1, *size), (coils, *size))
        self.axis = -len(self.in_shape)
        self.register_buffer("sens", sens if frames is None else sens.unsqueeze(-3))

    def A(self, x: Tensor) -> Tensor:
        """Multiply by every coil's sensitivity."""
        return self.check_in(x) * self.sens

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Multiply by the conjugate sensitivities and sum over the coils."""
        return (self.check_out(y) * self.sens.conj()).sum(self.axis, keepdim=True)


class NonUniformFourier(LinearOperator):
    """The Fourier transform of a centred image at any points of k-space, such as the spokes of a radial scan.

    Parameters
    ----------
    points
        Frequencies in radians per pixel, shape (d, M), in [-pi, pi); the first row belongs to the first axis of the
        image. d is 1, 2 or 3.
    shape
        Sizes of the image, d of them; its origin is at ``n // 2``.
    tol
        Relative error of the result; ``None``: 1e-12, or 1e-6 where the input is in single precision.

    Raises
    ------
    ImportError
        If finufft is not installed.
    TypeError
        If ``points`` is not a floating tensor.
    ValueError
        If ``points`` are not finite or out of range, or ``shape`` does not have as many sizes as they have rows.

    Notes
    -----
    ``A(x)[m] = sum_r x[r] exp(-1j * <points[:, m], r>) / sqrt(number of pixels)``, where positions r count from
    ``-(n // 2)`` on: at the points of a grid it is :class:`Fourier`. The transform is finufft's [1]_ by way of
    pytorch-finufft, here with its low frequencies in the middle, on the GPU where cufinufft is installed. ``A_dagger``
    are conjugate gradients. Points are constants: gradients pass to the images only.

    References
    ----------
    .. [1] A. H. Barnett, J. Magland, L. af Klinteberg. A parallel nonuniform fast Fourier transform library based on an
           "exponential of semicircle" kernel. SIAM Journal on Scientific Computing 41(5), 2019.

    Examples
    --------
    >>> op = NonUniformFourier(torch.zeros(2, 1), (4, 4))
    >>> op(torch.ones(4, 4)).real
    tensor([4.0000])
    """

    points: Tensor

    def __init__(self, points: Float[Tensor, "d m"], shape: Sequence[int], tol: float | None = None) -> None:
        try:
            from pytorch_finufft.functional import finufft_type1, finufft_type2
        except ImportError as error:
            raise ImportError("NonUniformFourier needs finufft: pip install 'hadamard[imaging]'") from error
        check_tensor(points, "points", ndim=2, shape=(len(shape), None), dtype="floating")
        check_range(points, "points", -3.1416, 3.1416, elementwise=True)  # pi in single precision is above pi
        if len(shape) not in (1, 2, 3):
            raise ValueError(f"shape must have 1, 2 or 3 sizes, got {tuple(shape)}")
        if tol is not None:
            check_range(tol, "tol", 0, 1, closed="neither")
        super().__init__(shape, points.shape[1:])
        self.tol = tol
        self._to_points: Callable = finufft_type2
        self._to_grid: Callable = finufft_type1
        self.register_buffer("points", points.detach().contiguous())

    def A(self, x: Tensor) -> Tensor:
        """Transform images to values at the points: (..., *shape) to (..., M)."""
        return with_adjoint(self.check_in(x), self._forward, self._adjoint)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Spread values at the points back over the image: (..., M) to (..., *shape)."""
        return with_adjoint(self.check_out(y), self._adjoint, self._forward)

    def _forward(self, x: Tensor) -> Tensor:
        x, options = self._prepare(x, len(self.in_shape))
        return self._to_points(self.points.to(x.real.dtype), x, isign=-1, **options) / math.sqrt(
            math.prod(self.in_shape)
        )

    def _adjoint(self, y: Tensor) -> Tensor:
        y, options = self._prepare(y, 1)
        points = self.points.to(y.real.dtype)
        return self._to_grid(points, y, self.in_shape, isign=1, **options) / math.sqrt(math.prod(self.in_shape))

    def _prepare(self, u: Tensor, dims: int) -> tuple[Tensor, dict]:
        u = u.to(torch.promote_types(u.dtype, torch.complex64)).contiguous()
        tol = self.tol or (1e-12 if u.dtype == torch.complex128 else 1e-6)
        return u, {"modeord": 0, "eps": tol, "nthreads": torch.get_num_threads()}
