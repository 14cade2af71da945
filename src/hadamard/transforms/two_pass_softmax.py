"""Softmax with two sweeps over memory instead of three, for rows that do not fit in the cache.

A softmax that must not overflow usually reads its input three times: for the maximum, for the sum of
exponentials, and to write the result. Here every exponential is kept as a pair (m, n) that means m 2^n, with n a
floating-point number of practically unbounded range. In this form nothing overflows and no maximum is needed, so one
sweep sums and the next one writes. Where memory is the bottleneck that saves a quarter of the traffic. Rows that
stay in the cache are better served by three passes; ``algorithm="auto"`` knows.

References
----------
M. Dukhan, A. Ablavatski. The Two-Pass Softmax Algorithm. IPDPS Workshops 2020. arXiv 2001.04438.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from hadamard.kernels import softmax as kernels
from hadamard.validation import check_option, check_same, check_tensor

__all__ = ["TwoPassSoftmax", "log_softmax", "logsumexp", "softmax"]

_WORTHWHILE = 2**16  # elements below which calling an operator costs more than it saves
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def softmax(
    input: Real[Tensor, "*shape"],
    dim: int = -1,
    dtype: torch.dtype | None = None,
    *,
    out: Tensor | None = None,
    algorithm: str = "auto",
) -> Float[Tensor, "*shape"]:
    """Softmax along one dimension, as :func:`torch.softmax`, by two passes over memory where these are faster.

    One long row is shared out among threads, where PyTorch's own function uses one. Autograd (twice),
    ``torch.compile`` and ``torch.vmap`` see through it.

    Parameters
    ----------
    input
        Tensor of any shape and strides in float32, float64, float16 or bfloat16. Half precision is computed in
        float32. ``-inf`` masks an entry. NaN, ``inf`` and a row of ``-inf`` only make the whole row NaN, as in
        PyTorch.
    dim
        The dimension that is normalised.
    dtype
        Type that ``input`` is converted to first.
    out
        Where the result is written: of its shape and dtype, and ``input`` itself if you like. Not differentiable.
    algorithm
        ``"two_pass"``; ``"three_pass_recompute"`` and ``"three_pass_reload"`` are the usual scheme, which
        exponentiates twice, or once and keeps the values in the result until they are scaled (not in half precision,
        where it recomputes). Only ``"two_pass"`` splits a row among threads and reads columns in place. ``"auto"``
        takes ``"three_pass_reload"`` where a row stays in the cache, ``"two_pass"`` where it does not, and PyTorch's
        own function for small tensors and on other devices. On a GPU ``"two_pass"`` is a Triton kernel where
        Triton is installed. Without compiled kernels all of them are PyTorch's own function.

    Returns
    -------
    Tensor
        Contiguous, of ``input``'s shape. Values below the smallest normal number are 0 (PyTorch keeps denormals).

    Raises
    ------
    TypeError
        If ``input`` is not a floating-point tensor, or ``out`` has another dtype.
    ValueError
        If ``algorithm`` is unknown, or ``out`` has another shape, partially overlaps ``input``, or is asked for
        where a gradient is wanted.
    IndexError
        If ``dim`` is out of range.

    Notes
    -----
    The paper's kernels sum a row in float32 throughout and make NaN of ``-inf``. Here the sum is closed every 4096
    elements and continued in float64, so the error does not grow with the row, and a row whose largest entry exceeds
    1.4 million in magnitude goes the usual way.

    Examples
    --------
    >>> scores = torch.tensor([[1e4, 1e4, float("-inf")]])
    >>> softmax(scores)
    tensor([[0.5000, 0.5000, 0.0000]])
    >>> logits = torch.randn(2**20)
    >>> torch.allclose(softmax(logits, algorithm="two_pass"), torch.softmax(logits, 0), rtol=1e-5)
    True
    """
    check_option(algorithm, "algorithm", kernels.ALGORITHMS)
    x = _floating(input, dtype)
    dim = _dimension(dim, x.ndim)
    if out is not None:
        return _into(out, algorithm, x, dim, x.shape)
    if _left_to_torch(x, algorithm):
        return torch.softmax(x, dim)
    return kernels.softmax(x, dim, algorithm)


def log_softmax(
    input: Real[Tensor, "*shape"],
    dim: int = -1,
    dtype: torch.dtype | None = None,
    *,
    out: Tensor | None = None,
) -> Float[Tensor, "*shape"]:
    """Logarithm of the softmax along one dimension, as :func:`torch.log_softmax`, by two passes over memory.

    The logarithm of the sum is subtracted in two parts, so the result is as exact for large ``input`` as with the
    maximum subtracted.

    Parameters
    ----------
    input, dim, dtype, out
        As for :func:`softmax`.

    Returns
    -------
    Tensor
        Contiguous, of ``input``'s shape; ``-inf`` where ``input`` is.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for :func:`softmax`.

    Examples
    --------
    >>> log_softmax(torch.tensor([1e4, 1e4]))
    tensor([-0.6931, -0.6931])
    """
    x = _floating(input, dtype)
    dim = _dimension(dim, x.ndim)
    if out is not None:
        return _into(out, "log_softmax", x, dim, x.shape)
    if _left_to_torch(x, "auto"):
        return torch.log_softmax(x, dim)
    return kernels.log_softmax(x, dim)


def logsumexp(
    input: Float[Tensor, "*shape"],
    dim: int | Sequence[int] = -1,
    keepdim: bool = False,
    *,
    out: Tensor | None = None,
) -> Float[Tensor, "*reduced"]:
    """Logarithm of the sum of exponentials, as :func:`torch.logsumexp`, by one pass over memory.

    Parameters
    ----------
    input
        As for :func:`softmax`. A row of ``-inf`` only gives ``-inf``, a row with ``inf`` gives ``inf``.
    dim
        The dimension or dimensions that are summed.
    keepdim
        Whether they stay, with length 1.
    out
        As for :func:`softmax`, but may not overlap ``input`` at all.

    Returns
    -------
    Tensor
        ``input``'s shape without ``dim``, or with 1 there.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for :func:`softmax`; ``ValueError`` too if a dimension is given twice.

    Examples
    --------
    >>> logsumexp(torch.full((3, 4), 1000.0), dim=1)
    tensor([1001.3863, 1001.3863, 1001.3863])
    """
    x = _floating(input, None)
    dims = sorted(_dimension(d, x.ndim) for d in ([dim] if isinstance(dim, int) else dim))
    if len(set(dims)) < len(dims) or not dims:
        raise ValueError(f"dim must name one or more different dimensions, got {dim}")
    shape = [1 if d in dims else n for d, n in enumerate(x.shape) if keepdim or d not in dims]
    if out is None and _left_to_torch(x, "auto"):
        return torch.logsumexp(x, dims, keepdim)
    if len(dims) > 1:
        x = x.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))
        dims = [x.ndim - 1]
    if out is not None:
        return _into(out, "logsumexp", x, dims[0], torch.Size(shape))
    return kernels.logsumexp(x, dims[0]).reshape(shape)


class TwoPassSoftmax(nn.Module):
    """Softmax along one dimension as a layer; takes the place of :class:`torch.nn.Softmax`.

    Parameters
    ----------
    dim
        The dimension that is normalised.
    algorithm
        As for :func:`softmax`.

    Raises
    ------
    ValueError
        If ``algorithm`` is unknown.

    Examples
    --------
    >>> TwoPassSoftmax(dim=0)(torch.zeros(2, 3))
    tensor([[0.5000, 0.5000, 0.5000],
            [0.5000, 0.5000, 0.5000]])
    """

    def __init__(self, dim: int = -1, algorithm: str = "auto") -> None:
        super().__init__()
        self.dim = dim
        self.algorithm = check_option(algorithm, "algorithm", kernels.ALGORITHMS)

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Softmax of ``input``."""
        return softmax(input, self.dim, algorithm=self.algorithm)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"dim={self.dim}, algorithm={self.algorithm!r}"


