"""The softmax operators: compiled against reference, their registration, their memory."""

import itertools

import pytest
import torch

from hadamard.kernels import softmax as kernels
from hadamard.kernels import using

INF, NAN = float("inf"), float("nan")
KINDS = {
    "two_pass": torch.softmax,
    "three_pass_recompute": torch.softmax,
    "three_pass_reload": torch.softmax,
    "log_softmax": torch.log_softmax,
    "logsumexp": torch.logsumexp,
}
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 1e-3, torch.bfloat16: 8e-3}

pytestmark = pytest.mark.usefixtures("path")


@pytest.fixture(params=["auto", "portable"])
def path(request):
    """Every compiled path."""
    with using(request.param):
        yield


@pytest.fixture
def threads():
    """Sets the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def compute(kind, x, dim, **options):
    shape = list(x.shape)
    if kind == "logsumexp":
        del shape[dim]
    y = torch.empty(shape, dtype=x.dtype)
    kernels.write(kind, x, dim, y, **options)
    return y


def assert_matches(kind, x, dim, y):
    """Against float64, relative to the value; logarithms absolutely, as they may cancel."""
    truth = KINDS[kind](x.double(), dim)
    rtol = TOLERANCE[x.dtype]
    atol = 1e-38 if KINDS[kind] is torch.softmax else rtol
    atol = {torch.float16: 2**-25, torch.bfloat16: 1e-38}.get(x.dtype, atol) if atol == 1e-38 else atol
    torch.testing.assert_close(y.double(), truth, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_length(kind, dtype, generator):
    """Odd tails, the ends of tiles and blocks."""
    every = range(1, 68) if dtype == torch.float32 else (1, 7, 8, 9, 37, 63, 66)
    for n in [*every, 127, 4095, 4096, 4097, 10001]:
        x = torch.randn(3, n, generator=generator).mul(3).to(dtype)
        assert_matches(kind, x, 1, compute(kind, x, 1))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape, dim", [((7, 13), 0), ((2, 300, 5), 1), ((5, 2, 3), 0), ((3, 11, 600), 1)])
def test_columns(kind, dtype, shape, dim, generator):
    x = torch.randn(shape, generator=generator).mul(3).to(dtype)
    assert_matches(kind, x, dim, compute(kind, x, dim))


@pytest.mark.parametrize("kind", KINDS)
def test_strided_input_and_output(kind, generator):
    x = torch.randn(40, 6, 30, generator=generator).transpose(0, 2)[::2]
    y = compute(kind, x, 1)
    assert_matches(kind, x, 1, y)
    out = torch.empty(*y.shape, 2)[..., 0]
    kernels.write(kind, x, 1, out)
    assert torch.equal(out, y)


@pytest.mark.parametrize("kind", ["two_pass", "three_pass_recompute", "log_softmax"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_streaming_and_unaligned_pointers(kind, dtype, generator):
    """Streaming stores need aligned addresses: every misalignment of either end, and nothing beyond the end."""
    for start, n in itertools.product((0, 1, 3, 7, 13), (2, 9, 40, 333)):
        x = torch.randn(start + n, generator=generator).to(dtype)[start:]
        memory = torch.full((start + n + 16,), 7.0, dtype=dtype)
        y = memory[start : start + n]
        kernels.write(kind, x, 0, y, stream=True)
        assert_matches(kind, x, 0, y)
        assert torch.equal(y, compute(kind, x, 0, stream=False))
        assert (memory[:start] == 7).all()
        assert (memory[start + n :] == 7).all()
    for columns, start in ((64, 0), (64, 1), (37, 0)):
        x = torch.randn(20, columns, generator=generator).to(dtype)
        y = torch.empty(20 * columns + start, dtype=dtype)[start:].view(20, columns)
        kernels.write(kind, x, 0, y, stream=True)
        assert torch.equal(y, compute(kind, x, 0, stream=False))


@pytest.mark.parametrize("kind", ["two_pass", "three_pass_recompute", "three_pass_reload", "log_softmax"])
@pytest.mark.parametrize("dim", [0, 1])
def test_in_place(kind, dim, generator):
    x = torch.randn(70, 300, generator=generator)
    x[3, 5] = INF
    y = compute(kind, x, dim)
    kernels.softmax_out(kind, x, dim, x)
    assert torch.equal(x.nan_to_num(9), y.nan_to_num(9))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "row",
    [
        [-INF, -INF], [INF, 0.0], [NAN, 0.0], [INF, -INF], [-INF, NAN], [INF, NAN], [-INF, 0.0, 0.0],
        [-3.4e38, -3.4e38], [3e38, 0.0], [3e38, -3e38], [1e7, 1e7 + 1], [-2e6, -2e6 - 1], [1e30, 1e38],
    ],
    ids=str,
)  # fmt: skip
def test_special_values_are_pytorchs(kind, row):
    for repeats, dim in itertools.product((1, 50), (0, 1)):
        x = torch.tensor(row).repeat(repeats)
        x = torch.stack([x, torch.zeros_like(x)], dim=1 - dim).contiguous()
        expected = KINDS[kind](x, dim)
        torch.testing.assert_close(compute(kind, x, dim), expected, rtol=2e-6, atol=0, equal_nan=True)


def test_exponential_to_a_few_ulp():
    """Softmax of (x, 0) is e^x / (1 + e^x): for x << 0 it shows the exponential itself."""
    x = torch.linspace(-87, 0, 200_001)
    for n in (2, 3):
        pair = torch.zeros(n, len(x)).index_fill(0, torch.tensor([1]), 0)
        pair[1] = x
        y = compute("two_pass", pair, 0)[1].double()
        truth = torch.softmax(pair.double(), 0)[1]
        assert ((y - truth) / truth).abs().max() < 3 * 2**-23


@pytest.mark.parametrize("n", [100_003, 2**20])
def test_error_does_not_grow_with_the_row(n, generator):
    x = torch.randn(n, generator=generator) * 3
    for kind in ("two_pass", "three_pass_reload"):
        y = compute(kind, x, 0).double()
        assert abs(y.sum().item() - 1) < 1e-6
    truth = torch.softmax(x.double(), 0)
    y = compute("two_pass", x, 0)
    assert ((y - truth) / truth).abs().max() < 1e-6
    columns = compute("two_pass", x[:, None].expand(n, 2), 0)
    assert ((columns[:, 0] - truth) / truth).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_change_the_values(kind, threads, generator):
    """Few long rows are split, many rows are dealt out, columns go by strips."""
    for shape, dim in (((1, 300_001), 1), ((2, 200_003), 1), ((40, 10_000), 1), ((100, 5000), 0)):
        x = torch.randn(shape, generator=generator)
        x[0, 7] = -INF
        threads(1)
        one = compute(kind, x, dim)
        for count in (2, 3, 8):
            threads(count)
            torch.testing.assert_close(compute(kind, x, dim), one, rtol=3e-7, atol=1e-6 * (dim < 0))
        huge = x.clone()
        huge[0, 8] = 3e38
        torch.testing.assert_close(compute(kind, huge, dim), KINDS[kind](huge, dim), rtol=1e-4, atol=1e-4)
        x[0, 9] = NAN
        torch.testing.assert_close(compute(kind, x, dim), KINDS[kind](x, dim), rtol=1e-4, atol=1e-4, equal_nan=True)


def test_choice_of_algorithm(threads, monkeypatch):
    monkeypatch.setattr(kernels, "last_level_cache", lambda: 2**24)
    threads(1)
    assert kernels.choose(torch.empty(2, 2**20), 1) == "three_pass_reload"
    assert kernels.choose(torch.empty(2, 2**21), 1) == "two_pass"
    assert kernels.choose(torch.empty(2**10, 2**10), 0) == "two_pass"
    assert kernels.choose(torch.empty(2, 2**10, dtype=torch.bfloat16), 1) == "two_pass"
    threads(4)
    assert kernels.choose(torch.empty(2, 2**20), 1) == "two_pass"
    assert kernels.choose(torch.empty(4, 2**19), 1) == "two_pass"
    assert kernels.choose(torch.empty(4, 2**18), 1) == "three_pass_reload"


@pytest.mark.parametrize("path", ["auto"], indirect=True)
def test_registration(generator):
    """torch.library's own checks: schema, fake kernel, autograd, torch.compile's tracing."""
    x = torch.randn(4, 5, 6, generator=generator, requires_grad=True)
    torch.library.opcheck(torch.ops.hadamard.softmax.default, (x, 0, "auto"))
    torch.library.opcheck(torch.ops.hadamard.softmax.default, (x.transpose(0, 2), 1, "three_pass_reload"))
    torch.library.opcheck(torch.ops.hadamard.log_softmax.default, (x.transpose(0, 2), 1))
    torch.library.opcheck(torch.ops.hadamard.logsumexp.default, (x, 1))
    out = torch.empty(4, 5, 6)
    torch.library.opcheck(torch.ops.hadamard.softmax_out.default, ("two_pass", x.detach(), 1, out))


def test_gradients():
    x = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    for operator in (
        lambda x: kernels.softmax(x, 1, "two_pass"),
        lambda x: kernels.softmax(x, 0, "three_pass_reload"),
        lambda x: kernels.log_softmax(x, 1),
        lambda x: kernels.logsumexp(x, 0),
    ):
        assert torch.autograd.gradcheck(operator, x)
        assert torch.autograd.gradgradcheck(operator, x)


def test_vmap(generator):
    x = torch.randn(4, 5, 6, generator=generator)
    for batch in (0, 1, 2):
        each = torch.vmap(lambda r: kernels.softmax(r, 1, "two_pass"), in_dims=batch, out_dims=batch)(x)
        torch.testing.assert_close(each, torch.softmax(x, 1 if batch == 2 else 2))
        each = torch.vmap(lambda r: kernels.log_softmax(r, 0), in_dims=batch, out_dims=batch)(x)
        torch.testing.assert_close(each, torch.log_softmax(x, 1 if batch == 0 else 0))
        each = torch.vmap(lambda r: kernels.logsumexp(r, 1), in_dims=batch)(x)
        torch.testing.assert_close(each, torch.logsumexp(x, 1 if batch == 2 else 2).movedim(min(batch, 1), 0))


def test_fallback_gives_the_same(generator):
    x = torch.randn(50, 40, generator=generator, dtype=torch.float64)
    for kind, dim in itertools.product(KINDS, (0, 1)):
        mine = compute(kind, x, dim)
        with using("torch"):
            torch.testing.assert_close(compute(kind, x, dim), mine, rtol=1e-13, atol=1e-13)
