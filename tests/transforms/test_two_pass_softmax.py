"""The public softmax family: PyTorch's values and behaviour, from any input, through autograd and torch.compile."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hadamard.kernels import using
from hadamard.transforms import TwoPassSoftmax, log_softmax, logsumexp, softmax, two_pass_softmax

INF, NAN = float("inf"), float("nan")
ALGORITHMS = ["auto", "two_pass", "three_pass_recompute", "three_pass_reload"]


@pytest.fixture(autouse=True)
def no_small_tensors(request, monkeypatch):
    """Small tensors would be left to PyTorch: here they are not."""
    monkeypatch.setattr(two_pass_softmax, "_WORTHWHILE", 0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_robust_where_the_naive_formula_overflows(algorithm, generator):
    """Offsets of any sign and size, mixed magnitudes, masks: relative error against float64 at most 2e-6."""
    noise = torch.randn(100_000, generator=generator)
    rows = {"+1e4": noise + 1e4, "-1e4": noise - 1e4, "+1e6": noise + 1e6, "-1e6": noise - 1e6}
    rows["mixed"] = torch.cat([noise + 1e4, noise - 1e4])
    rows["masked"] = noise.masked_fill(noise > 0.5, -INF)
    for name, x in rows.items():
        y, truth = softmax(x, algorithm=algorithm), torch.softmax(x.double(), 0)
        kept = truth > 1e-37
        assert ((y[kept] - truth[kept]) / truth[kept]).abs().max() < 2e-6, name
        assert (y[~kept] <= 1e-37).all(), name
        logs = log_softmax(x)
        torch.testing.assert_close(logs.double(), torch.log_softmax(x.double(), 0), rtol=1e-6, atol=2e-6)
    assert not torch.isfinite(rows["+1e4"].exp().sum())  # what this is all about


def test_closed_forms():
    one = torch.tensor([-3.7])
    assert softmax(one) == 1
    assert -1e-7 < log_softmax(one) <= 0
    assert logsumexp(one) == one
    x = torch.linspace(-60, 60, 10_001)[None]
    assert (softmax(x, 0, algorithm="two_pass") == 1).all()
    assert (log_softmax(torch.cat([x, x - 40]), 0)[0] <= 0).all()
    for n in (3, 1000, 2**16):
        torch.testing.assert_close(softmax(torch.full((n,), 5.0)), torch.full((n,), 1 / n), rtol=3e-7, atol=0)
    hot = torch.zeros(1000)
    hot[17] = 1e4
    assert torch.equal(softmax(hot, algorithm="two_pass"), hot / 1e4)
    torch.testing.assert_close(logsumexp(torch.tensor([0.0, 1.0, 2.0]).log()), torch.tensor(3.0).log())


def test_order_of_the_blocks_does_not_matter(generator):
    x = torch.randn(10, 4096, generator=generator).mul(4)
    shuffled = x[torch.randperm(10, generator=generator)]
    torch.testing.assert_close(logsumexp(x.reshape(-1)), logsumexp(shuffled.reshape(-1)), rtol=2e-7, atol=0)


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays("float32", st.integers(1, 40), elements=st.floats(-80, 80, width=32)),
    st.floats(-(2.0**16), 2.0**16, width=32),
)
def test_sum_and_shift(row, shift):
    """Probabilities that sum to one and, up to the rounding of the input, do not change with a shift."""
    x = torch.from_numpy(row)
    y = softmax(x, algorithm="two_pass")
    assert abs(y.double().sum().item() - 1) < 1e-6
    assert (y >= 0).all()
    rounding = 2.0**-23 * max(abs(shift), 80)
    torch.testing.assert_close(softmax(x + shift, algorithm="two_pass"), y, rtol=2 * rounding + 1e-6, atol=1e-37)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3), (1, 1), (2, 3, 4)])
def test_shapes_and_dims_are_pytorchs(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for dim in range(-max(x.ndim, 1), max(x.ndim, 1)):
        for algorithm in ALGORITHMS:
            torch.testing.assert_close(softmax(x, dim, algorithm=algorithm), torch.softmax(x, dim))
        torch.testing.assert_close(log_softmax(x, dim), torch.log_softmax(x, dim))
        for keepdim in (False, True):
            torch.testing.assert_close(logsumexp(x, dim, keepdim), torch.logsumexp(x, dim, keepdim))
    if x.ndim == 3:
        for dims in ((0, 2), (2, 1), [1, -3], (0, 1, 2)):
            torch.testing.assert_close(logsumexp(x, dims, True), torch.logsumexp(x, dims, True))


def test_dtypes(generator):
    for dtype, tolerance in ((torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float64, 1e-14)):
        x = torch.randn(20, 300, generator=generator).to(dtype)
        y = softmax(x, algorithm="two_pass")
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), torch.softmax(x.double(), -1), rtol=tolerance, atol=2**-25)
    counts = torch.tensor([1, 2, 3])
    assert torch.equal(softmax(counts, dtype=torch.float64), torch.softmax(counts, 0, dtype=torch.float64))
    assert log_softmax(torch.zeros(5).half(), dtype=torch.float32).dtype == torch.float32


def test_out(generator):
    x = torch.randn(30, 50, generator=generator)
    for algorithm in ALGORITHMS:
        y = torch.empty(30, 50)
        assert softmax(x, 0, out=y, algorithm=algorithm) is y
        assert torch.equal(y, softmax(x, 0, algorithm=algorithm))
    total = torch.empty(30)
    assert logsumexp(x, 1, out=total) is total
    torch.testing.assert_close(total, torch.logsumexp(x, 1))
    expected = log_softmax(x)
    assert torch.equal(log_softmax(x, out=x), expected)


def test_gradients(generator):
    x = torch.randn(4, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    for function in (softmax, log_softmax, logsumexp, lambda x: softmax(x, 0, algorithm="two_pass")):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)
    x = torch.randn(2, 7, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: logsumexp(x, (0, 2), keepdim=True), x)


def test_gradient_of_a_long_row_is_pytorchs(generator):
    x = torch.randn(2, 100_000, generator=generator)
    weights = torch.randn(2, 100_000, generator=generator)
    gradients = []
    for function in (softmax, torch.softmax):
        leaf = x.clone().requires_grad_()
        (function(leaf, -1) * weights).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=2e-5, atol=1e-10)


@pytest.mark.bad_input  # only to switch off the checked annotations, which torch.compile cannot trace
def test_compile_sees_one_graph(generator):
    """Without graph breaks, forwards and backwards, and through ``out``."""
    x = torch.randn(3, 70_000, generator=generator, requires_grad=True)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(x):
        return softmax(2 * x, algorithm="two_pass").square().sum() + log_softmax(x).max() + logsumexp(x).sum()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def into(x, y):
        softmax(x, out=y)
        return y + 1

    loss(x).backward()
    got, x.grad = x.grad, None
    (torch.softmax(2 * x, -1).square().sum() + torch.log_softmax(x, -1).max() + torch.logsumexp(x, -1).sum()).backward()
    torch.testing.assert_close(got, x.grad, rtol=1e-4, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(into(x, torch.empty_like(x)), torch.softmax(x, -1) + 1)


def test_module(generator):
    x = torch.randn(3, 5, generator=generator)
    layer = torch.nn.Sequential(TwoPassSoftmax(dim=0))
    torch.testing.assert_close(layer(x), torch.softmax(x, 0))
    assert not layer.state_dict()
    assert repr(pickle.loads(pickle.dumps(layer))[0]) == "TwoPassSoftmax(dim=0, algorithm='auto')"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.nn.Softmax(0)(x).dtype


def test_small_tensors_are_left_to_pytorch(monkeypatch):
    monkeypatch.undo()
    x = torch.randn(8, 100)
    with torch.profiler.profile() as profile:
        softmax(x)
        assert torch.equal(softmax(x), torch.softmax(x, -1))
    assert not any(event.key.startswith("hadamard") for event in profile.key_averages())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_pytorchs_own_samples(name):
    """The inputs with which PyTorch tests its own functions."""
    pytest.importorskip("expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    mine = {"softmax": softmax, "log_softmax": log_softmax, "logsumexp": logsumexp}[name]
    for info in (op for op in op_db if op.name == name):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for sample in info.sample_inputs("cpu", dtype):
                expected = info.op(sample.input, *sample.args, **sample.kwargs)
                got = mine(sample.input, *sample.args, **sample.kwargs)
                # in bfloat16 PyTorch rounds the logarithm of the sum before it subtracts
                close = {"rtol": 0.016, "atol": 0.008} if dtype == torch.bfloat16 else {}
                torch.testing.assert_close(got, expected, **close)


@pytest.mark.bad_input
@pytest.mark.parametrize("function", [softmax, log_softmax, logsumexp])
@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (([1.0, 2.0],), TypeError, "input must be a torch.Tensor, got list"),
        ((torch.tensor([1, 2]),), TypeError, "input must have a floating dtype, got torch.int64"),
        ((torch.tensor([1j]),), TypeError, "input must have a floating dtype, got torch.complex64"),
        (
            (torch.zeros(2, dtype=torch.float8_e4m3fn),),
            TypeError,
            "input must be converted to float32, float64, float16 or bfloat16, got torch.float8_e4m3fn",
        ),
        ((torch.zeros(2, 3), 2), IndexError, "dim must be between -2 and 1, got 2"),
        ((torch.zeros(()), -2), IndexError, "dim must be between -1 and 0, got -2"),
    ],
)
def test_bad_input(function, arguments, error, message):
    with pytest.raises(error) as raised:
        function(*arguments)
    assert str(raised.value) == message


@pytest.mark.bad_input
def test_bad_options():
    x = torch.zeros(4, 5)
    wanted = "algorithm must be one of 'auto', 'two_pass', 'three_pass_recompute', 'three_pass_reload', got 'fast'"
    for call in (lambda: softmax(x, algorithm="fast"), lambda: TwoPassSoftmax(algorithm="fast")):
        with pytest.raises(ValueError) as raised:
            call()
        assert str(raised.value) == wanted
    with pytest.raises(ValueError, match=r"dim must name one or more different dimensions, got \(0, -2\)"):
        logsumexp(x, (0, -2))
    with pytest.raises(TypeError, match="input must be converted to float32, .* got torch.int32"):
        softmax(x, dtype=torch.int32)


@pytest.mark.bad_input
def test_bad_out():
    x = torch.zeros(20)
    with pytest.raises(ValueError, match="input and out must have the same dtype, got torch.float32 and torch.float64"):
        softmax(x, out=torch.zeros(20, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"out must have shape \(20,\), got \(21,\)"):
        softmax(x, out=torch.zeros(21))
    with pytest.raises(ValueError, match=r"out must have shape \(\), got \(1,\)"):
        logsumexp(x, out=torch.zeros(1))
    with pytest.raises(ValueError, match="out must not partially overlap input"):
        softmax(x[:10], out=x[5:15])
    with pytest.raises(ValueError, match="out must not partially overlap input"):
        logsumexp(x.view(4, 5), out=x[:4])
    with pytest.raises(ValueError, match="out cannot be given where a gradient is wanted"):
        softmax(x.requires_grad_(), out=torch.zeros(20))


def test_reference_path(generator):
    """Everything holds without compiled kernels too."""
    x = torch.randn(5, 60, generator=generator, requires_grad=True)
    with using("torch"):
        for algorithm in ALGORITHMS:
            assert torch.equal(softmax(x, 0, algorithm=algorithm), torch.softmax(x, 0))
        logsumexp(x, 0).sum().backward()
    torch.testing.assert_close(x.grad, torch.softmax(x.detach(), 0))
