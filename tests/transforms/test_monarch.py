"""The Monarch transform against the FFT, in any number of factors."""

import pytest
import torch

from hadamard.transforms import monarch_fft, monarch_ifft, monarch_order
from hadamard.transforms.monarch import balanced_factors

FACTORS = [(7,), (4, 6), (16, 16), (2, 3, 4), (8, 4, 2, 2), (1, 5), (32, 16, 16)]


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_is_the_transform_in_another_order(factors, dtype, generator):
    order = monarch_order(factors)
    x = torch.randn(2, 3, len(order), dtype=dtype, generator=generator)
    exact = torch.fft.fft(x)
    assert sorted(order.tolist()) == list(range(len(order)))
    assert (monarch_fft(x, factors) - exact[..., order]).norm() <= 1e-12 * exact.norm()
    torch.testing.assert_close(monarch_ifft(monarch_fft(x, factors), factors), x.to(torch.complex128))


@pytest.mark.parametrize(("factors", "keep"), [((4, 6), (2, 3)), ((2, 3, 4), (1, 3, 2)), ((5,), (2,))])
def test_what_is_not_kept_is_left_out(factors, keep, generator):
    order = monarch_order(factors, keep)
    n = torch.tensor(factors).prod().item()
    x = torch.randn(3, n, dtype=torch.complex128, generator=generator)
    kept = monarch_fft(x, factors, keep)
    torch.testing.assert_close(kept, torch.fft.fft(x)[:, order])
    sparse = torch.zeros(3, n, dtype=torch.complex128).index_copy_(1, order, kept)
    torch.testing.assert_close(monarch_ifft(kept, factors, keep), torch.fft.ifft(sparse))


@pytest.mark.parametrize("n", [6, 97 * 4, 256, 1000, 32768])
def test_factors_are_balanced(n):
    for order in (1, 2):
        factors = balanced_factors(n, order)
        assert len(factors) == order
        assert torch.tensor(factors).prod() == n
    assert balanced_factors(4096, 3) == (16, 16, 16)
    assert balanced_factors(65536, 4) == (16, 16, 16, 16)


@pytest.mark.bad_input
def test_bad_input():
    x = torch.ones(12)
    with pytest.raises(ValueError, match=r"factors must have the product 12, the length of x, got \(5, 2\)"):
        monarch_fft(x, (5, 2))
    with pytest.raises(ValueError, match=r"factors must be positive integers, got \(-3, -4\)"):
        monarch_fft(x, (-3, -4))
    with pytest.raises(ValueError, match="X must have 12 frequencies in its last dimension"):
        monarch_ifft(x[:5].to(torch.complex64), (3, 4))
    with pytest.raises(ValueError, match="n must be a product of 2 factors above 1, got 7"):
        balanced_factors(7, 2)
