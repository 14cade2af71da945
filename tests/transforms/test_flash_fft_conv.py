"""FlashFFTConv: every backend against its sum, gradients, what is kept, and how torch's machinery takes it."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from hadamard.claims.transforms.flash_fft_conv import claim
from hadamard.transforms import FlashFFTConv, FrequencySparse, cost_model, fft_conv
from hadamard.transforms import _fft_conv as parts
from hadamard.transforms.fft_conv_cost import Hardware

D = torch.float64


def draw(*shape, dtype=D, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def direct(u, k):
    """The causal convolution by the library's own direct one."""
    taps = min(k.shape[-1], u.shape[-1])
    return F.conv1d(F.pad(u, (taps - 1, 0)), k[:, None, :taps].flip(-1), groups=u.shape[1])


def inputs(B=3, H=5, L=24, taps=None, dtype=D, grad=False):
    u, pre, post = (draw(B, H, L, dtype=dtype, seed=s) for s in range(3))
    k = draw(H, taps or L, dtype=dtype, seed=3) / L**0.5
    return [x.requires_grad_(grad) for x in (u, k, pre, post)]


@pytest.fixture
def small_parts(monkeypatch):
    """Parts so small that batch and channels are both cut."""
    monkeypatch.setitem(parts._PART, "cpu", 64)
    monkeypatch.setattr(parts, "_ROWS", 2)


# -- what it computes --


@pytest.mark.parametrize("backend", ["fft", "monarch", "auto"])
@pytest.mark.parametrize(("L", "taps"), [(24, 24), (24, 5), (7, 7), (10, 30), (1, 1), (1, 4), (2000, 33), (1500, 120)])
def test_causal_convolution_is_the_sum(backend, L, taps):
    u, k, pre, post = inputs(2, 3, L, taps)
    torch.testing.assert_close(fft_conv(u, k, backend=backend), direct(u, k))
    gated = fft_conv(u, k, pregate=pre, postgate=post, backend=backend)
    torch.testing.assert_close(gated, post * direct(u * pre, k))


@pytest.mark.parametrize("backend", ["fft", "monarch"])
@pytest.mark.parametrize(("L", "taps", "n"), [(24, 24, 48), (24, 24, 24), (20, 9, 24), (17, 24, 24), (24, 3, 30)])
def test_length_of_the_transform_says_where_it_wraps(backend, L, taps, n):
    u, k, _, _ = inputs(2, 3, L, taps)
    wanted = torch.zeros(2, 3, n, dtype=D)
    for t in range(taps):
        wanted += k[:, t, None] * F.pad(u, (0, n - L)).roll(t, -1)
    torch.testing.assert_close(FlashFFTConv(n, backend=backend)(u, k), wanted[..., :L])


@pytest.mark.parametrize("backend", ["fft", "monarch"])
def test_delta_shift_and_invariances(backend):
    u, k, _, _ = inputs(2, 3, 32)
    delta = torch.zeros(3, 32, dtype=D)
    delta[:, 5] = 1
    conv = FlashFFTConv(32, backend=backend)
    torch.testing.assert_close(fft_conv(u, torch.ones(3, 1, dtype=D), backend=backend), u)
    torch.testing.assert_close(conv(u, delta), u.roll(5, -1))
    torch.testing.assert_close(conv(u.roll(3, -1), k), conv(u, k).roll(3, -1))
    torch.testing.assert_close(conv(u, k) + 2 * conv(u.flip(0), k), conv(u + 2 * u.flip(0), k))


@pytest.mark.parametrize("backend", ["fft", "monarch"])
def test_parts_do_not_matter(backend, small_parts):
    u, k, pre, post = inputs(7, 9, 12, grad=True)
    y = FlashFFTConv(24, backend=backend)(u, k, pre, post)
    wanted = post * direct(u * pre, k)
    torch.testing.assert_close(y, wanted)
    grad = draw(*y.shape, seed=9)
    for got, want in zip(
        torch.autograd.grad(y, (u, k, pre, post), grad), torch.autograd.grad(wanted, (u, k, pre, post), grad)
    ):
        torch.testing.assert_close(got, want)


