"""One convolution through the Fourier transform, its adjoint and its gradients: any dimensions, real or complex."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Inexact
from torch import Tensor

from hadamard.spectral.fft import good_size
from hadamard.validation import check_option, check_same, check_tensor

__all__ = ["Spectrum", "convolve", "convolve_backward", "correlate", "spectrum"]

_MODES = ("causal", "full", "circular")


@dataclass(frozen=True)
class Spectrum:
    """A kernel's transform, made once and used for many signals (``norm="backward"``).

    Attributes
    ----------
    values
        Transform of the zero-padded kernel: half of it along the last dimension where ``real``.
    sizes
        Sizes of the transform.
    lengths
        Sizes of the kernel.
    real
        Whether it serves real signals (:func:`torch.fft.rfftn`) or complex ones.
    """

    values: Tensor
    sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    real: bool


def spectrum(
    k: Inexact[Tensor, "..."], n: int | Sequence[int], dims: int | Sequence[int] = -1, real: bool = True
) -> Spectrum:
    """Transform a kernel for repeated use in :func:`convolve` and :func:`correlate`.

    Parameters
    ----------
    k
        Kernel; half precision is transformed in float32.
    n
        Transform size of each dimension in ``dims``, at least the kernel's.
    dims
        Dimensions of the convolution.
    real
        Whether the signals are real.

    Raises
    ------
    ValueError
        If a size is less than the kernel's, or ``real`` is asked for with a complex kernel.

    Examples
    --------
    >>> spectrum(torch.ones(3), 8).values.shape
    torch.Size([5])
    """
    check_tensor(k, "k", finite=False)
    axes = _axes(dims, k.ndim)
    sizes = (n,) if isinstance(n, int) else tuple(n)
    lengths = tuple(k.shape[d] for d in axes)
    if len(sizes) != len(axes) or any(size < length for size, length in zip(sizes, lengths)):
        raise ValueError(f"n must be at least the kernel's size {lengths} in each of {len(axes)} dimensions, got {n}")
    if real and k.is_complex():
        raise ValueError("real must be False for a complex kernel k")
    return Spectrum(_forward(_upcast(k), sizes, axes, real), sizes, lengths, real)


def convolve(
    u: Inexact[Tensor, "..."],
    k: Inexact[Tensor, "..."],
    *,
    dims: int | Sequence[int] = -1,
    mode: str = "causal",
    spectrum: Spectrum | None = None,
) -> Inexact[Tensor, "..."]:
    """Convolve, ``y[i] = sum_j k[j] u[i - j]``, in O(n log n).

    Parameters
    ----------
    u
        Signal; its other dimensions broadcast against those of ``k``.
    k
        Kernel, shorter or longer than the signal.
    dims
        Dimensions along which to convolve, counted from the end where the two have different ranks.
    mode
        ``"causal"``: as many outputs as inputs, zeros before the start; ``"full"``: all ``L + Lk - 1`` outputs;
        ``"circular"``: indices modulo the signal's length.
    spectrum
        The transform of ``k`` by :func:`spectrum`, at a size at which nothing wraps (``"circular"``: exactly the
        signal's); made here where it is not given.

    Returns
    -------
    Tensor
        In the signal's precision; complex if either input is.

    Raises
    ------
    ValueError
        If ``mode`` is unknown, the devices differ, or ``spectrum`` has a size that does not fit.

    Notes
    -----
    Zeros are never written out: the transforms pad as they read.

    Examples
    --------
    >>> convolve(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0])).round()
    tensor([1., 3., 5.])
    >>> convolve(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0]), mode="full").round()
    tensor([1., 3., 5., 3.])
    """
    axes, lengths, kernel, plan = _prepare(u, k, dims, mode, spectrum)
    outputs = tuple(n + m - 1 for n, m in zip(lengths, plan.lengths)) if mode == "full" else lengths
    y = _inverse(_times(_forward(_upcast(u), plan.sizes, axes, plan.real), plan.values), plan, axes)
    return _crop(y, axes, outputs).to(torch.promote_types(u.dtype, kernel.dtype) if not plan.real else u.dtype)


def correlate(
    y: Inexact[Tensor, "..."],
    k: Inexact[Tensor, "..."],
    *,
    dims: int | Sequence[int] = -1,
    mode: str = "causal",
    spectrum: Spectrum | None = None,
) -> Inexact[Tensor, "..."]:
    """Correlate, ``x[j] = sum_i conj(k[i - j]) y[i]``: the adjoint of ``u -> convolve(u, k, mode=mode)``.

    Parameters
    ----------
    y
        What :func:`convolve` gives: as long as the signal, or ``L + Lk - 1`` for ``mode="full"``.
    k, dims, mode, spectrum
        As for :func:`convolve`.

    Returns
    -------
    Tensor
        As long as the signal.

    Raises
    ------
    ValueError
        As :func:`convolve`, or if ``y`` is shorter than the kernel for ``mode="full"``.

    Examples
    --------
    >>> correlate(torch.tensor([1.0, 3.0, 5.0, 3.0]), torch.tensor([1.0, 1.0]), mode="full").round()
    tensor([4., 8., 8.])
    """
    axes, lengths, kernel, plan = _prepare(y, k, dims, mode, spectrum, adjoint=True)
    outputs = tuple(n - m + 1 for n, m in zip(lengths, plan.lengths)) if mode == "full" else lengths
    if min(outputs) < 1:
        raise ValueError(f"y must be at least as long as the kernel {plan.lengths} for mode='full', got {lengths}")
    x = _inverse(_times(_forward(_upcast(y), plan.sizes, axes, plan.real), plan.values.conj()), plan, axes)
    return _crop(x, axes, outputs).to(torch.promote_types(y.dtype, kernel.dtype) if not plan.real else y.dtype)


def convolve_backward(
    grad: Inexact[Tensor, "..."],
    u: Inexact[Tensor, "..."],
    k: Inexact[Tensor, "..."],
    *,
    dims: int | Sequence[int] = -1,
    mode: str = "causal",
    spectrum: Spectrum | None = None,
) -> tuple[Inexact[Tensor, "..."], Inexact[Tensor, "..."]]:
    """Pull a gradient back through :func:`convolve` to the signal and the kernel, keeping no spectrum in between.

    The kernel's gradient is summed over what the kernel was broadcast along before it is transformed back: one inverse
    transform serves a whole batch.

    Parameters
    ----------
    grad
        Gradient with respect to the result, and of its shape.
    u, k, dims, mode, spectrum
        What :func:`convolve` was given.

    Returns
    -------
    grad_u, grad_k
        Of the shapes of ``u`` and ``k``.

    Raises
    ------
    ValueError
        As :func:`convolve`.

    Examples
    --------
    >>> u, k = torch.randn(8, 3, 16), torch.randn(3, 5)
    >>> grad_u, grad_k = convolve_backward(torch.ones(8, 3, 16), u, k)
    >>> grad_u.shape, grad_k.shape
    (torch.Size([8, 3, 16]), torch.Size([3, 5]))
    """
    axes, lengths, kernel, plan = _prepare(u, k, dims, mode, spectrum)
    pulled = _forward(_upcast(grad), plan.sizes, axes, plan.real)
    product = pulled * _forward(_upcast(u), plan.sizes, axes, plan.real).conj()
    broadcast = [d for d in range(-product.ndim, 0) if d not in axes and (-d > kernel.ndim or kernel.shape[d] == 1)]
    product = product.sum(broadcast, keepdim=True) if broadcast else product
    product = product.reshape(product.shape[product.ndim - kernel.ndim :])
    grad_k = _crop(_inverse(product, plan, axes), axes, plan.lengths)
    for d in axes:  # taps that no output saw, or that were added up on one index
        if mode == "circular":
            grad_k = grad_k.index_select(d, torch.arange(k.shape[d], device=k.device) % grad_k.shape[d])
        elif k.shape[d] > grad_k.shape[d]:
            grad_k = torch.cat([grad_k, grad_k.new_zeros(_resized(grad_k, d, k.shape[d] - grad_k.shape[d]))], d)
    grad_u = _crop(_inverse(_times(pulled, plan.values.conj()), plan, axes), axes, lengths)
    if grad_u.shape != u.shape:
        grad_u = grad_u.sum_to_size(u.shape)
    as_given = [(g if x.is_complex() or plan.real else g.real).to(x.dtype) for g, x in ((grad_u, u), (grad_k, k))]
    return as_given[0], as_given[1]


def _prepare(
    u: Tensor, k: Tensor, dims: int | Sequence[int], mode: str, given: Spectrum | None, adjoint: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...], Tensor, Spectrum]:
    """Check the arguments and transform the kernel at a size at which nothing wraps that must not."""
    check_tensor(u, "y" if adjoint else "u", finite=False)
    check_tensor(k, "k", finite=False)
    check_option(mode, "mode", _MODES)
    check_same(u=u.real, k=k.real.to(u.real.dtype))
    axes = _axes(dims, max(u.ndim, k.ndim))
    lengths = tuple(u.shape[d] for d in axes)
    if mode == "causal":  # taps beyond the signal's length meet zeros only
        for d, n in zip(axes, lengths):
            k = k.narrow(d, 0, min(n, k.shape[d]))
    elif mode == "circular":
        for d, n in zip(axes, lengths):
            k = _wrap(k, d, n)
    kernel_lengths = tuple(k.shape[d] for d in axes)
    real = not (u.is_complex() or k.is_complex())
    if mode == "circular":
        least = sizes = lengths
    else:
        least = lengths if mode == "full" and adjoint else tuple(n + m - 1 for n, m in zip(lengths, kernel_lengths))
        sizes = ()
    if given is None:
        sizes = sizes or tuple(good_size(n, real=real) for n in least)
        return axes, lengths, k, Spectrum(_forward(_upcast(k), sizes, axes, real), sizes, kernel_lengths, real)
    fits = given.sizes == sizes if mode == "circular" else all(s >= n for s, n in zip(given.sizes, least))
    if given.real != real or len(given.sizes) != len(axes) or not fits:
        wanted = "exactly" if mode == "circular" else "at least"
        raise ValueError(
            f"spectrum must be of a {'real' if real else 'complex'} transform of {wanted} {least} points, "
            f"got {'real' if given.real else 'complex'}, {given.sizes}"
        )
    return axes, lengths, k, given


def _forward(x: Tensor, sizes: tuple[int, ...], axes: tuple[int, ...], real: bool) -> Tensor:
    return (torch.fft.rfftn if real else torch.fft.fftn)(x, s=sizes, dim=axes)


def _inverse(x: Tensor, plan: Spectrum, axes: tuple[int, ...]) -> Tensor:
    return (torch.fft.irfftn if plan.real else torch.fft.ifftn)(x, s=plan.sizes, dim=axes)


def _times(x: Tensor, spectrum: Tensor) -> Tensor:
    """A product into ``x``, which nobody else sees, unless autograd must know it."""
    fits = spectrum.ndim <= x.ndim and all(n in (1, m) for n, m in zip(reversed(spectrum.shape), reversed(x.shape)))
    return x.mul_(spectrum) if fits and not torch.is_grad_enabled() else x * spectrum


def _crop(y: Tensor, axes: tuple[int, ...], lengths: tuple[int, ...]) -> Tensor:
    for d, n in zip(axes, lengths):
        y = y.narrow(d, 0, n)
    return y


def _wrap(k: Tensor, d: int, n: int) -> Tensor:
    """Add up the taps that fall on the same index modulo ``n``."""
    if k.shape[d] <= n:
        return k
    return torch.stack([part.sum(d) for part in _strided(k, d, n)], dim=d)


def _strided(k: Tensor, d: int, n: int) -> list[Tensor]:
    index = torch.arange(k.shape[d], device=k.device)
    return [k.index_select(d, index[start::n]) for start in range(n)]


def _resized(x: Tensor, d: int, n: int) -> list[int]:
    shape = list(x.shape)
    shape[d] = n
    return shape


def _axes(dims: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Dimensions as negative numbers, so that they mean the same in tensors of different ranks."""
    given = (dims,) if isinstance(dims, int) else tuple(dims)
    return tuple(d if d < 0 else d - ndim for d in given)


def _upcast(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
