"""The one convolution against the sum that it stands for."""

import pytest
import torch

from hadamard.spectral import convolve, convolve_backward, correlate, spectrum

MODES = ["causal", "full", "circular"]


def direct(u, k, mode):
    """The sum itself along the last dimension, by a dense matrix."""
    n, m = u.shape[-1], k.shape[-1]
    rows = n + m - 1 if mode == "full" else n
    matrix = torch.zeros(*k.shape[:-1], rows, n, dtype=torch.promote_types(u.dtype, k.dtype))
    for i in range(rows):
        for j in range(n):
            if mode == "circular":
                matrix[..., i, j] = sum((k[..., t] for t in range((i - j) % n, m, n)), torch.zeros(()))
            elif 0 <= i - j < m:
                matrix[..., i, j] = k[..., i - j]
    return (matrix @ u[..., None].to(matrix.dtype))[..., 0], matrix


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "m"), [(8, 3), (7, 7), (5, 12), (13, 1), (1, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_convolution_and_its_adjoint_are_the_dense_matrix(mode, n, m, dtype, generator):
    u = torch.randn(2, 3, n, dtype=dtype, generator=generator)
    k = torch.randn(3, m, dtype=dtype, generator=generator)
    expected, matrix = direct(u, k, mode)
    torch.testing.assert_close(convolve(u, k, mode=mode), expected)
    y = torch.randn(*expected.shape, dtype=dtype, generator=generator)
    back = (matrix.mH @ y[..., None])[..., 0]
    torch.testing.assert_close(correlate(y, k, mode=mode), back)


@pytest.mark.parametrize("mode", MODES)
def test_a_cached_spectrum_gives_the_same(mode, generator):
    u, k = (torch.randn(3, 10, dtype=torch.float64, generator=generator) for _ in range(2))
    cached = spectrum(k, 10 if mode == "circular" else 20)
    torch.testing.assert_close(convolve(u, k, mode=mode, spectrum=cached), convolve(u, k, mode=mode))


def test_delta_is_the_identity_and_a_shifted_one_shifts(generator):
    u = torch.randn(4, 9, generator=generator)
    delta = torch.zeros(9)
    delta[2] = 1
    torch.testing.assert_close(convolve(u, torch.ones(1)), u)
    torch.testing.assert_close(convolve(u, delta, mode="circular"), u.roll(2, -1))
    torch.testing.assert_close(convolve(u, delta), torch.nn.functional.pad(u, (2, 0))[:, :9])


def test_two_dimensions_and_real_by_complex(generator):
    u = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    k = torch.randn(3, 3, dtype=torch.complex128, generator=generator)
    expected = torch.zeros(6, 7, dtype=torch.complex128)
    for i in range(3):
        for j in range(3):
            expected[i : i + 4, j : j + 5] += k[i, j] * u
    torch.testing.assert_close(convolve(u, k, dims=(-2, -1), mode="full"), expected)
    torch.testing.assert_close(convolve(u, k, dims=(0, 1), mode="full"), expected)


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode, generator):
    u = torch.randn(2, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    k = torch.randn(2, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u, k: convolve(u, k, mode=mode), (u, k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, generator):
    u, k = torch.randn(64, generator=generator).to(dtype), torch.randn(64, generator=generator).to(dtype)
    y = convolve(u, k)
    assert y.dtype == dtype
    torch.testing.assert_close(y, convolve(u.float(), k.float()).to(dtype))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u, k: convolve(u, k, mode="same"), "mode must be one of 'causal', 'full', 'circular', got 'same'"),
        (
            lambda u, k: convolve(u, k, spectrum=spectrum(k, 8)),
            r"spectrum must be of a real transform of at least \(15,\)",
        ),
        (lambda u, k: convolve(u, k, mode="circular", spectrum=spectrum(k, 16)), r"of exactly \(8,\) points"),
        (lambda u, k: spectrum(k, 4), "n must be at least the kernel's size"),
        (lambda u, k: spectrum(k + 0j, 8), "real must be False for a complex kernel k"),
        (lambda u, k: correlate(u[:4], k, mode="full"), "y must be at least as long as the kernel"),
        (lambda u, k: convolve(u[:0], k), "u must not be empty"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(8), torch.ones(8))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "m"), [(8, 3), (5, 12), (1, 4)])
@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float64), (torch.float64, torch.complex128)])
@pytest.mark.parametrize("batches", [((2, 3), (3,)), ((3,), (2, 1)), ((), (2,))])
def test_gradients_are_those_of_autograd(mode, n, m, dtypes, batches, generator):
    u = torch.randn(*batches[0], n, dtype=dtypes[0], generator=generator).requires_grad_()
    k = torch.randn(*batches[1], m, dtype=dtypes[1], generator=generator).requires_grad_()
    y = convolve(u, k, mode=mode)
    grad = torch.randn(y.shape, dtype=y.dtype, generator=generator)
    expected = torch.autograd.grad(y, (u, k), grad)
    for got, wanted in zip(convolve_backward(grad, u.detach(), k.detach(), mode=mode), expected, strict=True):
        torch.testing.assert_close(got, wanted)
