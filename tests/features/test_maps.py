"""Feature maps: unbiased in the mean, exact to a degree, counts and error bounds."""

import math

import numpy as np
import pytest
import torch

from hadamard.features import Monomials, PositiveRandom, rank, taylor_degree, taylor_error

D = torch.float64


def points(*shape, norm=1.0, seed=0):
    x = torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))
    return norm * x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_positive_random_is_unbiased(orthogonal, generator):
    """The mean over 1000 draws lies within three standard errors of exp(x . y)."""
    x, y = points(1, 6, norm=0.8, seed=1), points(1, 6, norm=1.1, seed=2)
    phi, draws = PositiveRandom(6, 9, orthogonal=orthogonal, generator=generator, dtype=D), []
    for _ in range(1000):
        phi.redraw(generator)
        draws.append((phi(x) @ phi(y).mT).item())
    error = np.std(draws) / math.sqrt(len(draws))
    assert abs(np.mean(draws) - torch.exp(x @ y.mT).item()) < 3 * error
    assert error < 0.05


def test_rows_are_orthogonal_and_as_long_as_normal_vectors(generator):
    w = PositiveRandom(5, 12, generator=generator, dtype=D).projection
    for block in w.split(5):
        gram = block @ block.mT
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-12, rtol=0)
    long = PositiveRandom(5, 20_000, generator=generator, dtype=D).projection.square().sum(-1)
    assert abs(long.mean().item() - 5) < 0.1  # chi-squared with 5 degrees of freedom
    assert abs(long.var().item() - 10) < 0.6


def test_scaled_features_do_not_overflow(generator):
    phi = PositiveRandom(4, 8, generator=generator)
    x = 1e3 * torch.randn(2, 5, 4, generator=generator)
    features, log_scale = phi.scaled(x)
    assert features.amax(-1).eq(1).all()
    assert log_scale.isfinite().all()
    z = torch.randn(2, 5, 4, generator=generator)
    features, log_scale = phi.scaled(z)
    torch.testing.assert_close(features * log_scale.exp()[..., None], phi(z))
    direct = torch.exp(z @ phi.projection.mT - z.square().sum(-1, keepdim=True) / 2) / math.sqrt(8)
    torch.testing.assert_close(phi(z), direct)


def test_positive_random_in_a_state_dict(generator):
    phi, twin = PositiveRandom(4, 8, generator=generator), PositiveRandom(4, 8)
    before, state = phi.projection.clone(), torch.random.get_rng_state()
    twin.load_state_dict(phi.state_dict())
    x = torch.randn(3, 4, generator=generator)
    assert torch.equal(phi(x), twin(x))
    phi.redraw(generator)
    assert not torch.equal(phi.projection, before)
    assert torch.equal(state, torch.random.get_rng_state())


def test_gradients_of_the_maps(generator):
    phi = PositiveRandom(3, 4, generator=generator, dtype=D)
    x = points(2, 3, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(phi, x)
    assert torch.autograd.gradcheck(Monomials(3), x)


@pytest.mark.parametrize("factors", [1, 2, 3, 4])
@pytest.mark.parametrize("degree", [0, 1, 2, 5])
def test_monomials_sum_to_the_taylor_series(factors, degree):
    xs = [points(7, 3, norm=1.5, seed=s) for s in range(factors)]
    phi = Monomials(degree, factors)
    product = math.prod(phi(x) for x in xs)
    assert product.shape[-1] == rank(3, degree)
    u = math.prod(xs).sum(-1)
    series = sum(u**t / math.factorial(t) for t in range(degree + 1))
    torch.testing.assert_close(product.sum(-1), series, rtol=1e-12, atol=1e-12)


def test_monomials_in_one_variable():
    x = torch.tensor([[2.0]], dtype=D)
    wanted = torch.tensor([[2.0**t / math.sqrt(math.factorial(t)) for t in range(5)]], dtype=D)
    torch.testing.assert_close(Monomials(4)(x), wanted)


@pytest.mark.parametrize("bound", [0.01, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("degree", [0, 2, 4, 8, 20])
def test_taylor_error_is_the_worst_case_and_below_lagrange(bound, degree):
    x = torch.linspace(-bound, bound, 2001, dtype=D)
    terms = torch.stack([x**t / math.factorial(t) for t in range(degree + 1)])
    error = (terms.sum(0) / x.exp() - 1).abs().max().item()
    assert taylor_error(bound, degree) == pytest.approx(error, rel=1e-6, abs=1e-12)
    lagrange = math.exp(bound) * bound ** (degree + 1) / math.factorial(degree + 1)
    assert taylor_error(bound, degree) <= lagrange * (1 + 1e-12)


@pytest.mark.parametrize("bound", [0.0, 0.1, 1.0, 5.0, 50.0, 400.0])
@pytest.mark.parametrize("eps", [0.1, 1e-3, 1e-10])
def test_degree_is_even_and_least(bound, eps):
    degree = taylor_degree(bound, eps)
    assert degree % 2 == 0
    assert taylor_error(bound, degree) <= eps
    assert degree == 0 or taylor_error(bound, degree - 2) > eps


def test_even_degrees_are_positive():
    x = torch.linspace(-30, 30, 1001, dtype=D)
    for degree in (2, 4, 10):
        assert (sum(x**t / math.factorial(t) for t in range(degree + 1)) > 0).all()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PositiveRandom(0, 4), "dim must be >= 1, got 0"),
        (lambda: PositiveRandom(4, 0), "num_features must be >= 1, got 0"),
        (lambda: Monomials(-1), "degree must be >= 0, got -1"),
        (lambda: Monomials(2, 0), "factors must be >= 1, got 0"),
        (lambda: rank(0, 2), "d must be >= 1, got 0"),
        (lambda: taylor_degree(-1.0, 0.1), "bound must be >= 0"),
        (lambda: taylor_degree(1.0, 0.0), "eps must be > 0, got 0.0"),
        (lambda: taylor_error(float("nan"), 2), "bound must be >= 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
