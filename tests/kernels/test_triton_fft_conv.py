"""The convolution's Triton kernels, run by Triton's interpreter or only compiled, as no GPU is needed for either."""

import os
import subprocess
import sys

import pytest
import torch

from hadamard.kernels import triton, triton_fft_conv
from hadamard.transforms import FlashFFTConv
from hadamard.transforms._fused_conv import fused_factors
from tests.kernels.test_triton import needs_triton

INTERPRETED = """
import torch
from hadamard.kernels import triton
from hadamard.transforms import FlashFFTConv, FrequencySparse, fft_conv

assert triton.available()
generator = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=generator)


def check(conv, wanted, tensors, tolerance):
    tensors = [t.requires_grad_() for t in tensors]
    y, exact = conv(*tensors), wanted(*[t.double() for t in tensors])
    assert y.dtype == tensors[0].dtype and y.shape == exact.shape
    grad = draw(*y.shape).to(y.dtype)
    got = [y, *torch.autograd.grad(y, tensors, grad)]
    want = [exact, *torch.autograd.grad(exact, tensors, grad.double())]
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm(), (conv, tolerance)


def plain(n, mask=1):
    def conv(u, k, pre=1, post=1):
        spectrum = torch.fft.fft(u * pre, n) * torch.fft.fft(k, n) * mask
        return post * torch.fft.ifft(spectrum).real[..., : u.shape[-1]]
    return conv


cases = [  # length of the transform, signal, filter, batch, channels, order
    (256, 128, 128, 3, 2, None), (256, 256, 256, 2, 1, None), (512, 200, 100, 1, 2, None), (1024, 512, 512, 2, 1, 2),
    (512, 256, 256, 3, 1, 3), (2048, 1000, 1000, 2, 1, None), (4096, 2048, 300, 1, 1, None),
]
for n, length, taps, batch, channels, order in cases:
    for kind, tolerance in ((torch.float32, 2e-6), (torch.float16, 5e-3))[: 2 if n <= 512 else 1]:
        u, pre, post = (draw(batch, channels, length).to(kind) for _ in range(3))
        k = draw(channels, taps) / length**0.5
        conv = FlashFFTConv(n, backend="triton", order=order)
        check(conv, plain(n), [u, k, pre, post], tolerance)
    check(conv, plain(n), [u, k], tolerance)  # without gates

# float32 operands in half precision: what the matrix units are given is rounded, sums are not
u, k = draw(2, 2, 128), draw(2, 128) / 11
check(FlashFFTConv(256, torch.float16, backend="triton"), plain(256), [u, k], 2e-3)

# bfloat16 products are garbage in the interpreter: the same rounding of the inputs, computed in float32
u, k = draw(2, 2, 128).bfloat16(), draw(2, 128) / 11
check(FlashFFTConv(256, torch.float32, backend="triton"), plain(256), [u, k], 1e-2)

# kept frequencies only, strides, lengths of any kind
pattern = FrequencySparse((3, 16, 16), (8, 16, 16))
conv = FlashFFTConv(2048, backend="triton", sparsity=pattern)
check(conv, plain(2048, pattern.mask()), [draw(2, 1, 1000), draw(1, 1000) / 30], 2e-6)
u = draw(1, 100, 2).mT
check(lambda u, k: fft_conv(u, k, backend="triton"), plain(256), [u, draw(2, 100)], 2e-6)

# nothing outgrows half precision in between, and a missing second row stays away
y = fft_conv(torch.full((1, 1, 128), 60.0, dtype=torch.float16), torch.full((1, 128), 1 / 128), backend="triton")
assert (y[0, 0, -1] - 60).abs() < 0.5 and y.isfinite().all()

u, k = draw(1, 1, 128).requires_grad_(), draw(1, 128)
try:
    torch.autograd.grad(fft_conv(u, k, backend="triton").square().sum(), u, create_graph=True)
except RuntimeError as error:
    assert "have no second derivatives: use backend='fft'" in str(error)
else:
    raise AssertionError("second derivatives were not refused")
"""

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from hadamard.kernels import triton_fft_conv as kernels

flags = dict(has_pre=True, has_post=True, has_other=True, adjoint=True, precision="ieee")
tensors = ("u", "pre", "post", "other", "grad", "y", "z")
for kernel in kernels._kernels():
    for kind, n1, n2, capability in (("fp32", 32, 32, 80), ("fp16", 64, 64, 80), ("bf16", 128, 128, 90)):
        sizes = {"n1": n1, "n2": n2, "rows": n1 // 2}
        types = dict.fromkeys(tensors, f"*{kind}") | dict.fromkeys(("first", "second"), f"*{kind}")
        types |= dict.fromkeys(("kf", "twiddle", "out"), "*fp32")
        types |= dict.fromkeys(("batch", "channels", "length"), "i32")
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        constants = {name: (flags | sizes)[name] for name, type in signature.items() if type == "constexpr"}
        target, options = GPUTarget("cuda", capability, 32), {"num_warps": kernels._warps(n1, n2)}
        made = compile(ASTSource(kernel, signature, constants), target=target, options=options)
        assert f".target sm_{capability}" in made.asm["ptx"]
        assert ("mma" in made.asm["ptx"]) == (kind != "fp32")  # on the matrix units
        assert made.metadata.shared <= (163 if capability == 80 else 227) * 1024  # what a program may have
"""


@needs_triton
@pytest.mark.parametrize(
    "code, interpret",
    [(INTERPRETED, "1"), pytest.param(COMPILED, "0", marks=pytest.mark.slow)],
    ids=["run", "built"],
)
def test_convolution_kernels(code, interpret, tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_absence_is_one_clear_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(triton, "available", lambda: False)
    with pytest.raises(ImportError, match=r"^Triton kernels need Triton: pip install 'hadamard\[triton\]'$"):
        FlashFFTConv(256, backend="triton")


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_processor_has_no_kernel(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend='triton' needs a GPU, or TRITON_INTERPRET=1 in the environment"):
        FlashFFTConv(256, backend="triton")


@pytest.mark.bad_input
def test_lengths_that_the_kernels_take(monkeypatch):
    for dtype, largest in ((torch.float16, 2**24), (torch.float32, 2**20)):
        assert fused_factors(128, dtype) is None
        assert fused_factors(257, dtype) is None
        assert fused_factors(2 * largest, dtype) is None
        for e in range(8, largest.bit_length()):
            factors = fused_factors(2**e, dtype)
            assert torch.tensor(factors).prod() == 2**e
            assert triton_fft_conv.supports(*factors[-2:])
    monkeypatch.setattr(triton, "available", lambda: True)
    with pytest.raises(ValueError, match="seqlen must be a power of two from 256 to 16777216"):
        FlashFFTConv(1000, backend="triton")
    with pytest.raises(ValueError, match="got torch.float64"):
        FlashFFTConv(256, backend="triton")(torch.ones(1, 1, 8, dtype=torch.float64), torch.ones(1, 8))
