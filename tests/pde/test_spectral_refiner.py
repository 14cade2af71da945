"""The network, the estimator and the refinement."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import spearmanr

from hadamard.pde import (
    STFNO,
    NavierStokes2D,
    SobolevLoss,
    SpectralRefiner,
    diagonal_forcing,
    gaussian_field,
    grid_points,
    residual_norm,
)
from hadamard.spectral import frequencies, irfftn_modes, rfftn_modes, sobolev_weight, weighted_norm

F64 = torch.float64
DT = 0.1
REFINER = SpectralRefiner(NavierStokes2D(1e-3), DT)


@pytest.fixture(scope="module")
def flow():
    """A flow on 16 x 16, its known slice and four exact ones after it."""
    generator = torch.Generator().manual_seed(3)
    pde = NavierStokes2D(2e-3, diagonal_forcing)
    w = gaussian_field((16, 16), 1, tau=3.0, alpha=3.0, generator=generator, dtype=F64)[0]
    start = pde.step(w / w.square().mean().sqrt(), 0.05)
    return pde, start, pde.solve(start, DT / 20, 80, every=20)[1:]


def relative(w, truth):
    return float((w - truth).detach().norm() / truth.detach().norm())


def perturbed(truth, k, size):
    """A wave of frequency (k, k) that grows in time, of a relative size."""
    x, y = grid_points(truth.shape[-2:], like=truth)
    wave = torch.cos(2 * math.pi * k * (x + y) + k) * torch.linspace(0.5, 1, len(truth), dtype=F64)[:, None, None]
    return truth + size * truth.norm() / wave.norm() * wave


# ---- refinement ----


def test_refinement_finds_the_implicit_solution(flow):
    pde, start, truth = flow
    guess = perturbed(truth, 2, 0.05)
    found = SpectralRefiner(pde, DT).refine_fields(guess, start, max_iter=300, tol=1e-9)
    whole = torch.cat([start[None], found.value])
    assert float(pde.residual(whole, DT).abs().max()) < 1e-5 * float(
        pde.residual(torch.cat([start[None], guess]), DT).abs().max()
    )
    assert relative(found.value, truth) < 2e-3 < 0.04 < relative(guess, truth)
    assert bool((found.history.diff() <= 0).all())
    assert float(found.history[-1]) == pytest.approx(float(residual_norm(pde, whole, DT)), rel=1e-3)


def test_its_limit_is_of_second_order(flow):
    pde, start, _ = flow
    errors = []
    for count in (2, 4, 8):
        truth = pde.solve(start, 0.4 / 80, 80, every=80 // count)[1:]
        found = SpectralRefiner(pde, 0.4 / count).refine_fields(truth, start, max_iter=300, tol=1e-9)
        errors.append(float((found.value[-1] - truth[-1]).norm()))
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([2, 2], abs=0.35)


def test_the_start_matters_little_and_all_variants_lower_the_residual(flow):
    pde, start, truth = flow
    still = start.expand_as(truth).contiguous()
    exact = SpectralRefiner(pde, DT).refine_fields(truth, start, max_iter=200).value
    assert relative(SpectralRefiner(pde, DT).refine_fields(still, start, max_iter=200).value, exact) < 1e-4
    before = float(residual_norm(pde, torch.cat([start[None], still]), DT))
    for change in ({"s": 0.0}, {"precondition": False}, {"optimizer": "adam"}):
        found = SpectralRefiner(pde, DT, **change).refine_fields(still, start, max_iter=15)
        assert not found.converged
        assert found.message
        assert float(residual_norm(pde, torch.cat([start[None], found.value]), DT)) < 0.8 * before


def test_preconditioning_makes_the_negative_norm_useful(flow):
    pde, start, truth = flow
    guess = perturbed(truth, 2, 0.05)
    exact = SpectralRefiner(pde, DT).refine_fields(truth, start, max_iter=200).value
    with_it, without = (
        relative(SpectralRefiner(pde, DT, precondition=p).refine_fields(guess, start, max_iter=25).value, exact)
        for p in (True, False)
    )
    assert with_it < 0.1 * without


def test_without_convection_the_unknown_is_the_residual(generator):
    # Heat: a tiny field of all frequencies does not move itself. The optimum is the Crank-Nicolson march.
    pde, w = NavierStokes2D(0.3), torch.randn(12, 12, dtype=F64, generator=generator)
    start = 1e-9 * (w - w.mean())
    square = 4 * math.pi**2 * sum(k.square() for k in frequencies((12, 12), 1 / 12, real=True, dtype=F64))
    factor = (1 - DT / 2 * 0.3 * square) / (1 + DT / 2 * 0.3 * square)
    exact = torch.stack([torch.fft.irfft2(torch.fft.rfft2(start) * factor**n, s=(12, 12)) for n in (1, 2, 3)])
    found = SpectralRefiner(pde, DT).refine_fields(start.expand(3, 12, 12), start, max_iter=30, tol=1e-9)
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-15)
    assert found.iterations <= 3


@pytest.mark.parametrize(("grid", "length"), [((12, 12), (1.0, 1.0)), ((9, 14), (1.0, 2.0))])
def test_a_taylor_green_vortex_is_found_from_nothing(grid, length):
    # Convection vanishes, so the scheme's solution is known: one factor a slice, and exp(-nu |k|^2 t) is near.
    nu, steps = 0.01, 6
    x, y = grid_points(grid, length, torch.zeros((), dtype=F64))
    start = 10 * torch.cos(2 * math.pi * x / length[0]) * torch.cos(2 * math.pi * y / length[1])
    refiner = SpectralRefiner(NavierStokes2D(nu, length=length), DT)
    found = refiner.refine_fields(start.expand(steps, *grid), start, tol=1e-9)
    rate = nu * 4 * math.pi**2 * (length[0] ** -2 + length[1] ** -2)
    time = torch.arange(1, steps + 1, dtype=F64).reshape(-1, 1, 1)
    factor = (1 - rate * DT / 2) / (1 + rate * DT / 2)
    torch.testing.assert_close(found.value, factor**time * start, rtol=0, atol=1e-7)
    truth = torch.exp(-rate * DT * time) * start
    assert 1000 * relative(found.value, truth) < relative(start.expand_as(truth), truth)


def test_batches_and_time(flow):
    pde, start, truth = flow
    shifted = torch.stack([start, start])
    guess = perturbed(truth, 1, 0.03)
    found = SpectralRefiner(pde, DT).refine_fields(torch.stack([guess, guess]), shifted, max_iter=60)
    torch.testing.assert_close(found.value[0], found.value[1])
    moving = NavierStokes2D(2e-3, lambda x, y, t: math.cos(5 * t) * diagonal_forcing(x, y))
    late = moving.solve(start, DT / 20, 80, every=20, t=1.0)[1:]
    right, wrong = (
        relative(SpectralRefiner(moving, DT).refine_fields(late, start, max_iter=60, t=t).value, late)
        for t in (1.0, 0.0)
    )
    assert right < 0.1 * wrong


def test_the_exact_discrete_solution_is_left_alone():
    pde = NavierStokes2D(0.0)
    still = torch.zeros(2, 8, 8, dtype=F64)
    found = SpectralRefiner(pde, DT).refine_fields(still, still[0])
    assert found.converged
    assert torch.equal(found.value, still)


# ---- the estimator ----


def test_the_estimate_ranks_errors_of_any_frequency(flow):
    pde, start, truth = flow
    cases = [(k, size) for k in (1, 2, 3, 5) for size in (0.01, 0.03, 0.1)]
    errors, estimates, plain = [], [], []
    for k, size in cases:
        w = perturbed(truth, k, size)
        errors.append(relative(w, truth))
        whole = torch.cat([start[None], w])
        estimates.append(float(residual_norm(pde, whole, DT)))
        plain.append(float(residual_norm(pde, whole, DT, s=0.0)))
    assert spearmanr(errors, estimates).statistic > 0.6
    few = [i for i, (k, _) in enumerate(cases) if k == 2]
    assert sorted(few, key=lambda i: errors[i]) == sorted(few, key=lambda i: estimates[i])


def test_a_flow_that_stands_still_or_runs_backwards_is_seen(flow):
    pde, start, truth = flow
    right, still, backwards = (
        float(residual_norm(pde, torch.cat([start[None], w]), DT))
        for w in (truth, start.expand_as(truth), truth.flip(0))
    )
    assert 100 * right < min(still, backwards)


def test_gradients_of_the_estimate(generator):
    pde, w = NavierStokes2D(0.1), torch.randn(2, 4, 5, dtype=F64, generator=generator)
    w = (w - w.mean((1, 2), keepdim=True)).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: residual_norm(pde, w - w.mean((1, 2), keepdim=True), DT), w)


def test_residual_norm_by_hand(flow, generator):
    pde, start, truth = flow
    w = torch.cat([start[None], perturbed(truth, 3, 0.1)])
    residual = pde.residual(w, DT)
    weight = sobolev_weight(frequencies((16, 16), 1 / 16, real=True, dtype=F64), -1.0, 0.2)
    expected = (DT * weighted_norm(residual, weight).square().sum()).sqrt()
    torch.testing.assert_close(residual_norm(pde, w, DT, alpha=0.2), expected)
    l2 = (DT * residual.square().mean((-2, -1)).sum()).sqrt()
    torch.testing.assert_close(residual_norm(pde, w, DT, s=0.0), l2)


@pytest.mark.parametrize("s", [-2, -1, 0, 1, 2])
def test_sobolev_loss_of_a_wave(s):
    x = torch.arange(8, dtype=F64) / 4
    wave = torch.sin(2 * math.pi * 1.5 * x)[None, None].expand(2, 3, 8)
    size = math.sqrt(0.5) * (0.1 + 4 * math.pi**2 * 1.5**2) ** (s / 2)
    loss = SobolevLoss(s, 0.1, length=2.0, dims=1)
    assert float(loss(wave)) == pytest.approx(size)
    assert float(loss(3 * wave, wave)) == pytest.approx(2 * size)
    assert float(SobolevLoss(s, 0.1, length=2.0, dims=1, relative=True)(3 * wave, wave)) == pytest.approx(2)


# ---- the network ----


def smooth(shape, generator, count=2):
    t, n, m = shape
    coarse = torch.randn(count, t, 5, 3, 2, generator=generator, dtype=F64)
    return irfftn_modes(torch.view_as_complex(coarse), (n, m))


def test_slices_of_a_finer_output_lie_among_those_of_a_coarser_one(generator):
    net = STFNO(3, 3, 2, 6, latent_steps=5, generator=generator).double()
    w = smooth((3, 12, 12), generator)
    coarse, fine = net(w), net(w, out_steps=15)
    assert coarse.shape == (2, 5, 12, 12)
    torch.testing.assert_close(fine[:, 2::3], coarse)


def test_the_same_network_on_another_grid(generator):
    net = STFNO(3, 3, 2, 6, latent_steps=5, generator=generator).double()
    w = smooth((3, 48, 48), generator)
    coarse, fine = net(w[..., ::2, ::2]), net(w)
    assert relative(fine[..., ::2, ::2], coarse) < 5e-3  # the activations' high frequencies are the only difference


def test_the_refined_correction_is_a_bias_of_the_whole_last_layer(generator):
    net = STFNO(3, 3, 2, 6, latent_steps=5, generator=generator).double()
    w = smooth((3, 12, 12), generator, 1)
    change = smooth((5, 12, 12), generator, 1)
    padded = torch.zeros(1, 9, 12, 12, dtype=F64)
    padded[:, 1:6] = change
    whole = net.output.enlarged((5, 6, 6))
    with torch.no_grad():
        v = torch.nn.functional.pad(net.latent(w), (0, 0, 0, 0, 1, 4))
        whole.bias += torch.view_as_real(rfftn_modes(padded, (5, 6, 6)))
        y = whole(v.unsqueeze(1), (9, 12, 12))[:, 0, 1:6]
        plain = net.output(v.unsqueeze(1), (9, 12, 12))[:, 0, 1:6]
    torch.testing.assert_close(y - plain, change)


@pytest.mark.filterwarnings("ignore:w has a mean")  # an untrained network's
def test_refine_starts_from_the_network(flow, generator):
    pde, start, truth = flow
    net = STFNO(3, 3, 2, 6, latent_steps=4, generator=generator)
    known = torch.stack([start, start])[None]
    found = SpectralRefiner(pde, DT).refine(net, known, max_iter=80)
    assert found.value.dtype == F64
    assert relative(found.value[0], truth) < 5e-3
    with torch.no_grad():
        raw = net(known.float())[0].double()
    assert float(found.history[0]) == pytest.approx(float(residual_norm(pde, torch.cat([start[None], raw]), DT)))


def test_it_learns_and_keeps_its_state(generator):
    net = STFNO(3, 3, 2, 6, latent_steps=4, generator=generator)
    w = smooth((3, 12, 12), generator).float()
    w /= w.std()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (net(w) - w[:, -1:] * 0.5).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    other = STFNO(3, 3, 2, 6, latent_steps=4)
    other.load_state_dict(net.state_dict())
    exact = net(w)
    torch.testing.assert_close(other(w), exact)  # not to the bit: sums of several threads come in any order
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(w)
    assert 1e-5 < relative(rough.float(), exact) < 0.05


@pytest.mark.bad_input  # only to switch off the checked annotations, which torch.compile cannot trace
def test_compile(generator):
    net = STFNO(2, 2, 1, 2, num_spectral_layers=2, latent_steps=2, generator=generator)
    w = torch.randn(1, 2, 4, 4, generator=generator)
    torch.testing.assert_close(torch.compile(net, backend="aot_eager")(w), net(w))


def test_gradcheck(generator):
    net = STFNO(2, 2, 2, 2, num_spectral_layers=2, latent_steps=3, channel_expansion=1, generator=generator).double()
    w = torch.randn(1, 2, 4, 5, generator=generator, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(net, w)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net, w: net(w[..., :4]), ValueError, r"w must have at least \[5, 5\] points"),
        (lambda net, w: net(w[0]), ValueError, "w must have 4 dimension"),
        (lambda net, w: net(w[:, :0]), ValueError, "w must not be empty"),
        (lambda net, w: net(w.to(torch.complex64)), TypeError, "w must have a floating dtype"),
        (lambda net, w: net(w * math.nan), ValueError, "w must be finite"),
        (lambda net, w: net(w, out_steps=1), ValueError, "out_steps must be >= 2, got 1"),
        (lambda net, w: STFNO(2, 2, 4, latent_steps=6), ValueError, "latent_steps must be >= 7, got 6"),
        (lambda net, w: SpectralRefiner(NavierStokes2D(1e-3), 0.0), ValueError, "dt must be > 0, got 0.0"),
        (lambda net, w: SpectralRefiner(NavierStokes2D(1e-3), 1.0, optimizer="sgd"), ValueError, "optimizer must be"),
        (lambda net, w: REFINER.refine_fields(w, w), ValueError, "last must have the shape"),
        (lambda net, w: REFINER.refine_fields(w, w[:, 0].double()), ValueError, "w and last must have the same dtype"),
        (lambda net, w: SobolevLoss(length=(1.0,)), ValueError, "length must be one number or 2, got 1"),
        (lambda net, w: SobolevLoss(relative=True)(w), ValueError, "y must be given"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(STFNO(3, 3, 2, 4, latent_steps=4), torch.sin(torch.arange(128.0)).reshape(1, 2, 8, 8))
