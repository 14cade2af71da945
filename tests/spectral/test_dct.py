"""The cosine transform against scipy's."""

import numpy as np
import pytest
import scipy.fft
import torch

from hadamard.spectral import dct, idct


@pytest.mark.parametrize("n", [1, 2, 5, 8, 65, 96, 97, 130])
def test_both_ways_are_scipys(n, generator):
    x = torch.randn(3, n, 2, dtype=torch.float64, generator=generator)
    np.testing.assert_allclose(dct(x, 1), scipy.fft.dct(x, axis=1, norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(idct(x, 1), scipy.fft.idct(x, axis=1, norm="ortho"), atol=1e-12)
    torch.testing.assert_close(idct(dct(x, 1), 1), x)


@pytest.mark.parametrize("shape", [(6, 9), (100, 81), (33, 128)])
def test_of_several_dimensions(shape, generator):
    x = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    X = dct(x, (-2, -1))
    np.testing.assert_allclose(X, scipy.fft.dctn(x, axes=(-2, -1), norm="ortho"), atol=1e-12)
    torch.testing.assert_close(X.norm(), x.norm())


@pytest.mark.parametrize(("n", "m"), [(9, 4), (100, 7), (100, 80), (200, 199)])
def test_some_coefficients_are_the_first_of_all(n, m, generator):
    x, c = (torch.randn(2, size, dtype=torch.float64, generator=generator) for size in (n, m))
    torch.testing.assert_close(dct(x, keep=m), dct(x)[:, :m])
    torch.testing.assert_close(idct(c, size=n), idct(torch.nn.functional.pad(c, (0, n - m))))
    torch.testing.assert_close((dct(x, keep=m) * c).sum(), (x * idct(c, size=n)).sum())  # adjoints


def test_a_function_of_few_cosines_goes_to_a_finer_grid():
    def sample(n):
        t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return 1 + torch.cos(torch.pi * t) - 0.5 * torch.cos(3 * torch.pi * t)

    torch.testing.assert_close(idct(dct(sample(8)), size=100) * (100 / 8) ** 0.5, sample(100))


@pytest.mark.parametrize("n", [7, 66, 67])
def test_gradients(n, generator):
    x = torch.randn(2, n, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(dct, (x,))
    assert torch.autograd.gradcheck(idct, (x,))
    assert torch.autograd.gradgradcheck(dct, (x,))


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_precision_follows_the_input(dtype, tol, generator):
    x = torch.randn(4, 200, generator=generator)
    X = dct(x.to(dtype))
    assert X.dtype == dtype
    np.testing.assert_allclose(X.float(), scipy.fft.dct(x.double(), norm="ortho"), atol=tol)


@pytest.mark.bad_input  # only to switch off the checked annotations, which torch.compile cannot trace
def test_compiles(generator):
    x = torch.randn(2, 70, generator=generator)
    torch.testing.assert_close(torch.compile(dct, fullgraph=True, backend="aot_eager")(x), dct(x))


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(TypeError, match=r"x must have a floating dtype, got torch\.complex64"):
        dct(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="keep must be >= 1 and <= 3, got 4"):
        dct(torch.ones(3), keep=4)
    with pytest.raises(ValueError, match="size must be >= 3, got 2"):
        idct(torch.ones(3), size=2)
    with pytest.raises(ValueError, match="keep must have one entry for each of the 2 dims, got 1"):
        dct(torch.ones(3, 3), dims=(0, 1), keep=(2,))
