"""The place for Triton kernels: imported on first use, each one a function of tensors with PyTorch's semantics.

Triton is an extra (``pip install 'hadamard[triton]'``) and needs a GPU; with ``TRITON_INTERPRET=1`` in the environment
its interpreter runs the same kernels on any processor, which is how they are tested.
"""

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

__all__ = ["available", "softmax"]


def available() -> bool:
    """Whether Triton kernels run here: Triton is installed, and there is a GPU or the interpreter is asked for.

    Examples
    --------
    >>> available() in (True, False)
    True
    """
    return find_spec("triton") is not None and (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1")


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Softmax with two reads of the input: the first keeps a running maximum and a sum that is rescaled with it.

    Meant for many rows: each is one program's work.

    Parameters
    ----------
    x
        Floating-point tensor on a GPU; half precision is computed in float32.
    dim
        The dimension that is normalised.

    Returns
    -------
    Tensor
        Of ``x``'s shape and dtype; NaN, ``-inf`` and ``inf`` as in :func:`torch.softmax`.

    Raises
    ------
    ImportError
        If Triton is not installed.

    References
    ----------
    M. Milakov, N. Gimelshein. Online normalizer calculation for softmax. arXiv 1805.02867.
    """
    rows = x.movedim(dim, -1).contiguous()
    y = torch.empty_like(rows)
    n = x.shape[dim]
    if x.numel():
        block = min(1 << (n - 1).bit_length(), 8192)
        _softmax_kernel()[(x.numel() // n,)](rows, y, n, block)
    return y.movedim(-1, dim)


def _import_triton() -> Any:
    try:
        import triton
    except ImportError as error:
        raise ImportError("Triton kernels need Triton: pip install 'hadamard[triton]'") from error
    return triton


@cache
def _softmax_kernel() -> Any:
    triton = _import_triton()
    import triton.language as tl

    @triton.jit
    def kernel(x, y, n, block: tl.constexpr):  # type: ignore[no-untyped-def]
        start_of_row = tl.program_id(0).to(tl.int64) * n
        wide = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
        within = tl.arange(0, block)
        top = tl.full((), float("-inf"), wide)
        shift = tl.full((), 0.0, wide)
        total = tl.full((), 0.0, wide)
        for start in range(0, n, block):
            at = start + within
            v = tl.load(x + start_of_row + at, mask=at < n, other=float("-inf")).to(wide)
            higher = tl.maximum(top, tl.max(v, axis=0))
            shift = tl.where(higher == float("-inf"), 0.0, higher)  # so far all masked: nothing to subtract
            total = total * tl.exp(top - shift) + tl.sum(tl.exp(v - shift), axis=0)
            top = higher
        for start in range(0, n, block):
            at = start + within
            v = tl.load(x + start_of_row + at, mask=at < n, other=float("-inf")).to(wide)
            tl.store(y + start_of_row + at, (tl.exp(v - shift) / total).to(y.dtype.element_ty), mask=at < n)

    return kernel
