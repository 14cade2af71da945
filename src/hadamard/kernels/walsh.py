"""The dense Walsh-Hadamard transform as an operator of PyTorch: compiled on processors, matrix products elsewhere."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hadamard.kernels.build import instruction_set, library

__all__ = ["reference", "walsh"]


torch.library.define("hadamard::walsh", "(Tensor x) -> Tensor")  # (custom_op loads dynamo at the first call)


def walsh(x: Tensor) -> Tensor:
    """Unscaled transform along the last dimension, whose size is a power of two; the result is contiguous.

    Examples
    --------
    >>> walsh(torch.tensor([1.0, 2.0]))
    tensor([ 3., -1.])
    """
    return torch.ops.hadamard.walsh(x)


@torch.library.impl("hadamard::walsh", "default")
def _transform(x: Tensor) -> Tensor:
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or instruction_set() == "torch":
        return reference(x)
    y = x.clone(memory_format=torch.contiguous_format)
    n = y.shape[-1]
    if y.numel():
        _compiled()(
            y.data_ptr(), y.dtype == torch.float64, y.numel() // n, n, torch.get_num_threads(),
            instruction_set() == "avx2",
        )  # fmt: skip
    return y


def reference(x: Tensor) -> Tensor:
    """Do the same in plain PyTorch, by products with small Hadamard matrices.

    Examples
    --------
    >>> reference(torch.tensor([1.0, 2.0]))
    tensor([ 3., -1.])
    """
    n = x.shape[-1]
    y, done = x.contiguous().clone(), 1
    while done < n:
        radix = min(64, n // done)
        h = _matrix(radix, x)
        y = (h @ y.reshape(-1, n // (done * radix), radix, done)).reshape(x.shape)
        done *= radix
    return y


def _matrix(n: int, like: Tensor) -> Tensor:
    h = like.new_ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


@cache
def _compiled() -> Callable[..., None]:
    compiled = library()
    assert compiled is not None
    function = compiled.hadamard_fwht
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    function.restype = None
    return function


@torch.library.register_fake("hadamard::walsh")
def _(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.register_vmap("hadamard::walsh")
def _(info: Any, in_dims: tuple, x: Tensor) -> tuple[Tensor, int]:
    return walsh(x.movedim(in_dims[0], 0)), 0


torch.library.register_autograd("hadamard::walsh", lambda ctx, grad: walsh(grad))
