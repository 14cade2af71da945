"""Triton kernels, run by Triton's interpreter or only compiled, as no GPU is needed for either."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from hadamard.kernels import triton

needs_triton = pytest.mark.skipif(  # where it can be installed, its absence is a failure
    sys.platform != "linux" and find_spec("triton") is None, reason="Triton is there for Linux only"
)

INTERPRETED = """
import torch
from hadamard.kernels import triton

assert triton.available()
generator = torch.Generator().manual_seed(0)
for shape, dim in (((3, 5), -1), ((2, 9000), 1), ((7, 3, 2), 1), ((1,), 0), ((0, 4), 1)):
    for dtype, rtol in ((torch.float32, 1e-5), (torch.float64, 1e-12), (torch.float16, 2e-3)):
        x = (5 * torch.randn(shape, generator=generator)).to(dtype)
        y, truth = triton.softmax(x, dim), torch.softmax(x.double(), dim)
        assert y.dtype == dtype and y.shape == x.shape
        torch.testing.assert_close(y.double(), truth, rtol=rtol, atol=1e-7, msg=f"{shape} {dtype}")
inf, nan = float("inf"), float("nan")
x = torch.tensor([[-inf] * 3, [inf, 0, 1], [nan, 0, 1], [-inf, 0, 0], [-3e38, -3e38, 3e38]])
torch.testing.assert_close(triton.softmax(x), torch.softmax(x, -1), equal_nan=True)
x = torch.full((1, 9000), -inf)
x[0, -1] = 3.0
assert triton.softmax(x)[0, -1] == 1
"""

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from hadamard.kernels import triton

kernel = triton._softmax_kernel()
for type in ("*fp32", "*bf16"):
    signature = {"x": type, "y": type, "n": "i32", "block": "constexpr"}
    made = compile(ASTSource(kernel, signature, {"block": 1024}), target=GPUTarget("cuda", 80, 32))
    assert ".target sm_80" in made.asm["ptx"]
"""


@needs_triton
@pytest.mark.parametrize(
    "code, interpret",
    [(INTERPRETED, "1"), pytest.param(COMPILED, "0", marks=pytest.mark.slow)],
    ids=["run", "built"],
)
def test_softmax_kernel(code, interpret, tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_absence_is_one_clear_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    triton._softmax_kernel.cache_clear()
    with pytest.raises(ImportError, match=r"^Triton kernels need Triton: pip install 'hadamard\[triton\]'$"):
        triton.softmax(torch.zeros(2, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_not_available_without_gpu_or_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not triton.available()