def _floating(input: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The input in the type that is computed with; unlike elsewhere it may be empty, infinite or NaN."""
    if not isinstance(input, Tensor) or input.numel():
        check_tensor(input, "input", dtype="floating" if dtype is None else None, finite=False)
    x = input if dtype is None else input.to(dtype)
    if x.dtype not in _DTYPES:
        raise TypeError(f"input must be converted to float32, float64, float16 or bfloat16, got {x.dtype}")
    return x


def _dimension(dim: int, ndim: int) -> int:
    """``dim`` counted from the front; a scalar counts as having one dimension."""
    size = max(ndim, 1)
    if not -size <= dim < size:
        raise IndexError(f"dim must be between {-size} and {size - 1}, got {dim}")
    return dim % size


def _left_to_torch(x: Tensor, algorithm: str) -> bool:
    return x.ndim == 0 or x.numel() == 0 or (algorithm == "auto" and (x.numel() < _WORTHWHILE or not x.is_cpu))


def _into(out: Tensor, kind: str, x: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """The result written to ``out``, which is returned."""
    check_same(input=x, out=out)
    if out.shape != shape:
        raise ValueError(f"out must have shape {tuple(shape)}, got {tuple(out.shape)}")
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise ValueError("out cannot be given where a gradient is wanted: use torch.no_grad() or leave it out")
    kernels.softmax_out(kind, x, dim, out)
    return out
