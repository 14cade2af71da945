"""The vorticity solver: exact solutions, order, conservation."""

import math
from itertools import pairwise

import pytest
import torch

from hadamard.pde import NavierStokes2D, diagonal_forcing, gaussian_field, grid_points
from hadamard.pde.time_steps import SCHEMES

F64 = torch.float64
TAU = 2 * math.pi


def grid(n, m=None, length=1.0):
    return grid_points((n, m or n), length, torch.zeros((), dtype=F64))


def random_vorticity(n, generator, batch=1, tau=7.0):
    w = gaussian_field((n, n), batch, tau=tau, generator=generator, dtype=F64)
    return w / w.square().mean((-2, -1), keepdim=True).sqrt()


def slope(errors):
    return [math.log2(a / b) for a, b in pairwise(errors)]


@pytest.mark.parametrize(("n", "m", "lx", "ly"), [(16, 16, 1.0, 1.0), (15, 24, 2.0, 3.0)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_taylor_green_vortex_only_decays(n, m, lx, ly, scheme):
    x, y = grid(n, m, (lx, ly))
    start = torch.cos(TAU * x / lx) * torch.cos(TAU * 2 * y / ly)
    flow = NavierStokes2D(nu=0.02, length=(lx, ly))
    assert float(flow.convection(start).abs().max()) < 1e-12
    w = flow.solve(start, 0.01, 20, every=10, scheme=scheme)
    rate = 0.02 * ((TAU / lx) ** 2 + (2 * TAU / ly) ** 2)
    exact = torch.stack([start * math.exp(-rate * t) for t in (0.0, 0.1, 0.2)])
    tolerance = 1e-12 if scheme == "ifrk4" else rate**3 * 0.01**2 * 0.2
    torch.testing.assert_close(w, exact, rtol=0, atol=tolerance)


def test_convection_of_two_waves_against_its_closed_form():
    # psi = sin(a x) + sin(b y): w = a^2 sin(a x) + b^2 sin(b y), u = b cos(b y), v = -a cos(a x)
    x, y = grid(16)
    a, b = TAU, 2 * TAU
    w = a**2 * torch.sin(a * x) + b**2 * torch.sin(b * y)
    exact = b * torch.cos(b * y) * a**3 * torch.cos(a * x) - a * torch.cos(a * x) * b**3 * torch.cos(b * y)
    flow = NavierStokes2D(nu=0.0)
    torch.testing.assert_close(flow.convection(w), exact)
    velocity = torch.stack(torch.broadcast_tensors(b * torch.cos(b * y), -a * torch.cos(a * x)))
    torch.testing.assert_close(flow.velocity(w), velocity)
    torch.testing.assert_close(flow.energy(w), torch.tensor((a**2 + b**2) / 4, dtype=F64))


def manufactured(nu):
    """A vorticity that grows, turns and drifts, and the forcing that makes it a solution."""

    def solution(x, y, t):
        return (
            torch.cos(TAU * (x - t)) * torch.sin(TAU * y)
            + 0.5 * torch.sin(2 * TAU * x) * math.cos(3 * t)
            + 0.3 * torch.cos(TAU * (x + 2 * y) + t)
        )

    def forcing(x, y, t):
        change = (
            TAU * torch.sin(TAU * (x - t)) * torch.sin(TAU * y)
            - 1.5 * torch.sin(2 * TAU * x) * math.sin(3 * t)
            - 0.3 * torch.sin(TAU * (x + 2 * y) + t)
        )
        # Each part is an eigenfunction of the Laplacian: value, slope along x, slope along y.
        k2 = [2 * TAU**2, (2 * TAU) ** 2, 5 * TAU**2]
        parts = [
            (torch.cos(TAU * (x - t)) * torch.sin(TAU * y), -TAU * torch.sin(TAU * (x - t)) * torch.sin(TAU * y),
             TAU * torch.cos(TAU * (x - t)) * torch.cos(TAU * y)),
            (0.5 * torch.sin(2 * TAU * x) * math.cos(3 * t) + 0 * y,
             TAU * torch.cos(2 * TAU * x) * math.cos(3 * t) + 0 * y, 0 * x + 0 * y),
            (0.3 * torch.cos(TAU * (x + 2 * y) + t), -0.3 * TAU * torch.sin(TAU * (x + 2 * y) + t),
             -0.6 * TAU * torch.sin(TAU * (x + 2 * y) + t)),
        ]  # fmt: skip
        lap = sum(-k * p[0] for k, p in zip(k2, parts))
        wx, wy = sum(p[1] for p in parts), sum(p[2] for p in parts)
        u, v = sum(p[2] / k for k, p in zip(k2, parts)), -sum(p[1] / k for k, p in zip(k2, parts))
        return change + u * wx + v * wy - nu * lap

    return solution, forcing


@pytest.mark.parametrize(("scheme", "order"), [("imex_cn", 1), ("imex_rk2", 2), ("ifrk4", 4)])
def test_order_on_a_manufactured_solution(scheme, order):
    solution, forcing = manufactured(0.02)
    x, y = grid(16)
    flow, errors = NavierStokes2D(0.02, forcing), []
    for steps in (5, 10, 20):
        w = flow.solve(solution(x, y, 0.1), 0.5 / steps, steps, scheme=scheme, t=0.1)
        errors.append(float((w[-1] - solution(x, y, 0.6)).abs().max()))
    assert slope(errors)[-1] == pytest.approx(order, abs=0.35)
    assert errors[-1] < {1: 0.2, 2: 0.02, 4: 1e-4}[order]


def test_the_residual_of_a_solution_is_of_second_order():
    solution, forcing = manufactured(0.02)
    x, y = grid(16)
    flow, sizes = NavierStokes2D(0.02, forcing), []
    for steps in (10, 20, 40):
        w = torch.stack([solution(x, y, 0.5 * number / steps) for number in range(steps + 1)])
        sizes.append(float(flow.residual(w, 0.5 / steps).abs().max()))
    assert slope(sizes) == pytest.approx([2, 2], abs=0.1)


def test_the_residual_by_hand(generator):
    w = random_vorticity(12, generator, 2 * 3).reshape(2, 3, 12, 12)
    force = diagonal_forcing(*grid(12))
    flow = NavierStokes2D(0.01, force)
    kx, ky = torch.fft.fftfreq(12, 1 / 12, dtype=F64)[:, None], torch.fft.fftfreq(12, 1 / 12, dtype=F64)
    laplacian = torch.fft.ifft2(-(TAU**2) * (kx**2 + ky**2) * torch.fft.fft2(w)).real
    rate = flow.convection(w) - 0.01 * laplacian - force
    expected = w.diff(dim=1) / 0.1 + (rate[:, 1:] + rate[:, :-1]) / 2
    torch.testing.assert_close(flow.residual(w, 0.1), expected)
    torch.testing.assert_close(NavierStokes2D(0.01, diagonal_forcing).residual(w, 0.1), expected)
    torch.testing.assert_close(NavierStokes2D(0.01, force.expand(2, 12, 12)).residual(w, 0.1), expected)


def test_a_trajectory_that_stands_still_has_a_large_residual(generator):
    w = random_vorticity(32, generator)
    flow = NavierStokes2D(1e-3, diagonal_forcing)
    truth = flow.solve(w, 0.005, 40, every=10)
    still = truth[:, :1].expand_as(truth)
    assert flow.residual(still, 0.05).square().mean() > 1e3 * flow.residual(truth, 0.05).square().mean()


@pytest.mark.parametrize("n", [24, 27, 32])
def test_convection_does_no_net_work_on_energy_and_enstrophy(n, generator):
    # Rough fields, with energy in all frequencies: only without aliasing does it cancel.
    w = torch.randn(3, n, n, dtype=F64, generator=generator)
    flow = NavierStokes2D(0.0)
    w = w - w.mean((-2, -1), keepdim=True)
    kx, ky = torch.fft.fftfreq(n, 1 / n, dtype=F64)[:, None], torch.fft.fftfreq(n, 1 / n, dtype=F64)
    keep = (3 * kx.abs() < n) & (3 * ky.abs() < n)
    rough, w = w, torch.fft.ifft2(torch.fft.fft2(w) * keep).real
    square = TAU**2 * (kx**2 + ky**2)
    psi = torch.fft.ifft2(torch.fft.fft2(w) / square.where(square > 0, 1)).real
    change = flow.convection(w)
    for weight in (psi, w):
        work = (weight * change).mean((-2, -1))
        assert float((work / (weight * change).abs().mean((-2, -1))).abs().max()) < 1e-11
    work = rough * NavierStokes2D(0.0, dealias=False).convection(rough)
    assert float((work.mean((-2, -1)) / work.abs().mean((-2, -1))).abs().max()) > 1e-4


def test_dealiased_products_are_exact(generator):
    # The same field on twice the grid has the same convection, up to frequencies that the coarse grid drops.
    n = 24
    spectrum = torch.zeros(2, 2 * n, n + 1, dtype=torch.complex128)
    low = torch.randn(2, 15, 8, dtype=torch.complex128, generator=generator)
    spectrum[:, :8, :8], spectrum[:, -7:, :8] = low[:, :8], low[:, 8:]
    fine = torch.fft.irfft2(spectrum, s=(2 * n, 2 * n))
    fine = fine - fine.mean((-2, -1), keepdim=True)
    flow = NavierStokes2D(0.0)
    coarse = flow.convection(fine[:, ::2, ::2])
    sizes = torch.fft.rfft2(coarse)
    exact = torch.fft.rfft2(flow.convection(fine)) / 4
    torch.testing.assert_close(sizes[:, :8, :8], exact[:, :8, :8])
    torch.testing.assert_close(sizes[:, -7:, :8], exact[:, -7:, :8])
    assert float(sizes[:, 8:-7].abs().max()) < 1e-12 * float(sizes.abs().max())


def test_energy_is_kept_without_viscosity_and_decays_with_it(generator):
    w = random_vorticity(32, generator, 2)
    kept = NavierStokes2D(0.0)
    energy = kept.energy(kept.solve(10 * w, 0.005, 40, every=20))
    torch.testing.assert_close(energy[:, -1], energy[:, 0], rtol=2e-4, atol=0)  # of what lies in |k| < n / 3
    damped = NavierStokes2D(0.01)
    assert bool((damped.energy(damped.solve(10 * w, 0.005, 40)).diff() < 0).all())


def test_velocity_is_divergence_free_and_has_the_vorticity(generator):
    w = random_vorticity(15, generator, 2)
    u, v = NavierStokes2D(0.0).velocity(w).unbind(-3)
    kx, ky = torch.fft.fftfreq(15, 1 / 15, dtype=F64)[:, None], torch.fft.fftfreq(15, 1 / 15, dtype=F64)
    uh, vh = torch.fft.fft2(u), torch.fft.fft2(v)
    assert float((kx * uh + ky * vh).abs().max()) < 1e-10
    torch.testing.assert_close(torch.fft.ifft2(2j * math.pi * (kx * vh - ky * uh)).real, w)


def test_symmetries_of_the_flow(generator):
    w, flow = random_vorticity(16, generator), NavierStokes2D(1e-3)
    end = flow.step(w, 0.01)
    torch.testing.assert_close(flow.step(w.roll((3, 5), (-2, -1)), 0.01), end.roll((3, 5), (-2, -1)))
    torch.testing.assert_close(flow.step(-w.mT, 0.01), -end.mT)  # a reflection turns vortices round
    both = torch.cat([w, -w.mT])
    torch.testing.assert_close(flow.step(both, 0.01), torch.cat([end, -end.mT]))


def test_gradients(generator):
    w = random_vorticity(6, generator).requires_grad_()
    flow = NavierStokes2D(0.01, diagonal_forcing)
    assert torch.autograd.gradcheck(lambda w: flow.step(w, 0.05), w)
    slices = random_vorticity(6, generator, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: flow.residual(w, 0.05), slices)


def test_max_step_is_the_time_to_cross_half_a_cell():
    x, y = grid(16)
    w = TAU * torch.sin(TAU * y) + 0 * x  # u = -cos(2 pi y)
    assert NavierStokes2D(0.0).max_step(w) == pytest.approx(0.5 / 16)
    assert NavierStokes2D(0.0).max_step(0 * w) == math.inf


def test_dtype_follows_the_input(generator):
    w = random_vorticity(16, generator).float()
    assert NavierStokes2D(1e-3, diagonal_forcing).step(w, 0.01).dtype == torch.float32


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, w: NavierStokes2D(-1.0), ValueError, "nu must be >= 0, got -1.0"),
        (lambda f, w: NavierStokes2D(1.0, length=0.0), ValueError, "length must be > 0, got 0.0"),
        (lambda f, w: NavierStokes2D(1.0, length=(1.0, 1.0, 1.0)), ValueError, "length must be one number or two"),
        (lambda f, w: f.step(w.half(), 0.1), TypeError, "w must be float32 or float64, got torch.float16"),
        (lambda f, w: f.step(w.to(torch.complex64), 0.1), TypeError, "w must have a floating dtype"),
        (lambda f, w: f.step(w[0], 0.1), ValueError, "at least 4 points each way"),
        (lambda f, w: f.step(w * torch.nan, 0.1), ValueError, "w must be finite"),
        (lambda f, w: f.step(w, 0.0), ValueError, "dt must be > 0, got 0.0"),
        (lambda f, w: f.step(w, 0.1, "rk4"), ValueError, "scheme must be one of"),
        (lambda f, w: f.solve(w, 0.1, 5, every=2), ValueError, "every must divide steps=5, got 2"),
        (lambda f, w: f.residual(w, 0.1), ValueError, "at least two slices"),
        (lambda f, w: NavierStokes2D(1.0, torch.ones(4, 4)).step(w, 0.1), ValueError, "forcing must have"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    x, y = grid_points((8, 8))
    with pytest.raises(error, match=message):
        call(NavierStokes2D(1e-3), torch.sin(TAU * x) * torch.cos(TAU * y))


@pytest.mark.filterwarnings("ignore:w has a mean")
def test_a_step_that_is_too_long_says_so(generator):
    with pytest.raises(FloatingPointError, match="dt=10 is too long"):
        NavierStokes2D(0.0).solve(1e4 * random_vorticity(16, generator), 10.0, 200)


def test_a_mean_is_warned_about(generator):
    with pytest.warns(UserWarning, match="w has a mean of"):
        NavierStokes2D(1e-3).step(random_vorticity(8, generator) + 1, 0.01)
