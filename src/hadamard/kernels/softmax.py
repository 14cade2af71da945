"""Softmax, log-softmax and log-sum-exp as operators of PyTorch: compiled on processors, Triton or PyTorch elsewhere.

These are what :mod:`hadamard.transforms.two_pass_softmax` is made of: registered with :mod:`torch.library`, each with
the shape function that ``torch.compile`` needs, its gradient and its rule for ``torch.vmap``. PyTorch's own function
is the reference beside each one, and what runs where no kernel does.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from hadamard.kernels import triton
from hadamard.kernels.build import instruction_set, last_level_cache, library

__all__ = ["ALGORITHMS", "choose", "log_softmax", "logsumexp", "softmax", "softmax_out", "write"]

ALGORITHMS = ("auto", "two_pass", "three_pass_recompute", "three_pass_reload")

_KINDS = {name: number for number, name in enumerate((*ALGORITHMS[1:], "log_softmax", "logsumexp"))}
_TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_REFERENCE: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(ALGORITHMS, torch.softmax),
    "log_softmax": torch.log_softmax,
    "logsumexp": torch.logsumexp,
}


@torch.library.custom_op("hadamard::softmax", mutates_args=())
def softmax(x: Tensor, dim: int, algorithm: str) -> Tensor:
    """Softmax along ``dim`` (not negative) by one of ``ALGORITHMS``; the result is contiguous."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    write(algorithm, x, dim, y)
    return y


