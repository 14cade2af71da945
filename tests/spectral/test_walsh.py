"""The dense Walsh-Hadamard transform."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from hadamard.kernels import using
from hadamard.kernels.walsh import reference
from hadamard.spectral import fwht


@pytest.mark.parametrize("n", [1, 2, 8, 64, 128, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_hadamard_matrix_in_natural_order(n, dtype, generator):
    x = torch.randn(3, n, dtype=dtype, generator=generator)
    H = torch.tensor(hadamard(n), dtype=dtype)
    torch.testing.assert_close(fwht(x), x @ H.T, rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-12)


@settings(max_examples=20, deadline=None)
@given(log=st.integers(0, 9), seed=st.integers(0, 99))
def test_twice_is_n_times_and_parseval(log, seed):
    n = 1 << log
    x = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(fwht(fwht(x)), n * x)
    torch.testing.assert_close(fwht(fwht(x), norm="forward"), x)
    torch.testing.assert_close(fwht(x, norm="ortho").square().sum(), x.square().sum())


def test_any_dimension_and_layout(generator):
    x = torch.randn(4, 16, 3, generator=generator)
    torch.testing.assert_close(fwht(x, dim=1), fwht(x.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(fwht(x.transpose(0, 1), dim=0), fwht(x, dim=1).transpose(0, 1))


@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
def test_gradient(norm, generator):
    x = torch.randn(2, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fwht(x, norm=norm), x)


@pytest.mark.parametrize("path", ["auto", "portable", "torch"])
@pytest.mark.parametrize("shape", [(3, 1), (5, 16), (2, 2**12), (2**16,), (1, 2**15)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_path_gives_the_same(path, shape, dtype, generator):
    x = torch.randint(-9, 9, shape, generator=generator).to(dtype)
    before = x.clone()
    with using(path):
        y = fwht(x)
    assert torch.equal(y, reference(x))
    assert torch.equal(x, before)


def test_the_operator_is_registered_as_torch_wants_it(generator):
    x = torch.randn(2, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    torch.library.opcheck(torch.ops.hadamard.walsh.default, (x,))
    torch.testing.assert_close(torch.vmap(fwht)(x), fwht(x))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(6),), ValueError, "x must have a power of two entries along dim -1, got 6"),
        ((torch.ones(4), -1, "unit"), ValueError, "norm must be one of"),
        ((torch.ones(4, dtype=torch.int64),), TypeError, "x must have a floating dtype"),
        (([1.0],), TypeError, r"x must be a torch\.Tensor"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        fwht(*arguments)