@settings(max_examples=25, deadline=None)
@given(L=st.integers(1, 90), taps=st.integers(1, 90), n=st.integers(1, 100), batch=st.integers(1, 3))
def test_any_lengths(L, taps, n, batch):
    n = max(L, taps, n)
    u, k, _, _ = inputs(batch, 2, L, taps)
    wanted = torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(k, n), n)[..., :L]
    torch.testing.assert_close(FlashFFTConv(n)(u, k), wanted, rtol=1e-9, atol=1e-9)


def test_short_filters_go_in_windows():
    plan = parts.plan_windows(100_000, 64)
    assert plan.n == 512
    assert plan.count * plan.hop >= 100_000
    assert parts.plan_windows(1024, 1024).count == 1
    assert parts.plan_windows(1024, 16, 1024).wraps


def test_prepared_filters():
    for L, taps, n in ((24, 24, 48), (3000, 40, 4096), (24, 24, 24)):
        u, k, pre, post = inputs(2, 3, L, taps, grad=True)
        conv = FlashFFTConv(n)
        prepared = conv.prepare(k, L)
        y, wanted = conv(u, prepared, pre, post), conv(u, k, pre, post)
        torch.testing.assert_close(y, wanted)
        for got, want in zip(*(torch.autograd.grad(z.square().sum(), (u, pre, post)) for z in (y, wanted))):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", ["fft", "monarch"])
@pytest.mark.parametrize(
    ("keep", "factors"), [((2, 3), (6, 8)), ((4, 8), (6, 8)), ((6, 1), (6, 8)), ((2, 3, 1), (4, 4, 3)), ((7,), (48,))]
)
def test_sparse_convolution_masks_the_spectrum(backend, keep, factors):
    u, k, pre, post = inputs(2, 3, 20, grad=True)
    sparsity = FrequencySparse(keep, factors)
    full = torch.fft.fft(u * pre, 48) * torch.fft.fft(k, 48) * sparsity.mask()
    masked = torch.fft.ifft(full)
    assert masked.imag.abs().max() < 1e-12  # kept frequencies have their mirror images
    wanted = post * masked.real[..., :20]
    y = FlashFFTConv(48, backend=backend, sparsity=sparsity)(u, k, pre, post)
    torch.testing.assert_close(y, wanted)
    for got, want in zip(*(torch.autograd.grad(z.square().sum(), (u, k, pre, post)) for z in (y, wanted))):
        torch.testing.assert_close(got, want)


def test_lowest_frequencies_are_a_pattern():
    """As the paper's example in PyTorch, which zeroes the upper part of a real spectrum."""
    mask = FrequencySparse((8, 2), (8, 6)).mask()
    assert mask[:16].all()
    assert not mask[17:32].any()
    assert mask[33:].all()


# -- gradients and memory --


@pytest.mark.parametrize(
    "conv",
    [
        FlashFFTConv(12), FlashFFTConv(6), FlashFFTConv(8), FlashFFTConv(12, backend="monarch"),
        FlashFFTConv(12, sparsity=FrequencySparse((2, 2), (4, 3))),
    ],
    ids=["causal", "circular", "wraps a little", "monarch", "sparse"],
)  # fmt: skip
def test_gradients(conv):
    tensors = inputs(2, 2, 6, grad=True)
    assert gradcheck(conv, tensors)
    assert gradgradcheck(conv, tensors, fast_mode=True)
    assert gradcheck(conv, tensors[:2])


def test_gradients_in_windows(monkeypatch):
    monkeypatch.setattr(parts, "_SHORTEST", 8)
    tensors = inputs(1, 2, 30, 2, grad=True)
    assert parts.plan_windows(30, 2).count > 1
    assert gradcheck(lambda *t: fft_conv(t[0], t[1], pregate=t[2], postgate=t[3]), tensors)


