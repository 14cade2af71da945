"""The dense fast Walsh-Hadamard transform."""

from jaxtyping import Float
from torch import Tensor

from hadamard.kernels.walsh import walsh
from hadamard.validation import check_option, check_tensor

__all__ = ["fwht"]


def fwht(x: Float[Tensor, "*shape"], dim: int = -1, norm: str = "backward") -> Float[Tensor, "*shape"]:
    """Transform by the Walsh-Hadamard matrix in natural order: ``X[k] = sum_m x[m] (-1)^<m, k>``.

    Parameters
    ----------
    x
        Real tensor whose size along ``dim`` is a power of two, ``N``; the other dimensions are batch dimensions.
    dim
        The dimension to transform.
    norm
        ``"backward"``: no scaling; ``"ortho"``: ``1 / sqrt(N)``; ``"forward"``: ``1 / N``.

    Returns
    -------
    Tensor
        Of the shape of ``x``. The transform is its own adjoint, and its own inverse but for the factor ``N``.

    Raises
    ------
    TypeError
        If ``x`` is not a floating tensor.
    ValueError
        If the size is no power of two, or ``norm`` is unknown.

    Examples
    --------
    >>> import torch
    >>> fwht(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tensor([1., 1., 1., 1.])
    >>> fwht(fwht(torch.arange(4.0)), norm="forward")
    tensor([0., 1., 2., 3.])
    """
    check_tensor(x, "x", dtype="floating", finite=False)
    check_option(norm, "norm", ("backward", "ortho", "forward"))
    n = x.shape[dim]
    if n & (n - 1):
        raise ValueError(f"x must have a power of two entries along dim {dim}, got {n}")
    scale = {"backward": 1.0, "ortho": n**-0.5, "forward": 1 / n}[norm]
    y = walsh(x.movedim(dim, -1))
    return (y if norm == "backward" else y * scale).movedim(-1, dim)
