"""What the claim of FlashFFTConv computes: its cases, the programs that it compares with, and a small network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hadamard.data import digits
from hadamard.transforms import FlashFFTConv, FrequencySparse, fft_conv, monarch_fft, monarch_ifft, monarch_order
from hadamard.transforms.flash_fft_conv import PreparedFilter
from hadamard.transforms.monarch import balanced_factors

__all__ = [
    "DIGITS",
    "EXACT",
    "MEMORY",
    "Case",
    "backward",
    "by_scipy",
    "classifier",
    "conv_of",
    "exactness",
    "padded",
    "problem",
    "timed",
    "transforms",
]

EXACT, DIGITS, MEMORY = "exactness", "digits", "memory, L = 4096"


@dataclass(frozen=True)
class Case:
    """Signals, gates and filters; half precision on a GPU, as the paper has it."""

    u: Tensor
    pre: Tensor
    post: Tensor
    k: Tensor
    sparsity: FrequencySparse  # 7/32 of all frequencies, as mirror images come in pairs
    mask: Tensor  # the same on the real transform's frequencies
    prepared: PreparedFilter

    @property
    def length(self) -> int:
        """Steps of a sequence."""
        return self.u.shape[-1]


@dataclass(frozen=True)
class Exact:
    """Numbers to transform and to convolve."""

    seed: int


@dataclass(frozen=True)
class Digits:
    """Rows of pixels as sequences of 64 steps."""

    seed: int
    steps: int
    channels: int
    nets: int


def problem(
    seed: int, lengths: Sequence[int], elements: int, large: int, batch: int, steps: int, channels: int, device: str
) -> dict[str, Any]:
    """As many elements of each length, so fewer of long sequences; ``large`` of them where memory is measured."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("this size of the claim needs a GPU, and PyTorch finds none")
    generator = torch.Generator().manual_seed(seed)
    cases: dict[str, Any] = {}
    for name, length in [*((f"L = {n}", n) for n in lengths), (MEMORY, 4096)]:
        width = max((large if name == MEMORY else elements) // length, 1)
        u, pre, post = (torch.randn(batch, width, length, generator=generator) for _ in range(3))
        k = (torch.randn(width, length, generator=generator) / length**0.5).to(device)
        sparsity = FrequencySparse((4, length // 16), (32, length // 16))
        mask = sparsity.mask()[: length + 1].to(k)
        prepared = FlashFFTConv(2 * length, backend="fft").prepare(k, length)
        kind = torch.bfloat16 if device == "cuda" else torch.float32
        u, pre, post = (x.to(device, kind) for x in (u, pre, post))
        cases[name + ("" if device == "cpu" or name == MEMORY else f" on {device}")] = Case(
            u, pre, post, k, sparsity, mask, prepared
        )
    return cases | {EXACT: Exact(seed), DIGITS: Digits(seed, steps, channels, 4)}


# ---- contenders ----


def transforms(u: Tensor, k: Tensor, weight: Tensor | None = None) -> Tensor:
    """What stands in programs today; half precision is transformed in float32."""
    length = u.shape[-1]
    n = 2 * length
    spectrum = torch.fft.rfft(u.float(), n) * torch.fft.rfft(k, n)
    if weight is not None:
        spectrum = spectrum * weight
    return torch.fft.irfft(spectrum, n)[..., :length].to(u.dtype)


def padded(case: Case) -> Tensor:
    """The paper's baseline."""
    length = case.length
    u, k = F.pad((case.u * case.pre).float(), (0, length)), F.pad(case.k, (0, length))
    return torch.fft.ifft(torch.fft.fft(u) * torch.fft.fft(k)).real[..., :length].to(case.u.dtype) * case.post


def timed(compute: Callable[[Case], Tensor]) -> Callable[[Case], dict[str, Any]]:
    """The result's first sequences; on a GPU, once it is there."""

    def run(case: Case) -> dict[str, Any]:
        with torch.no_grad():
            y = compute(case)
        if y.is_cuda:
            torch.cuda.synchronize()
        return {"y": y[0, :2]}

    return run


def backward(conv: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Case], dict[str, Any]]:
    """Both gradients."""

    def run(case: Case) -> dict[str, Any]:
        u, k = case.u.detach().requires_grad_(), case.k.detach().requires_grad_()
        du, dk = torch.autograd.grad(conv(u, k), (u, k), case.post)
        if du.is_cuda:
            torch.cuda.synchronize()
        return {"y": torch.cat([du[0, :2].float(), dk[:2]])}

    return run


def conv_of(case: Case, **options: Any) -> FlashFFTConv:
    """Ours, causal."""
    return FlashFFTConv(2 * case.length, **options)


def by_scipy(convolve: Callable[..., np.ndarray], part: int) -> Callable[[Case], dict[str, Any]]:
    """One of SciPy's convolutions with a part of the filter."""

    def run(case: Case) -> dict[str, Any]:
        k = case.k[None, :, : case.length // part].numpy()
        return {"y": torch.from_numpy(convolve(case.u.numpy(), k, axes=-1)[..., : case.length])[0, :2]}

    return run


def exactness(case: Exact) -> dict[str, float]:
    """Relative errors of the transform in float64 and of the convolution in half precision."""
    generator = torch.Generator().manual_seed(case.seed)
    x = torch.randn(4, 4096, dtype=torch.float64, generator=generator)
    exact = torch.fft.fft(x)
    errors: dict[str, float] = {}
    for order in (2, 3, 4):
        factors = balanced_factors(4096, order)
        found = monarch_fft(x, factors)
        there = (found - exact[:, monarch_order(factors)]).norm() / exact.norm()
        back = (monarch_ifft(found, factors) - x).norm() / x.norm()
        errors["transform"] = max(errors.get("transform", 0.0), float(there), float(back))
    k = torch.randn(4, 4096, dtype=torch.float64, generator=generator) / 64
    truth = _in_float64(x[None], k)
    for name, kind in (("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        y = fft_conv(x[None].to(kind), k.float()).double()
        errors[name] = float((y - truth).norm() / truth.norm())
    pattern = FrequencySparse((4, 256), (32, 256))
    masked = torch.fft.ifft(torch.fft.fft(x, 8192) * torch.fft.fft(k, 8192) * pattern.mask()).real[:, :4096]
    y = FlashFFTConv(8192, sparsity=pattern)(x[None].float(), k.float())
    return errors | {"mask": float((y[0] - masked).norm() / masked.norm())}


def _in_float64(u: Tensor, k: Tensor) -> Tensor:
    n = 2 * u.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(k, n), n)[..., : u.shape[-1]]


def classifier(taps: int) -> Callable[[Digits], dict[str, float]]:
    """One long convolution over the pixels, then a mean: several networks at once, as groups of channels."""

    def run(case: Digits) -> dict[str, float]:
        data = digits()
        generator = torch.Generator().manual_seed(case.seed)
        order = torch.randperm(len(data.images), generator=generator)
        x, labels, train = data.images.flatten(1)[order], data.labels[order], 3 * len(order) // 4
        width = case.nets * case.channels
        scale, bias = torch.ones(width), torch.randn(width, generator=generator) / 4
        k = torch.randn(width, 64, generator=generator)[:, :taps] / 4  # the same start for both
        head = torch.randn(case.nets, case.channels, 10, generator=generator) / case.channels**0.5
        weights = [t.requires_grad_() for t in (scale, bias, k, head)]

        def scores(rows: Tensor) -> Tensor:
            y = F.gelu(fft_conv(rows[:, None] * scale[:, None], k) + bias[:, None]).mean(-1)
            return torch.einsum("bnc,nco->bno", y.unflatten(1, (case.nets, -1)), head)

        optimizer = torch.optim.Adam(weights, lr=0.03)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.03, total_steps=case.steps)
        for _ in range(case.steps):
            rows = torch.randint(train, (64,), generator=generator)
            loss = F.cross_entropy(scores(x[rows]).flatten(0, 1), labels[rows].repeat_interleave(case.nets))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            right = scores(x[train:]).argmax(-1) == labels[train:, None]
        return {"accuracy": 100 * float(right.float().mean())}

    return run