@torch.library.custom_op("hadamard::log_softmax", mutates_args=())
def log_softmax(x: Tensor, dim: int) -> Tensor:
    """Logarithm of the softmax along ``dim`` (not negative); the result is contiguous."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    write("log_softmax", x, dim, y)
    return y


@torch.library.custom_op("hadamard::logsumexp", mutates_args=())
def logsumexp(x: Tensor, dim: int) -> Tensor:
    """Logarithm of the sum of exponentials along ``dim`` (not negative), which is dropped."""
    y = torch.empty(x.shape[:dim] + x.shape[dim + 1 :], dtype=x.dtype, device=x.device)
    write("logsumexp", x, dim, y)
    return y


@torch.library.custom_op("hadamard::softmax_out", mutates_args=("out",))
def softmax_out(kind: str, x: Tensor, dim: int, out: Tensor) -> None:
    """Any of the above, ``kind`` as for :func:`write`, into a tensor that is there.

    Raises
    ------
    ValueError
        If ``out`` and ``x`` share memory and are not the same elements.
    """
    same = (x.data_ptr(), x.shape, x.stride()) == (out.data_ptr(), out.shape, out.stride())
    if not same and _overlap(x, out):
        raise ValueError("out must not partially overlap input: give a tensor of its own, or input itself")
    write(kind, x, dim, out)


def write(kind: str, x: Tensor, dim: int, out: Tensor, *, stream: bool | None = None) -> None:
    """Compute into ``out``, which may be ``x`` itself, and know nothing of autograd.

    Parameters
    ----------
    kind
        One of ``ALGORITHMS``, ``"log_softmax"`` or ``"logsumexp"``.
    x
        Floating-point tensor of any shape and strides.
    dim
        The dimension that is normalised or summed, not negative.
    out
        Result, of ``x``'s dtype and shape (for ``"logsumexp"`` without ``dim``).
    stream
        Whether the last pass writes past the caches; by default where ``out`` is larger than half of the last of
        them.

    Examples
    --------
    >>> y = torch.empty(3)
    >>> write("two_pass", torch.zeros(3), 0, y)
    >>> y
    tensor([0.3333, 0.3333, 0.3333])
    """
    if kind == "auto":
        kind = choose(x, dim)
    if x.device.type != "cpu" or instruction_set() == "torch":
        use_triton = kind == "two_pass" and x.is_cuda and triton.available()
        out.copy_(triton.softmax(x, dim) if use_triton else _REFERENCE[kind](x, dim))
    elif kind.startswith("three_pass") and dim != x.ndim - 1:
        rows = torch.empty_like(x.movedim(dim, -1), memory_format=torch.contiguous_format)
        write(kind, x.movedim(dim, -1), x.ndim - 1, rows, stream=stream)
        out.copy_(rows.movedim(-1, dim))
    elif x.ndim == 0 or x.numel() == 0:
        out.copy_(_REFERENCE[kind](x, dim))
    elif not out.is_contiguous():
        result = torch.empty_like(out, memory_format=torch.contiguous_format)
        write(kind, x, dim, result, stream=stream)
        out.copy_(result)
    else:
        _launch(kind, x.contiguous(), dim, out, stream)


def choose(x: Tensor, dim: int) -> str:
    """The algorithm for ``"auto"``: three passes where a row and its result stay in the cache, else two.

    Only two passes are shared out among threads within a row, read columns in place, and work on half precision.

    Examples
    --------
    >>> choose(torch.zeros(4, 1000), 1)
    'three_pass_reload'
    >>> choose(torch.zeros(1000, 4), 0)
    'two_pass'
    """
    n = x.shape[dim]
    rows = x.numel() // max(n, 1)
    threads = torch.get_num_threads()
    at_once = 2 * n * x.element_size() * min(rows, threads)
    splits = rows < threads and n > 2**16
    if dim != x.ndim - 1 or x.element_size() == 2 or splits or at_once >= last_level_cache():
        return "two_pass"
    return "three_pass_reload"


def _launch(kind: str, x: Tensor, dim: int, out: Tensor, stream: bool | None) -> None:
    n, inner = x.shape[dim], x.shape[dim + 1 :].numel()
    if stream is None:
        stream = out.nbytes >= last_level_cache() // 2 and out.data_ptr() != x.data_ptr()
    _compiled()(
        _TYPES[x.dtype], _KINDS[kind], x.data_ptr(), out.data_ptr(), x.numel() // (n * inner), n, inner, stream,
        torch.get_num_threads(), instruction_set() == "avx2",
    )  # fmt: skip


def _overlap(x: Tensor, y: Tensor) -> bool:
    """Whether the memory between the first and the last element of each has bytes in common."""
    ends = []
    for t in (x, y):
        last = sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))
        ends.append((t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size() if t.numel() else t.data_ptr()))
    return x.device == y.device and ends[0][0] < ends[1][1] and ends[1][0] < ends[0][1]


@cache
def _compiled() -> Callable[..., None]:
    compiled = library()
    assert compiled is not None
    function = compiled.hadamard_softmax
    number, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [number, number, pointer, pointer, size, size, size, number, size, number]
    function.restype = None
    return function


# ---- shapes, gradients and batching of the operators ----


@softmax.register_fake
def _(x: Tensor, dim: int, algorithm: str) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@log_softmax.register_fake
def _(x: Tensor, dim: int) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@logsumexp.register_fake
def _(x: Tensor, dim: int) -> Tensor:
    return torch.empty(x.shape[:dim] + x.shape[dim + 1 :], dtype=x.dtype, device=x.device)


def _keep_output(ctx, inputs: tuple, output: Tensor) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(output)
    ctx.dim = inputs[1]


def _keep_input(ctx, inputs: tuple, output: Tensor) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0])
    ctx.dim = inputs[1]


def _softmax_backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
    (y,) = ctx.saved_tensors
    return torch.ops.aten._softmax_backward_data(grad, y, ctx.dim, y.dtype), None, None


def _log_softmax_backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
    (y,) = ctx.saved_tensors
    return torch.ops.aten._log_softmax_backward_data(grad, y, ctx.dim, y.dtype), None


def _logsumexp_backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
    (x,) = ctx.saved_tensors
    return grad.unsqueeze(ctx.dim) * softmax(x, ctx.dim, "two_pass"), None


softmax.register_autograd(_softmax_backward, setup_context=_keep_output)
log_softmax.register_autograd(_log_softmax_backward, setup_context=_keep_output)
logsumexp.register_autograd(_logsumexp_backward, setup_context=_keep_input)


@softmax.register_vmap
def _(info, in_dims: tuple, x: Tensor, dim: int, algorithm: str) -> tuple[Tensor, int]:  # type: ignore[no-untyped-def]
    return softmax(x.movedim(in_dims[0], 0), dim + 1, algorithm), 0


@log_softmax.register_vmap
def _(info, in_dims: tuple, x: Tensor, dim: int) -> tuple[Tensor, int]:  # type: ignore[no-untyped-def]
    return log_softmax(x.movedim(in_dims[0], 0), dim + 1), 0


@logsumexp.register_vmap
def _(info, in_dims: tuple, x: Tensor, dim: int) -> tuple[Tensor, int]:  # type: ignore[no-untyped-def]
    return logsumexp(x.movedim(in_dims[0], 0), dim + 1), 0
