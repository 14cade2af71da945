"""Orthogonal convolutions: the regulariser, what it guarantees for every image size, and singular values.

A convolution with kernel ``K`` of shape (M, C, k...), stride S and circular padding maps C channels on S N pixels an
axis to M channels on N. Its matrix ``calK`` is orthogonal if its rows (``M <= C S^d``) or its columns
(``M >= C S^d``) are orthonormal; then it keeps lengths, and gradients, as they are. Written in polyphases it is an
ordinary convolution from ``C S^d`` channels to M with ``k' = ceil(k / S)`` taps an axis, and its smaller Gram matrix
consists of ``(2 k' - 1)^d`` blocks, the correlations of the filters with each other::

    G_s = sum_t K[t] K[t + s]^T            (rows; for columns with K[t]^T in place of K[t])
    L_orth(K) = sum_s || G_s - delta_s I ||_F^2

No block depends on N, and so neither does the regulariser's cost. If ``S N >= 2 k - 1``, then
``|| calK calK^T - I ||_F^2 = N^d L_orth(K)`` (or ``calK^T calK``) holds exactly.

References
----------
E. M. Achour, F. Malgouyres, F. Mamalet, "Existence, Stability and Scalability of Orthogonal Convolutional Neural
Networks", JMLR 23(347), 2022, arXiv:2108.05623. The regulariser is that of J. Wang, Y. Chen, R. Chakraborty, S. X. Yu,
"Orthogonal Convolutional Neural Networks", CVPR 2020; the symbol's singular values H. Sedghi, V. Gupta, P. M. Long,
"The Singular Values of Convolutional Layers", ICLR 2019.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hadamard.layers.orthogonal_conv_existence import per_axis
from hadamard.validation import check_range, check_tensor

__all__ = ["conv_singular_values", "isometry_bounds", "lorth"]

_CORRELATE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def lorth(
    weight: Float[Tensor, "out in *kernel"], stride: int | Sequence[int] = 1, groups: int = 1
) -> Float[Tensor, ""]:
    """Measure how far a convolution is from orthogonal: 0 exactly where it is, whatever the image size.

    Parameters
    ----------
    weight
        Kernel of a convolution in one, two or three dimensions, as ``torch.nn`` keeps it: (out_channels,
        in_channels / groups, k...). The kernel of a transposed convolution is taken as it is, too: the layer is the
        adjoint, and one is orthogonal if the other is.
    stride
        Of the convolution, one number or one an axis.
    groups
        Of the convolution.

    Returns
    -------
    Tensor
        ``L_orth``, a non-negative number that can be differentiated; half precision is computed in float32.

    Raises
    ------
    TypeError
        If ``weight`` is not a floating tensor.
    ValueError
        If it is not a kernel, not finite, or ``stride`` or ``groups`` do not fit it.

    Notes
    -----
    The paper correlates the M filters and, where ``M > C S^d``, subtracts ``M - C S^d`` at the end. Here the columns
    are correlated instead in that case: the same number, without cancellation, from fewer operations. Kernels need not
    be square. A dilated convolution of stride 1 has the same ``L_orth`` as the one without dilation.

    Examples
    --------
    >>> shift = torch.zeros(2, 2, 3, 3)
    >>> shift[0, 1, 0, 2] = shift[1, 0, 1, 1] = 1.0
    >>> lorth(shift)
    tensor(0.)
    >>> lorth(2 * shift)
    tensor(18.)
    """
    return _deviations(weight, stride, groups).square().sum()


def isometry_bounds(
    weight: Float[Tensor, "out in *kernel"], stride: int | Sequence[int] = 1, groups: int = 1
) -> tuple[float, float]:
    """Bound all singular values of a convolution with circular padding, for images of every size at once.

    Parameters
    ----------
    weight, stride, groups
        As in :func:`lorth`.

    Returns
    -------
    tuple of float
        Numbers ``(low, high)`` between which every singular value lies; ``low`` is 0 where nothing better is known.
        ``high`` also bounds the layer with zero padding or with none, whose border rows are parts of the others.

    Raises
    ------
    TypeError, ValueError
        As :func:`lorth`.

    Notes
    -----
    With ``eps = sum_s || G_s - delta_s I ||_2`` the bounds are ``sqrt(1 - eps)`` and ``sqrt(1 + eps)``, computed in
    float64. By the inequality of Cauchy and Schwarz ``eps^2 <= (2 k' - 1)^d L_orth``, which is the paper's bound
    without its factor M or C. Far from orthogonality it is loose; :func:`conv_singular_values` is exact for one size.

    Examples
    --------
    >>> isometry_bounds(torch.eye(2)[:, :, None])
    (1.0, 1.0)
    """
    with torch.no_grad():
        blocks = _deviations(weight.double() if isinstance(weight, Tensor) else weight, stride, groups)
        pairs = blocks.flatten(3).permute(0, 3, 1, 2)  # (groups, shifts, m, m); those of s and -s are transposes
        norms = torch.linalg.matrix_norm(pairs[:, : pairs.shape[1] // 2 + 1], ord=2)
        eps = float((2 * norms.sum(1) - norms[:, -1]).max())
    return max(1 - eps, 0.0) ** 0.5, (1 + eps) ** 0.5


def conv_singular_values(
    weight: Float[Tensor, "out in *kernel"],
    input_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    groups: int = 1,
) -> Float[Tensor, " n"]:
    """Compute all singular values of a convolution with circular padding, one frequency at a time.

    Parameters
    ----------
    weight, stride, groups
        As in :func:`lorth`.
    input_size
        Pixels of the input along each axis, one number or one an axis; multiples of the stride.

    Returns
    -------
    Tensor
        The ``min(M N^d, C (S N)^d)`` singular values, largest first. They can be differentiated; half precision is
        computed in float32.

    Raises
    ------
    TypeError, ValueError
        As :func:`lorth`, or if ``input_size`` is no multiple of the stride.

    Notes
    -----
    At each of the ``N^d`` frequencies the convolution is a matrix of shape (M, C S^d); their singular values together
    are those of the whole. Frequencies of opposite sign share them, so half are computed. Images smaller than the
    kernel are allowed.

    Examples
    --------
    >>> blur = torch.tensor([[[0.5, 0.5]]])
    >>> conv_singular_values(blur, 4).round(decimals=4) + 0.0
    tensor([1.0000, 0.7071, 0.7071, 0.0000])
    """
    kernel, strides = _polyphase(weight, stride, groups)
    sizes = per_axis(input_size, "input_size", len(strides))
    if any(n % s for n, s in zip(sizes, strides)):
        raise ValueError(f"input_size must be a multiple of the stride {strides}, got {sizes}")
    symbol = kernel.to(torch.promote_types(kernel.dtype, torch.complex64))
    for axis, (n, s) in enumerate(zip(sizes, strides)):
        frequencies = torch.arange(n // s, device=kernel.device, dtype=kernel.dtype) / (n // s)
        if axis == len(sizes) - 1:
            frequencies = frequencies[: n // s // 2 + 1]
        taps = torch.arange(kernel.shape[3 + axis], device=kernel.device, dtype=kernel.dtype)
        wave = torch.exp(-2j * torch.pi * frequencies[:, None] * taps).to(symbol.dtype)
        symbol = torch.tensordot(symbol, wave, dims=([3], [1]))  # the next axis of taps moves up, frequencies go last
    values = torch.linalg.svdvals(symbol.movedim((1, 2), (-2, -1)))
    last = sizes[-1] // strides[-1]
    mirrored = values[..., 1 : (last + 1) // 2, :]
    return torch.cat([values.flatten(), mirrored.flatten()]).sort(descending=True).values


def _deviations(weight: Tensor, stride: int | Sequence[int], groups: int) -> Tensor:
    """Blocks ``G_s - delta_s I`` of the smaller Gram matrix: (groups, m, m, 2 k' - 1, ...)."""
    kernel, _ = _polyphase(weight, stride, groups)
    if kernel.shape[1] > kernel.shape[2]:
        kernel = kernel.transpose(1, 2)
    m, taps = kernel.shape[1], kernel.shape[3:]
    with torch.autocast(kernel.device.type, enabled=False):
        signals = kernel.transpose(0, 1).flatten(1, 2)  # filter i of every group is image i of a batch
        blocks = _CORRELATE[len(taps)](signals, kernel.flatten(0, 1), padding=[t - 1 for t in taps], groups=groups)
    blocks = blocks.unflatten(1, (groups, m)).transpose(0, 1)
    centre = blocks.new_zeros(blocks.shape[3:])
    centre[tuple(t - 1 for t in taps)] = 1
    identity = torch.eye(m, dtype=blocks.dtype, device=blocks.device).view(m, m, *[1] * len(taps))
    return blocks - identity * centre


def _polyphase(weight: Tensor, stride: int | Sequence[int], groups: int) -> tuple[Tensor, tuple[int, ...]]:
    """The convolution of stride 1 on ``C S^d`` channels that is the same map: (groups, m, c S^d, k', ...)."""
    check_tensor(weight, "weight", ndim=(3, 4, 5), dtype="floating")
    check_range(groups, "groups", 1, integer=True)
    if weight.shape[0] % groups:
        raise ValueError(f"groups must divide the {weight.shape[0]} filters of weight, got {groups}")
    kernel = weight.float() if weight.dtype in (torch.half, torch.bfloat16) else weight
    kernel = kernel.unflatten(0, (groups, -1))
    strides = per_axis(stride, "stride", kernel.ndim - 3)
    for axis, s in enumerate(strides):
        if s > 1:
            dim = 3 + axis
            after = [0] * (2 * (kernel.ndim - dim) - 1) + [-kernel.shape[dim] % s]
            kernel = F.pad(kernel, after).unflatten(dim, (-1, s)).movedim(dim + 1, 3).flatten(2, 3)
    return kernel, strides