@pytest.mark.parametrize("options", [{}, {"backend": "monarch"}, {"sparsity": FrequencySparse((4, 16), (16, 16))}])
def test_keeps_only_what_it_was_given(options):
    tensors, kept = inputs(4, 8, 128, dtype=torch.float32, grad=True), {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        FlashFFTConv(256, **options)(*tensors)
    assert sum(kept.values()) == sum(4 * t.numel() for t in tensors)


# -- torch's machinery --


@pytest.mark.parametrize("backend", ["fft", "monarch"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 1e-2), (torch.bfloat16, 5e-2), (torch.float32, 1e-5)])
def test_half_precision_is_computed_in_single(backend, dtype, error):
    u, k, pre, post = inputs(2, 3, 256)
    y = FlashFFTConv(512, backend=backend)(*(x.to(dtype) for x in (u, k.float(), pre, post)))
    exact = post * direct(u * pre, k)
    assert y.dtype == dtype
    assert (y - exact).norm() <= error * exact.norm()
    u = 60 * torch.ones(1, 1, 4096, dtype=dtype)  # its spectrum exceeds what half precision holds
    assert fft_conv(u, torch.full((1, 4096), 1 / 4096)).isfinite().all()


@pytest.mark.parametrize("backend", ["fft", "monarch"])
def test_autocast(backend):
    u, k, pre, post = inputs(2, 3, 64, dtype=torch.float32)
    conv = FlashFFTConv(128, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(u, k, pre, post)
    assert torch.equal(y, conv(u, k, pre, post))


COMPILED = """
import torch
from hadamard.transforms import FlashFFTConv, LongConvBlock

def compare(f, *tensors):
    results = []
    for g in (f, torch.compile(f, backend="aot_eager", fullgraph=True)):
        given = [t.clone().requires_grad_() for t in tensors]
        y = g(*given)
        results.append([y, *torch.autograd.grad(y.square().sum(), given)])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

u, k, pre, post = torch.randn(2, 3, 32), torch.randn(3, 32), torch.randn(2, 3, 32), torch.randn(2, 3, 32)
compare(FlashFFTConv(64), u, k, pre, post)
compare(LongConvBlock(4, 16), torch.randn(2, 20, 4))
"""


def test_compile():
    """In a process of its own: the annotation checks of this one are nothing that the compiler could look through."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr


def test_strides_checkpointing_and_state():
    u, k, _, _ = inputs(2, 3, 16)
    wanted = fft_conv(u, k)
    torch.testing.assert_close(fft_conv(u.mT.contiguous().mT, k.mT.contiguous().mT), wanted)
    torch.testing.assert_close(
        torch.func.grad(lambda z: fft_conv(z, k).sum())(u), torch.func.grad(lambda z: direct(z, k).sum())(u)
    )
    x = u.clone().requires_grad_()
    y = torch.utils.checkpoint.checkpoint(fft_conv, x, k, use_reentrant=False)
    y.sum().backward()
    torch.testing.assert_close(y, wanted)
    assert FlashFFTConv(32).state_dict() == {}
    with torch.inference_mode():
        FlashFFTConv(30, backend="monarch")(u, k[:, :10])
    FlashFFTConv(30, backend="monarch")(x, k[:, :10]).sum().backward()  # with the tables from inference


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_stay_in_their_sequence(bad):
    u, k, _, _ = inputs(3, 4, 32, dtype=torch.float32)
    clean = fft_conv(u, k)
    u[1, 2, 7] = bad
    y = fft_conv(u, k)
    assert y[1, 2].isnan().all()
    y[1, 2] = clean[1, 2]
    torch.testing.assert_close(y, clean)


def test_an_empty_batch():
    u, k = torch.zeros(0, 3, 8, requires_grad=True), torch.ones(3, 8, requires_grad=True)
    y = fft_conv(u, k)
    assert y.shape == (0, 3, 8)
    y.sum().backward()
    assert k.grad.abs().max() == 0


# -- the cost model --


def test_orders_grow_with_the_length():
    orders = [cost_model(2**e, 64, 768, "a100").order for e in range(8, 23)]
    assert orders == sorted(orders)
    assert set(orders) == {2, 3, 4}
    assert {cost_model(2**e, hardware="cpu").backend for e in range(6, 21)} == {"fft"}


def test_cost_is_the_formula():
    machine = Hardware(matrix=1e12, general=1e11, near=1e10, far=1e9, near_bytes=1000)
    seconds = cost_model(32 * 8, 3, 5, machine, orders=(2,)).seconds["monarch 2"]
    n = 256
    wanted = 16 * n * 16 / 1e12 * 2 + 4 * n * (1 / 1e9 + 1 / 1e10) + 8 * n / 1e9
    assert seconds == pytest.approx(15 * wanted)
    assert cost_model(97, hardware="cpu").order == 0


# -- the claim's programs, at a size that says nothing about time --


def test_contenders_agree():
    sizes = {
        "lengths": [256, 512],
        "elements": 1024,
        "large": 4096,
        "batch": 2,
        "steps": 4,
        "channels": 2,
        "device": "cpu",
    }
    cases = claim.problem(seed=0, **sizes)
    for name, case in cases.items():
        runs = {k.name: k.run(case) for k in claim.contenders if k.cases is None or k.cases(name)}
        assert claim.agree(case, runs) == ""
        if "FlashFFTConv, gated" in runs:
            runs["FlashFFTConv, gated"]["y"] *= 1.1
            assert "differ by" in claim.agree(case, runs)
    assert claim.sizes["gpu"].keys() == claim.sizes["quick"].keys()


# -- bad input --


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": torch.ones(2, 3, 8, dtype=torch.int64)}, TypeError, "u must have a floating dtype, got torch.int64"),
        ({"u": torch.ones(2, 3, 8, dtype=torch.complex64)}, TypeError, "u must have a floating dtype"),
        ({"k": torch.ones(3, 8, dtype=torch.complex64)}, TypeError, "k must have a floating dtype"),
        ({"u": torch.ones(3, 8)}, ValueError, r"u must have 3 dimension\(s\), got shape \(3, 8\)"),
        ({"k": torch.ones(2, 8)}, ValueError, "k must have a filter for each of the 3 channels of u, got 2"),
        (
            {"k": torch.ones(3, 8, dtype=D)},
            ValueError,
            "k must not be more precise than torch.float32 for u in torch.float32",
        ),
        ({"k": torch.ones(3, 17)}, ValueError, "k must not be longer than seqlen = 16, got 17"),
        ({"u": torch.ones(2, 3, 17)}, ValueError, "u must not be longer than seqlen = 16, got 17"),
        (
            {"pregate": torch.ones(2, 3, 7)},
            ValueError,
            r"pregate must have the shape of u, \(2, 3, 8\), got \(2, 3, 7\)",
        ),
        ({"postgate": torch.ones(2, 3, 8, device="meta")}, ValueError, "u and postgate must have the same device"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"u": torch.ones(2, 3, 8), "k": torch.ones(3, 8)} | change
    with pytest.raises(error, match=message):
        FlashFFTConv(16)(**arguments)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seqlen": 0}, ValueError, "seqlen must be >= 1, got 0"),
        ({"seqlen": 16, "backend": "cuda"}, ValueError, "backend must be one of"),
        (
            {"seqlen": 97, "backend": "monarch"},
            ValueError,
            "seqlen must be a product of two factors for 'monarch', got 97",
        ),
        ({"seqlen": 64, "backend": "monarch", "order": 7}, ValueError, "seqlen must be a product of 7 factors"),
        ({"seqlen": 64, "sparsity": FrequencySparse((1, 1), (4, 4))}, ValueError, "sparsity must have 64 frequencies"),
        ({"seqlen": 64, "dtype": torch.int8}, ValueError, "dtype must be one of"),
    ],
)
def test_bad_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        FlashFFTConv(**arguments)


@pytest.mark.bad_input
def test_more_bad_input():
    u, k, _, _ = inputs()
    with pytest.raises(ValueError, match="k must be prepared for the length of u, 24, got 20"):
        FlashFFTConv(48)(u, FlashFFTConv(48).prepare(k, 20))
    with pytest.raises(ValueError, match="backend must be 'fft', without sparsity"):
        FlashFFTConv(48, backend="monarch").prepare(k, 24)
    with pytest.raises(ValueError, match="k must not be longer than seqlen = 24, got 30"):
        fft_conv(u, torch.ones(5, 30, dtype=D), causal=False)
    with pytest.raises(
        ValueError, match=r"keep must have one number from 1 to each of the factors \(4, 4\), got \(5, 1\)"
    ):
        FrequencySparse((5, 1), (4, 4))
    with pytest.raises(ValueError, match="hardware must be one of 'a100', 'h100', 'cpu'"):
        cost_model(64, hardware="tpu")
