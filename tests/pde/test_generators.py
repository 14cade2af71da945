"""Heat, Burgers, Darcy and random fields against closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import integrate, sparse

from hadamard.pde import burgers, darcy, darcy_operator, gaussian_field, heat, time_stepper

F64 = torch.float64


@pytest.mark.parametrize("boundary", ["periodic", "neumann", "dirichlet"])
def test_heat_of_an_eigenfunction(boundary):
    n, m, length = 12, 9, 2.0
    x = (torch.arange(n, dtype=F64)[:, None] + 0.5) * length / n
    y = (torch.arange(m, dtype=F64) + 0.5) * length / m
    wave = torch.sin if boundary == "dirichlet" else torch.cos
    unit = math.pi / length * (2 if boundary == "periodic" else 1)
    u = wave(2 * unit * x) * wave(3 * unit * y)
    found = heat(u, [0.0, 0.02, 0.5], 0.7, dims=2, length=length, boundary=boundary)
    exact = torch.stack([u * math.exp(-0.7 * 13 * unit**2 * t) for t in (0.0, 0.02, 0.5)])
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("boundary", ["periodic", "neumann", "dirichlet"])
def test_heat_keeps_what_it_must(boundary, generator):
    u = torch.rand(4, 32, dtype=F64, generator=generator)
    v = heat(u, [0.0, 0.01, 0.1], boundary=boundary)
    torch.testing.assert_close(v[:, 0], u)
    if boundary != "dirichlet":
        torch.testing.assert_close(v.mean(-1), u.mean(-1, keepdim=True).expand(4, 3))
    assert bool((v.square().sum(-1).diff(dim=1) < 0).all())
    again = heat(v[:, 1], [0.09], boundary=boundary)[:, 0]
    torch.testing.assert_close(again, v[:, 2])  # a semigroup
    assert torch.autograd.gradcheck(lambda u: heat(u, [0.01], boundary=boundary), u[:, :5].clone().requires_grad_())


def cole_hopf(x, t, nu):
    """The solution for u(x, 0) = sin(2 pi x): a ratio of integrals over a Gaussian."""
    potential = lambda s: (1 - math.cos(2 * math.pi * s)) / (2 * math.pi)  # noqa: E731
    width = 12 * math.sqrt(2 * nu * t)

    def integral(power):
        def integrand(s):
            return ((x - s) / t) ** power * math.exp(-potential(s) / (2 * nu) - (x - s) ** 2 / (4 * nu * t))

        return integrate.quad(integrand, x - width, x + width, limit=200, epsabs=1e-9, epsrel=1e-7)[0]

    return integral(1) / integral(0)


def test_burgers_against_cole_hopf():
    n, nu = 128, 0.02
    x = torch.arange(n, dtype=F64) / n
    u = burgers(torch.sin(2 * torch.pi * x), [0.0, 0.1, 0.4], nu)
    for row, t in zip(u[1:], (0.1, 0.4)):
        exact = torch.tensor([cole_hopf(float(s), t, nu) for s in x[::8]], dtype=F64)
        torch.testing.assert_close(row[::8], exact, rtol=0, atol=1e-6)


def test_burgers_keeps_its_mean_loses_energy_and_moves_with_the_frame(generator):
    u = gaussian_field((64,), 3, tau=5.0, alpha=2.0, generator=generator, dtype=F64)
    v = burgers(u, [0.0, 0.1, 0.2], 0.01)
    torch.testing.assert_close(v.mean(-1), torch.zeros(3, 3, dtype=F64), rtol=0, atol=1e-13)
    assert bool((v.square().sum(-1).diff(dim=1) < 0).all())
    moving = burgers(u + 1.0, [0.25], 0.01)[:, 0] - 1.0  # a quarter of the circle in that time
    torch.testing.assert_close(moving, burgers(u, [0.25], 0.01)[:, 0].roll(16, -1), rtol=0, atol=5e-6)
    small = u[:1, ::8].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda u: burgers(u, [0.01], 0.1), small)


def dense_darcy(a, length):
    """The same stencil assembled face by face."""
    n, m = a.shape
    matrix = sparse.lil_matrix((n * m, n * m))
    for i in range(n):
        for j in range(m):
            for di, dj, h in ((1, 0, length / n), (-1, 0, length / n), (0, 1, length / m), (0, -1, length / m)):
                p, q = i + di, j + dj
                if 0 <= p < n and 0 <= q < m:
                    face = 2 / (1 / a[i, j] + 1 / a[p, q]) / h**2
                    matrix[i * m + j, p * m + q] -= face
                else:
                    face = 2 * a[i, j] / h**2
                matrix[i * m + j, i * m + j] += face
    return torch.tensor(matrix.toarray(), dtype=F64)


def test_darcy_against_an_assembled_matrix(generator):
    a = torch.rand(2, 5, 7, dtype=F64, generator=generator) * 9 + 1
    f = torch.randn(2, 5, 7, dtype=F64, generator=generator)
    for number in range(2):
        matrix = dense_darcy(a[number].numpy(), 2.0)
        torch.testing.assert_close(
            darcy_operator(a[number], f[number], length=2.0).flatten(), matrix @ f[number].flatten()
        )
        exact = torch.linalg.solve(matrix, f[number].flatten()).reshape(5, 7)
        torch.testing.assert_close(darcy(a, f, length=2.0, tol=1e-12)[number], exact)


def test_darcy_on_a_manufactured_solution_is_of_second_order():
    errors = []
    for n in (16, 32, 64):
        x = (torch.arange(n, dtype=F64)[:, None] + 0.5) / n
        y = (torch.arange(n, dtype=F64) + 0.5) / n
        pi = math.pi
        u, a = torch.sin(pi * x) * torch.sin(2 * pi * y), 2 + torch.cos(pi * x) * torch.cos(pi * y)
        ax, ay = -pi * torch.sin(pi * x) * torch.cos(pi * y), -pi * torch.cos(pi * x) * torch.sin(pi * y)
        ux, uy = pi * torch.cos(pi * x) * torch.sin(2 * pi * y), 2 * pi * torch.sin(pi * x) * torch.cos(2 * pi * y)
        f = 5 * pi**2 * a * u - ax * ux - ay * uy
        errors.append(float((darcy(a, f, tol=1e-10) - u).abs().max()))
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([2, 2], abs=0.2)


def test_darcy_conserves_mass_and_has_no_minimum_inside(generator):
    field = gaussian_field((24, 24), 4, tau=3.0, alpha=2.0, boundary="neumann", generator=generator, dtype=F64)
    a = torch.where(field > 0, 12.0, 3.0).to(F64)
    u = darcy(a, 1.0, tol=1e-10)
    edges = [(a * u)[:, 0], (a * u)[:, -1], (a * u)[:, :, 0], (a * u)[:, :, -1]]
    outflow = sum(2 * e.sum(-1) for e in edges)  # gradient u / (h / 2) through faces of length h
    torch.testing.assert_close(outflow, torch.ones(4, dtype=F64), rtol=1e-7, atol=0)
    assert bool((u > 0).all())


def test_darcy_gradients(generator):
    a = (torch.rand(3, 4, dtype=F64, generator=generator) + 0.5).requires_grad_()
    f = torch.randn(3, 4, dtype=F64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, f: darcy(a, f, tol=1e-13), (a, f), atol=1e-6)


@pytest.mark.parametrize("boundary", ["periodic", "neumann"])
def test_random_fields_have_the_covariance_they_promise(boundary, generator):
    n, tau, alpha = 16, 3.0, 2.0
    fields = gaussian_field((n,), 20000, tau=tau, alpha=alpha, scale=1.0, boundary=boundary, generator=generator)
    k = torch.arange(1, n // 2 if boundary == "periodic" else n)
    if boundary == "periodic":
        power = 2 * (torch.fft.rfft(fields, norm="forward")[:, 1 : n // 2]).abs().square().mean(0)
        exact = 2 * ((2 * math.pi * k) ** 2 + tau**2) ** -alpha
    else:
        x = (torch.arange(n) + 0.5) / n
        power = (fields @ torch.cos(math.pi * k * x[:, None]) * math.sqrt(2) / n).square().mean(0)
        exact = ((math.pi * k) ** 2 + tau**2) ** -alpha
    torch.testing.assert_close(power, exact, rtol=0.06, atol=0)
    assert float(fields.mean(-1).abs().max()) < 1e-6


@pytest.mark.parametrize(("scheme", "order"), [("imex_cn", 1), ("imex_rk2", 2), ("ifrk4", 4)])
def test_order_of_the_time_steps(scheme, order):
    # u' = -2 u + u^2 + cos t, with its solution by the scheme at a tiny step of the highest order
    def march(steps, scheme):
        advance = time_stepper(scheme, torch.tensor(-2.0, dtype=F64), lambda u, t: u**2 + math.cos(t), 1 / steps)
        u = torch.tensor(0.5, dtype=F64)
        for number in range(steps):
            u = advance(u, number / steps)
        return float(u)

    exact = march(2000, "ifrk4")
    errors = [abs(march(steps, scheme) - exact) for steps in (20, 40, 80)]
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.2)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: heat(torch.ones(4), [-1.0]), "times must be >= 0, got -1.0"),
        (lambda: heat(torch.ones(4), [1.0], boundary="robin"), "boundary must be one of"),
        (lambda: heat(torch.ones(4), [1.0], dims=2), "dims must be >= 1 and <= 1, got 2"),
        (lambda: burgers(torch.ones(4), [1.0, 0.5], 0.1), "times must increase"),
        (lambda: burgers(torch.ones(4), [1.0], 0.0), "nu must be > 0, got 0.0"),
        (lambda: burgers(torch.tensor([1.0, math.nan]), [1.0], 0.1), "u must be finite"),
        (lambda: darcy(torch.zeros(4, 4)), "a must be > 0, got 0.0"),
        (lambda: darcy(torch.ones(4)), "a must have shape"),
        (lambda: gaussian_field((4,), 0), "batch must be >= 1, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
