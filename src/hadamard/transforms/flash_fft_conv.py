"""Gated convolutions with filters as long as the sequence, through FFTs whose intermediate results are never stored.

``y = postgate * (k conv (pregate * u))``, channel by channel. Through an FFT this costs O(N log N), but a plain program
writes the padded signal, its spectrum, the product and the padded result to memory, and autograd keeps them. Here a
part at a time goes all the way, padding and gates included, and the backward pass makes the spectra again. On a GPU one
Triton kernel does it, with the transform as products of small matrices (see :mod:`hadamard.transforms.monarch`).

References
----------
D. Y. Fu, H. Kumbong, E. Nguyen, C. Re, "FlashFFTConv: Efficient Convolutions for Long Sequences with Tensor Cores",
ICLR 2024, arXiv:2311.05908.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.kernels import triton
from hadamard.spectral import spectrum
from hadamard.transforms._fft_conv import Gates, Sparse, Windows, gated_conv, plan_windows
from hadamard.transforms._fused_conv import FusedRows, fused_conv, fused_factors
from hadamard.transforms.fft_conv_cost import cost_model
from hadamard.transforms.monarch import FrequencySparse, balanced_factors, by_fft, by_products
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["FlashFFTConv", "PreparedFilter", "fft_conv"]

_BACKENDS = ("auto", "fft", "monarch", "triton")


@dataclass(frozen=True)
class PreparedFilter:
    """A filter and its spectrum, made once by :meth:`FlashFFTConv.prepare` for use without gradients.

    Attributes
    ----------
    taps
        The filter, (H, Lk).
    length
        The signals' length that it serves.
    windows
        How it is applied, with the spectrum.
    """

    taps: Tensor
    length: int
    windows: Windows


class FlashFFTConv(nn.Module):
    """Long convolution modulo ``seqlen``; takes the place of ``irfft(rfft(u, n) * rfft(k, n))`` and of FlashFFTConv.

    Parameters
    ----------
    seqlen
        Length of the transform, at least that of signal and filter. From ``L + Lk - 1`` on nothing wraps, and the
        convolution is causal; ``seqlen = L`` makes it circular.
    dtype
        What the Triton kernel multiplies in (sums are float32); ``None``: the signal's dtype. Other backends compute in
        float32, or float64 for such signals.
    backend
        ``"fft"``: PyTorch's real FFT; a causal convolution takes the shortest that serves, or overlapping windows where
        the filter is short. ``"monarch"``: products of matrices, several times slower on a CPU. ``"triton"``: the fused
        kernel, for ``seqlen`` a power of two from 256 on. ``"auto"``: the kernel in half precision on a GPU where
        :func:`cost_model` favours it, otherwise ``"fft"``.
    order
        Number of factors of the Monarch transform; ``None``: :func:`cost_model` chooses (``"triton"``: 2 where one
        program can hold the sequence, otherwise 3).
    sparsity
        Which frequencies of the filters to keep; the work of the others is skipped.

    Raises
    ------
    ValueError
        If ``seqlen`` does not suit the backend, or the sparsity has another length.
    ImportError
        If Triton is asked for and missing.

    Notes
    -----
    Original restrictions that do not apply here: lengths and channels of any size, any strides, float32 and float64,
    any device. Backwards only what was given is kept. Second derivatives exist except for ``"triton"``, which refuses.
    NaN and infinity spread within their own sequence; the kernel computes two rows of a batch as one complex sequence
    and spreads them to both. A sparsity keeps mirror images of frequencies (the paper leaves open what becomes of the
    imaginary part that their absence gives).

    **When not to use it.** For filters of a few taps :func:`torch.nn.functional.conv1d` with ``groups`` is faster.

    References
    ----------
    Fu, Kumbong, Nguyen, Re, ICLR 2024, arXiv:2311.05908.

    Examples
    --------
    >>> conv = FlashFFTConv(2 * 1024)
    >>> u, k, gate = torch.randn(2, 3, 1024), torch.randn(3, 1024), torch.rand(2, 3, 1024)
    >>> conv(u, k, pregate=gate, postgate=gate).shape
    torch.Size([2, 3, 1024])
    """

    def __init__(
        self,
        seqlen: int,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
        order: int | None = None,
        sparsity: FrequencySparse | None = None,
    ) -> None:
        super().__init__()
        self.seqlen = check_range(seqlen, "seqlen", 1, integer=True)
        self.dtype = check_option(dtype, "dtype", (None, torch.float16, torch.bfloat16, torch.float32, torch.float64))
        self.backend = check_option(backend, "backend", _BACKENDS)
        self.order = order if order is None else check_range(order, "order", 1, integer=True)
        self.sparsity = sparsity
        if sparsity is not None and sparsity.seqlen != seqlen:
            raise ValueError(f"sparsity must have {seqlen} frequencies as seqlen has, got {sparsity.seqlen}")
        if backend == "triton":
            self._fused(self.dtype or torch.float16)
        elif backend == "monarch" and sparsity is None:
            self._factors()

    def forward(
        self,
        u: Float[Tensor, "B H L"],
        k: Float[Tensor, "H Lk"] | PreparedFilter,
        pregate: Float[Tensor, "B H L"] | None = None,
        postgate: Float[Tensor, "B H L"] | None = None,
    ) -> Float[Tensor, "B H L"]:
        """Convolve.

        Parameters
        ----------
        u
            Signal; an empty batch gives an empty result.
        k
            Filters, not more precise than what is computed in (float32 for half precision), or from :meth:`prepare`.
        pregate, postgate
            What multiplies the signal before and the result after.

        Returns
        -------
        Tensor
            Of the shape and dtype of ``u``.

        Raises
        ------
        TypeError
            If a tensor is not floating-point.
        ValueError
            If shapes, devices or dtypes do not fit, or a length exceeds ``seqlen``.
        """
        taps = k.taps if isinstance(k, PreparedFilter) else k
        _check(u, taps, pregate, postgate)
        for name, x in (("u", u), ("k", taps)):
            if x.shape[-1] > self.seqlen:
                raise ValueError(f"{name} must not be longer than seqlen = {self.seqlen}, got {x.shape[-1]}")
        if u.shape[0] == 0:
            return u + 0 * taps.sum().to(u.dtype)
        gates = (pregate, postgate)
        with torch.autocast(u.device.type, enabled=False):
            if isinstance(k, PreparedFilter):
                if k.length != u.shape[-1]:
                    raise ValueError(f"k must be prepared for the length of u, {u.shape[-1]}, got {k.length}")
                return gated_conv(u, k.taps, gates, k.windows)
            return self._conv(u, taps, gates)

    def prepare(self, k: Float[Tensor, "H Lk"], length: int) -> PreparedFilter:
        """Transform filters once for many signals of one length; without gradients.

        Parameters
        ----------
        k
            Filters; float64 for signals in float64.
        length
            Length of the signals.

        Raises
        ------
        ValueError
            If the module has a sparsity or another backend than ``"fft"`` or ``"auto"``, or lengths exceed ``seqlen``.

        Examples
        --------
        >>> conv, k = FlashFFTConv(256), torch.randn(3, 100)
        >>> prepared, u = conv.prepare(k, 128), torch.randn(2, 3, 128)
        >>> torch.allclose(conv(u, prepared), conv(u, k), atol=1e-5)
        True
        """
        check_tensor(k, "k", ndim=2, dtype="floating", finite=False)
        check_range(max(length, k.shape[-1]), "length and the filter's length", 1, self.seqlen, integer=True)
        if self.backend not in ("auto", "fft") or self.sparsity is not None:
            raise ValueError(f"backend must be 'fft', without sparsity, to prepare filters, got {self.backend!r}")
        windows = plan_windows(length, k.shape[-1], self.seqlen)
        taps = (k if windows.wraps else k[:, :length]).detach()
        made = spectrum(taps, windows.n)
        return PreparedFilter(taps, length, Windows(**{**vars(windows), "spectrum": made}))

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        sparsity = "" if self.sparsity is None else f", sparsity={self.sparsity}"
        return f"{self.seqlen}, dtype={self.dtype}, backend={self.backend!r}, order={self.order}{sparsity}"

    def _conv(self, u: Tensor, k: Tensor, gates: Gates) -> Tensor:
        kind = u.dtype if self.dtype is None else self.dtype
        backend = _choose(self.seqlen, u, kind) if self.backend == "auto" else self.backend
        if backend == "triton":
            if u.dtype == torch.float64 or kind == torch.float64:
                raise ValueError("u must be in half precision or float32 for backend='triton', got torch.float64")
            pattern = self._fused(kind)
            if len(pattern.factors) == 2 and self.sparsity is None:
                return fused_conv(u, k, gates, pattern.factors, self.dtype)
            return gated_conv(u, k, gates, Sparse(pattern, FusedRows(kind)))
        if self.sparsity is not None:
            return gated_conv(u, k, gates, Sparse(self.sparsity, by_products if backend == "monarch" else by_fft))
        if backend == "monarch":
            return gated_conv(u, k, gates, Sparse(_everything(self._factors()), by_products))
        windows = plan_windows(u.shape[-1], k.shape[-1], self.seqlen)
        return gated_conv(u, k if windows.wraps else k[:, : u.shape[-1]], gates, windows)

    def _factors(self) -> tuple[int, ...]:
        order = cost_model(self.seqlen, hardware="cpu").order if self.order is None else self.order
        try:
            return balanced_factors(self.seqlen, order)
        except ValueError:
            words = "two" if not order else str(order)
            raise ValueError(f"seqlen must be a product of {words} factors for 'monarch', got {self.seqlen}") from None

    def _fused(self, kind: torch.dtype) -> FrequencySparse:
        """Factors that the kernels take, with what is kept."""
        if not triton.available():
            triton._import_triton()
            raise ValueError("backend='triton' needs a GPU, or TRITON_INTERPRET=1 in the environment")
        if self.sparsity is not None:
            given = self.sparsity.factors
            if len(given) != 3 or fused_factors(self.seqlen, kind) is None:
                raise ValueError(f"sparsity must have three factors for backend='triton', got {given}")
            return self.sparsity
        factors = fused_factors(self.seqlen, kind, self.order)
        if factors is None:
            raise ValueError(
                f"seqlen must be a power of two from 256 to {2**20 if kind == torch.float32 else 2**24} "
                f"(order 2 up to {2**10 if kind == torch.float32 else 2**14}) for backend='triton', got {self.seqlen}"
            )
        return _everything(factors)


def fft_conv(
    u: Float[Tensor, "B H L"],
    k: Float[Tensor, "H Lk"],
    causal: bool = True,
    *,
    pregate: Float[Tensor, "B H L"] | None = None,
    postgate: Float[Tensor, "B H L"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "B H L"]:
    """Convolve sequences with filters of any length, ``postgate * (k conv (pregate * u))``, without storing spectra.

    Parameters
    ----------
    u
        Signal.
    k
        Filters, longer or shorter than the signal. Short ones are applied in overlapping windows.
    causal
        Zeros before the start, or indices modulo L.
    pregate, postgate
        What multiplies the signal before and the result after.
    backend
        As for :class:`FlashFFTConv`.

    Returns
    -------
    Tensor
        Of the shape and dtype of ``u``.

    Raises
    ------
    TypeError, ValueError
        As :class:`FlashFFTConv`; a circular filter may not be longer than the signal.

    Examples
    --------
    >>> fft_conv(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[1.0, 1.0]])).round()
    tensor([[[1., 3., 5.]]])
    """
    check_option(backend, "backend", _BACKENDS)
    _check(u, k, pregate, postgate)
    length = u.shape[-1]
    if not causal:
        return FlashFFTConv(length, backend=backend)(u, k, pregate, postgate)
    k = k[:, :length]
    n = length + k.shape[-1] - 1
    if backend in ("monarch", "triton") or (backend == "auto" and not u.is_cpu):
        n = max(1 << (n - 1).bit_length(), 256)
    return FlashFFTConv(n, backend=backend)(u, k, pregate, postgate)


def _choose(seqlen: int, u: Tensor, kind: torch.dtype) -> str:
    """The kernel where it is there, takes the length, and is estimated to be faster."""
    if not u.is_cuda or kind not in (torch.float16, torch.bfloat16) or not triton.available():
        return "fft"
    factors = fused_factors(seqlen, kind)
    if factors is None:
        return "fft"
    capability = torch.cuda.get_device_capability(u.device)
    cost = cost_model(seqlen, hardware="h100" if capability >= (9, 0) else "a100", orders=(len(factors),))
    return "triton" if cost.backend == "monarch" else "fft"


def _everything(factors: tuple[int, ...]) -> FrequencySparse:
    """All frequencies: one of each pair of mirror images is enough."""
    return FrequencySparse((factors[0] // 2 + 1, *factors[1:]), factors)


def _check(u: Any, k: Any, pregate: Any, postgate: Any) -> None:
    """Shapes, devices and dtypes; values may be infinite or NaN, and a batch may be empty."""
    for name, x, ndim in (("u", u, 3), ("k", k, 2), ("pregate", pregate, 3), ("postgate", postgate, 3)):
        if x is None and "gate" in name:
            continue
        if not (isinstance(x, Tensor) and x.ndim == 3 and x.shape[0] == 0 and x.is_floating_point()):
            check_tensor(x, name, ndim=ndim, dtype="floating", finite=False)
        if x.device != u.device:
            raise ValueError(f"u and {name} must have the same device, got {u.device} and {x.device}")
        if "gate" in name and x.shape != u.shape:
            raise ValueError(f"{name} must have the shape of u, {tuple(u.shape)}, got {tuple(x.shape)}")
    if k.shape[0] != u.shape[1]:
        raise ValueError(f"k must have a filter for each of the {u.shape[1]} channels of u, got {k.shape[0]}")
    wide = torch.promote_types(u.dtype, torch.float32)
    if torch.promote_types(k.dtype, wide) != wide:
        raise ValueError(f"k must not be more precise than {wide} for u in {u.dtype}, got {k.dtype}")
