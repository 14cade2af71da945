"""Gaussian-process solver: kernels against finite differences, Kronecker against dense, and known solutions."""

import math
from dataclasses import replace

import mpmath
import pytest
import torch

from hadamard.pde import SpectralMixture, gp_hm
from hadamard.pde._collocation import Problem, _Equation, evidence

TURN = 2 * math.pi
sin = torch.sin


def grid(n, top=TURN):
    return torch.linspace(0, top, n, dtype=torch.float64)


def mixture(envelope="student_t", floor=1e-3, seed=0):
    g = torch.Generator().manual_seed(seed)
    weights, lengths, frequencies = torch.randn(3, 4, generator=g, dtype=torch.float64)
    return SpectralMixture(weights, lengths.mul(0.3), frequencies.mul(0.4), envelope, floor, 0.5)


def error(found, truth):
    return float((found.value - truth).norm() / truth.norm())


@pytest.mark.parametrize("envelope", ["student_t", "gaussian"])
def test_derivatives_against_mpmath(envelope):
    k = mixture(envelope)
    w, lengths, mu = (v.tolist() for v in (k.weights, k.lengths, k.frequencies))

    def bump(s):
        if envelope == "gaussian":
            return mpmath.exp(-s * s / 2)
        r = mpmath.sqrt(5) * abs(s)
        return (1 + r + r * r / 3) * mpmath.exp(-r)

    def exact(t):
        total = sum(a * bump(t / b) * mpmath.cos(2 * mpmath.pi * c * t) for a, b, c in zip(w, lengths, mu))
        return total + k.floor * bump(t / k.floor_length)

    with mpmath.workdps(40):
        for order in range(3 if envelope == "student_t" else 5):
            for lag in (0.7, -0.3):
                want = float(mpmath.diff(exact, mpmath.mpf(lag), order))
                assert float(k(torch.tensor(lag, dtype=torch.float64), order)) == pytest.approx(want, rel=1e-9)
        h = mpmath.mpf("1e-6")  # at lag 0, where automatic differentiation of abs gives 0
        want = float((exact(h) - 2 * exact(mpmath.mpf(0)) + exact(-h)) / h**2)
    assert float(k(torch.zeros((), dtype=torch.float64), 2)) == pytest.approx(want, rel=1e-4)


def test_uniform_grid_is_gathered_from_its_lags():
    x, k = grid(9), mixture()
    for order in range(3):
        torch.testing.assert_close(k.matrix(x, order=order), k.matrix(x, x, order), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("envelope", ["student_t", "gaussian"])
def test_spectrum(envelope):
    """Wiener-Khinchin: the kernel's Fourier transform is the density of its name."""
    k = SpectralMixture(*torch.zeros(3, 1, dtype=torch.float64), envelope, 0.0, 1.0)
    lags = torch.linspace(-40, 40, 20001, dtype=torch.float64)
    omega = torch.tensor([0.0, 0.5, 1.3, 2.5], dtype=torch.float64)
    density = torch.trapezoid(k(lags) * torch.cos(omega[:, None] * lags), lags) / TURN
    if envelope == "gaussian":
        want = torch.exp(-(omega**2) / 2) / math.sqrt(TURN)
    else:
        want = torch.distributions.StudentT(torch.tensor(5.0, dtype=torch.float64)).log_prob(omega).exp()
    torch.testing.assert_close(density, want, rtol=1e-6, atol=1e-9)


def two_axes(reaction=None, varying=False):
    axes = [grid(8, 1.0), grid(7, 1.0)]
    free = [torch.arange(1, 7), torch.arange(1, 6)]
    g = torch.Generator().manual_seed(1)
    known = torch.randn(8, 7, generator=g, dtype=torch.float64)
    known[1:-1, 1:-1] = 0
    ones = torch.ones(6, 5, dtype=torch.float64)
    terms = {(2, 0): ones, (0, 2): 2 * ones, (0, 0): -ones}
    if varying:
        terms |= {(0, 1): axes[0][1:-1, None] * ones, (1, 1): 0.3 * ones}
    return Problem(axes, free, terms, torch.randn(6, 5, generator=g, dtype=torch.float64), known, reaction, 1e-12)


def dense(problem, kernels):
    """Solution and evidence with Kronecker products written out."""
    K = [k.matrix(x) for k, x in zip(kernels, problem.axes)]
    D = [{a: k.matrix(x, x, a) @ M.inverse() for a in range(3)} for k, x, M in zip(kernels, problem.axes, K)]
    inner = torch.zeros(8, 7, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    inner = inner.ravel()
    L = sum(c.ravel()[:, None] * torch.kron(D[0][a], D[1][b])[inner] for (a, b), c in problem.coefficients.items())
    x = torch.linalg.solve(L[:, inner], problem.source.ravel() - L @ problem.known.ravel())
    u = problem.known.ravel().clone()
    u[inner] = x
    big = torch.kron(*K)
    value = len(u) / 2 * (u @ torch.linalg.solve(big, u)).log() + torch.logdet(big) / 2
    return value + torch.linalg.slogdet(L[:, inner])[1], u.reshape(8, 7)


def narrow(seed):
    return replace(mixture(seed=seed), log_lengths=torch.full((4,), -1.5, dtype=torch.float64))


def test_kronecker_equals_dense():
    problem, kernels = two_axes(), [narrow(2), narrow(3)]
    value, u, residual = evidence(problem, kernels, torch.zeros(6, 5, dtype=torch.float64))
    want, solution = dense(problem, kernels)
    torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(u, solution, rtol=1e-8, atol=1e-9)
    assert residual < 1e-12


def test_mixed_derivatives_and_varying_coefficients_solve_the_dense_system():
    problem, kernels = two_axes(varying=True), [narrow(2), narrow(3)]
    _, u, residual = evidence(problem, kernels, torch.zeros(6, 5, dtype=torch.float64))
    torch.testing.assert_close(u, dense(problem, kernels)[1], rtol=1e-7, atol=1e-8)
    assert residual < 1e-9


@pytest.mark.parametrize("reaction", [None, lambda u: u**3])
def test_gradient_of_the_evidence(reaction):
    problem, base = two_axes(reaction), [narrow(2), narrow(3)]

    def value(weights, lengths, frequencies):
        kernels = [replace(k, log_weights=weights, log_lengths=lengths, frequencies=frequencies) for k in base]
        return evidence(problem, kernels, torch.zeros(6, 5, dtype=torch.float64))[0]

    inputs = [v.clone().requires_grad_() for v in (base[0].log_weights, base[0].log_lengths, base[0].frequencies)]
    assert torch.autograd.gradcheck(value, inputs, rtol=1e-4, atol=1e-5)


def test_axis_operator_is_kansas_collocation():
    """With u = K c, the equation at the inner points and the values at the ends: unsymmetric collocation."""
    x, k = grid(12, 1.0), narrow(4)
    problem = Problem([x], [torch.arange(1, 11)], {(2,): torch.ones(10, dtype=torch.float64)}, sin(x[1:-1]),
                      torch.tensor([0.3] + [0.0] * 10 + [-0.2], dtype=torch.float64), None, 1e-12)  # fmt: skip
    _, u, _ = evidence(problem, [k], torch.zeros(10, dtype=torch.float64))
    K, second = k.matrix(x, x), k.matrix(x, x, 2)
    rows = torch.cat([K[:1], second[1:-1], K[-1:]])
    right = torch.cat([problem.known[:1], sin(x[1:-1]), problem.known[-1:]])
    torch.testing.assert_close(u, K @ torch.linalg.solve(rows, right), rtol=1e-8, atol=1e-9)


def test_transposed_inverse():
    equation = _Equation(
        two_axes(), [{a: torch.randn(n - 2, n, dtype=torch.float64) for a in range(3)} for n in (8, 7)]
    )
    inverse = equation.inverse(torch.zeros(6, 5, dtype=torch.float64))
    a, b = torch.randn(2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close((inverse(a) * b).sum(), (a * inverse(b, adjoint=True)).sum())


@pytest.mark.parametrize("kernel", ["student_t", "gaussian"])
def test_finds_a_high_frequency(kernel):
    x = grid(120)
    found = gp_hm([x], {2: 1.0}, lambda x: -1600 * sin(40 * x), 0.0, kernel=kernel, n_starts=1)
    k = found.kernels[0]
    assert found.converged
    assert error(found, sin(40 * x)) < 1e-5
    assert abs(TURN * k.frequencies[k.weights.argmax()].abs() - 40) < 0.01
    between = (x[1:] + x[:-1]) / 2
    torch.testing.assert_close(found.predict(between), sin(40 * between), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.predict(between, order=1) / 40, torch.cos(40 * between), rtol=0, atol=1e-2)
    torch.testing.assert_close(found.predict(x), found.value, rtol=0, atol=1e-4)


def test_semilinear_first_order_and_scale():
    x = grid(60)
    truth = sin(20 * x)
    found = gp_hm([x], {2: 1.0, 0: -1.0}, -400 * truth + truth**3 - truth, truth, reaction=lambda u: u**3, n_starts=1)
    assert error(found, truth) < 1e-5
    first = gp_hm([x], {1: 1.0}, 20e6 * torch.cos(20 * x), 0.0, ends=["low"], n_starts=1)
    assert error(first, 1e6 * truth) < 1e-5


def test_two_axes_in_single_precision():
    axes = [grid(18, 1.0).float(), grid(16, 1.0).float()]
    found = gp_hm(
        axes, {(2, 0): 1.0, (0, 2): 1.0}, lambda x, y: -1300 * sin(30 * x) * sin(20 * y),
        lambda x, y: sin(30 * x) * sin(20 * y), n_components=8, n_starts=1, max_iter=60,
    )  # fmt: skip
    truth = sin(30 * axes[0])[:, None] * sin(20 * axes[1])
    assert found.value.dtype == torch.float32
    assert error(found, truth) < 1e-3
    assert found.predict(axes[0][:3], axes[1][:2], order=(1, 0)).shape == (3, 2)


def test_single_kernel_and_uneven_grid():
    x = grid(40) + 0.03 * sin(grid(40))
    found = gp_hm([x], {2: 1.0}, lambda x: -9 * sin(3 * x), lambda x: sin(3 * x), kernel="squared_exponential")
    assert len(found.kernels[0].frequencies) == 1
    assert error(found, sin(3 * x)) < 1e-3


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": []}, "axes must be one or two, got 0"),
        ({"axes": [grid(3)]}, r"axes\[0\] must have at least 4 points, got 3"),
        ({"axes": [grid(9).flip(0)]}, r"axes\[0\] must be strictly increasing"),
        ({"terms": {}}, "terms must hold at least one"),
        ({"terms": {3: 1.0}}, "terms must have orders of at most 2 for kernel='student_t', got 3"),
        ({"terms": {(1, 1): 1.0}}, "terms must have keys of 1 order"),
        ({"source": torch.full((9,), math.nan)}, "source must be finite"),
        ({"boundary": torch.ones(5)}, r"boundary must broadcast to the grid's shape \(9,\), got \(5,\)"),
        ({"kernel": "wendland"}, "kernel must be one of"),
        ({"n_components": 0}, "n_components must be >= 1, got 0"),
        ({"ends": ["left"]}, "ends must be one of"),
        ({"ends": ["low", "low"]}, "ends must have one entry for each of the 1 axes, got 2"),
        ({"floor": 0.0}, "floor must be > 0 and < 1, got 0.0"),
        ({"terms": {0: 0.0}}, "must give a system that can be solved"),
    ],
)
def test_bad_input(change, message):
    arguments = {"axes": [grid(9)], "terms": {2: 1.0}, "source": 1.0, "boundary": 0.0} | change
    with pytest.raises(ValueError, match=message):
        gp_hm(**arguments)


def test_aliasing_is_said():
    with pytest.warns(UserWarning, match="above the grid's Nyquist frequency"):
        gp_hm([grid(9)], {2: 1.0}, 1.0, 0.0, max_frequency=5.0, n_starts=1, max_iter=1)
