"""Lion-K: bit-equal to Lion, its constraints held against any gradients, its diagnostics against their definitions."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lion_pytorch import Lion
from sklearn.datasets import load_digits
from torch import nn

from hadamard.optim import (
    EntropyBox,
    LassoBox,
    LionK,
    LqBall,
    NewtonSchulzBall,
    RidgeBox,
    SparseBox,
    constraint_distance,
    fw_gap,
    lyapunov,
    ode_params,
)
from hadamard.proximal import L2Ball, LInfBall, SpectralBall, SquaredL2

D = torch.float64
KERNELS = [
    LInfBall(),
    L2Ball(dim=-1),
    SpectralBall(),
    NewtonSchulzBall(),
    SquaredL2(),
    LqBall(2.0),
    LqBall(1.3),
    LqBall(4.0),
    SparseBox(4),
    LassoBox(0.3),
    RidgeBox(0.3),
    EntropyBox(0.3),
]
CONSTRAINED = [k for k in KERNELS if not isinstance(k, SquaredL2)]
names = pytest.mark.parametrize("kernel", KERNELS, ids=repr)


def parameter(*shape, scale=1.0, dtype=D, seed=0):
    x = scale * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return x.requires_grad_()


# -- the convex functions --


@names
def test_gradient_of_the_conjugate(kernel, generator):
    m = torch.randn(5, 4, dtype=D, generator=generator, requires_grad=True)
    (grad,) = torch.autograd.grad(kernel.conjugate(m).sum(), m)
    torch.testing.assert_close(kernel.grad_conjugate(m.detach()), grad, atol=1e-7, rtol=1e-7)


@names
def test_fenchel_young(kernel, generator):
    for _ in range(10):
        m = torch.randn(5, 4, dtype=D, generator=generator)
        x = kernel.grad_conjugate(m)
        gap = kernel.value(x).sum() + kernel.conjugate(m).sum() - (m * x).sum()
        assert abs(gap) < 1e-7  # equality at the maximiser
        y = torch.randn(5, 4, dtype=D, generator=generator)
        if kernel in CONSTRAINED:
            y = kernel.project(y) if hasattr(kernel, "project") else y / (1 + kernel.distance(y))
        assert kernel.value(y).sum() + kernel.conjugate(m).sum() - (m * y).sum() > -1e-9


@names
def test_zero_momentum_gives_zero_and_values_start_at_zero(kernel):
    zero = torch.zeros(3, 4, dtype=D)
    assert torch.equal(kernel.grad_conjugate(zero), zero)
    assert kernel.value(zero).sum() == 0
    assert kernel.conjugate(zero).sum() == 0


@pytest.mark.parametrize("kernel", [SparseBox(2), SparseBox(7), LassoBox(0.1)], ids=repr)
def test_projection_is_the_nearest_point(kernel, generator):
    import cvxpy

    x = 2 * torch.randn(6, dtype=D, generator=generator)
    u = cvxpy.Variable(6)
    rules = [cvxpy.norm_inf(u) <= 1] + ([cvxpy.norm1(u) <= kernel.k] if isinstance(kernel, SparseBox) else [])
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(u - x.numpy())), rules).solve()
    nearest = kernel.project(x)
    torch.testing.assert_close(nearest, torch.from_numpy(u.value), atol=1e-4, rtol=0)
    torch.testing.assert_close(kernel.project(nearest), nearest, atol=1e-12, rtol=0)


def test_high_powers_do_not_overflow_in_half_precision():
    m = torch.tensor([3e4, -1e4, 1e-3], dtype=torch.float16)
    direction = LqBall(1.02).grad_conjugate(m)  # p = 51
    assert direction.isfinite().all()
    assert direction[0] == 1


def test_newton_schulz_is_orthogonal(generator):
    m = torch.randn(20, 30, dtype=D, generator=generator)
    s = torch.linalg.svdvals(NewtonSchulzBall().grad_conjugate(m))
    torch.testing.assert_close(s, torch.ones(20, dtype=D), atol=1e-9, rtol=0)


# -- the optimizer --


def train(make, steps, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = make(net.parameters())
    x, y = torch.randn(64, 8), torch.randint(3, (64,))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, optimizer


@pytest.mark.parametrize("foreach", [False, True])
def test_bit_equal_to_lion_for_100_steps(foreach):
    theirs, _ = train(lambda p: Lion(p, lr=3e-3, betas=(0.95, 0.98), weight_decay=0.7), 100)
    ours, _ = train(lambda p: LionK(p, lr=3e-3, betas=(0.95, 0.98), weight_decay=0.7, foreach=foreach), 100)
    for a, b in zip(theirs.parameters(), ours.parameters()):
        assert torch.equal(a, b)


def test_continues_a_run_of_lion():
    net, lion = train(lambda p: Lion(p, lr=3e-3, weight_decay=0.7), 5)
    twin = copy.deepcopy(net)
    ours = LionK(twin.parameters(), lr=1.0)
    ours.load_state_dict(lion.state_dict())
    for model, optimizer in ((net, lion), (twin, ours)):
        optimizer.zero_grad()
        model(torch.ones(4, 8)).square().sum().backward()
        optimizer.step()
    assert ours.param_groups[0]["lr"] == 3e-3
    for a, b in zip(net.parameters(), twin.parameters()):
        assert torch.equal(a, b)


def test_squared_kernel_is_momentum_sgd_with_decoupled_decay(generator):
    x, lr, w, (b1, b2) = parameter(6), 0.1, 0.5, (0.8, 0.9)
    start, average = x.detach().clone(), torch.zeros(6, dtype=D)
    optimizer = LionK([x], lr=lr, betas=(b1, b2), weight_decay=w, kernel="squared")
    for _ in range(20):
        g = torch.randn(6, dtype=D, generator=generator)
        x.grad = g
        optimizer.step()
        start = (1 - lr * w) * start - lr * (b1 * average + (1 - b1) * g)
        average = b2 * average + (1 - b2) * g
    torch.testing.assert_close(x.detach(), start)


@pytest.mark.parametrize("decay", ["explicit", "implicit"])
@names
def test_foreach_and_maximize_change_nothing_else(kernel, decay, generator):
    runs = []
    for options in ({}, {"foreach": True}, {"maximize": True}):
        xs = [parameter(3, 4), parameter(2, 4, seed=1)]
        optimizer = LionK(xs, lr=0.1, weight_decay=0.5, kernel=kernel, decay=decay, **options)
        torch.manual_seed(0)
        for _ in range(3):
            for x in xs:
                x.grad = torch.randn_like(x) * (-1 if options.get("maximize") else 1)
            optimizer.step()
        runs.append(xs)
    for a, b, c in zip(*runs):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_implicit_decay_divides_after_the_step():
    x = torch.tensor([2.0], dtype=D, requires_grad=True)
    x.grad = torch.tensor([1.0], dtype=D)
    LionK([x], lr=0.5, weight_decay=4.0, decay="implicit").step()
    assert x.item() == pytest.approx((2.0 - 0.5) / 3.0)


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.sampled_from(CONSTRAINED),
    decay=st.sampled_from(["explicit", "implicit"]),
    rate=st.floats(1e-3, 1.0),
    weight_decay=st.floats(0.1, 10.0),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    start=st.floats(0.0, 100.0),
    attack=st.sampled_from(["outward", "random", "huge", "alternating", "zero"]),
    seed=st.integers(0, 2**31),
)
def test_constraint_contracts_against_any_gradients(kernel, decay, rate, weight_decay, betas, start, attack, seed):
    """No sequence of gradients keeps the weights out of the constraint, or pushes them out of it."""
    generator = torch.Generator().manual_seed(seed)
    x = (start * torch.randn(4, 3, dtype=D, generator=generator)).requires_grad_()
    lr = rate / weight_decay
    optimizer = LionK([x], lr=lr, betas=betas, weight_decay=weight_decay, kernel=kernel, decay=decay)
    factor = 1 - rate if decay == "explicit" else 1 / (1 + rate)
    distance = constraint_distance(optimizer)
    for t in range(12):
        noise = torch.randn(4, 3, dtype=D, generator=generator)
        x.grad = {
            "outward": -x.detach(),  # descent on -|x|^2 / 2: away from the origin, the worst there is
            "random": noise,
            "huge": 1e12 * noise,
            "alternating": (-1) ** t * torch.ones(4, 3, dtype=D),
            "zero": torch.zeros(4, 3, dtype=D),
        }[attack]
        optimizer.step()
        after = constraint_distance(optimizer)
        assert after <= factor * distance + 1e-9 * (1 / weight_decay + distance)
        distance = after


def test_constraint_without_contraction_is_noticed():
    """The property above can fail: it does for a kernel whose steps leave the domain it declares."""
    x = parameter(4, 3, scale=0.0)

    class Wrong(LInfBall):
        def grad_conjugate(self, s):
            return 2 * s.sign()

    optimizer = LionK([x], lr=0.5, weight_decay=1.0, kernel=Wrong())
    for _ in range(5):
        x.grad = -torch.ones(4, 3, dtype=D)
        optimizer.step()
    assert constraint_distance(optimizer) > 0.5


@pytest.mark.parametrize("kernel", ["nuclear", "newton_schulz"])
def test_singular_values_of_a_trained_matrix_stay_below_the_bound(kernel, generator):
    x, target = parameter(6, 4, scale=0.1), 10 * torch.randn(6, 4, dtype=D, generator=generator)
    optimizer = LionK([x], lr=0.02, weight_decay=2.0, kernel=kernel)
    for _ in range(300):
        x.grad = x.detach() - target
        optimizer.step()
    s = torch.linalg.svdvals(x.detach())
    assert s.max() <= 0.5 + 1e-9
    assert s.min() > 0.45  # the target is far outside in every direction


def test_sparse_box_bounds_the_one_norm(generator):
    x, target = parameter(20, scale=0.1), torch.randn(20, dtype=D, generator=generator)
    optimizer = LionK([x], lr=5e-3, weight_decay=1.0, kernel=SparseBox(3))
    for _ in range(800):
        x.grad = x.detach() - 5 * target
        optimizer.step()
    assert x.detach().abs().sum() <= 3 + 1e-9
    assert x.detach().abs().max() <= 1 + 1e-9


def test_groups_have_kernels_of_their_own():
    matrix, vector = parameter(3, 3, scale=5.0), parameter(3, scale=5.0)
    groups = [{"params": [matrix], "kernel": "nuclear"}, {"params": [vector], "lr": 0.2}]
    optimizer = LionK(groups, lr=0.1, weight_decay=1.0)
    for _ in range(200):
        matrix.grad, vector.grad = -matrix.detach(), -vector.detach()
        optimizer.step()
    assert torch.linalg.svdvals(matrix.detach()).max() <= 1 + 1e-6
    assert vector.detach().abs().max() <= 1 + 1e-6
    torch.testing.assert_close(vector.detach().abs(), torch.ones(3, dtype=D), atol=1e-6, rtol=0)


# -- torch's conventions --


def test_state_dict_round_trip_through_a_file():
    def make(p):
        return LionK(p, lr=1e-2, weight_decay=0.5, kernel=RidgeBox(0.1))

    net, optimizer = train(make, 5)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(net)
    other = LionK(twin.parameters(), lr=1.0, kernel=RidgeBox(0.1))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.param_groups[0]["lr"] == 1e-2
    assert other.param_groups[0]["kernel"] == RidgeBox(0.1)
    for model, o in ((net, optimizer), (twin, other)):
        o.zero_grad()
        model(torch.ones(4, 8)).square().sum().backward()
        o.step()
    for a, b in zip(net.parameters(), twin.parameters()):
        assert torch.equal(a, b)


def test_deepcopy_keeps_the_state():
    _, optimizer = train(lambda p: LionK(p, lr=1e-2), 2)
    twin = copy.deepcopy(optimizer)
    mine, theirs = (next(iter(o.state.values()))["exp_avg"] for o in (optimizer, twin))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("scheduler", [torch.optim.lr_scheduler.CosineAnnealingLR, torch.optim.lr_scheduler.OneCycleLR])
def test_schedulers_drive_it(scheduler):
    x = parameter(3)
    optimizer = LionK([x], lr=0.1)
    options = {"T_max": 10} if scheduler is torch.optim.lr_scheduler.CosineAnnealingLR else {
        "max_lr": 0.1, "total_steps": 11, "cycle_momentum": False
    }  # fmt: skip
    schedule = scheduler(optimizer, **options)
    moves = []
    for _ in range(10):
        before = x.detach().clone()
        x.grad = torch.ones(3, dtype=D)
        optimizer.step()
        moves.append((x.detach() - before).abs().max().item())
        schedule.step()
    assert min(moves) < 0.5 * max(moves)


def test_closure_tensor_rate_and_bfloat16():
    x = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    optimizer = LionK([x], lr=torch.tensor(0.5))

    def closure():
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert torch.equal(x.detach(), torch.full((4,), 0.5, dtype=torch.bfloat16))


def test_parameters_without_gradient_are_left_alone():
    x, y = parameter(3), parameter(3)
    optimizer = LionK([x, y], lr=0.1, weight_decay=1.0)
    x.grad = torch.ones(3, dtype=D)
    before = y.detach().clone()
    optimizer.step()
    assert torch.equal(y, before)
    assert y not in optimizer.state


def test_one_buffer_a_parameter():
    net, optimizer = train(lambda p: LionK(p, lr=1e-2), 1)
    held = sum(t.numel() for s in optimizer.state.values() for t in s.values())
    assert held == sum(p.numel() for p in net.parameters())


def test_gradient_function_as_kernel():
    x = parameter(3)
    before = x.detach().clone()
    x.grad = torch.ones(3, dtype=D)
    LionK([x], lr=0.1, kernel=torch.tanh).step()
    torch.testing.assert_close(x.detach(), before + 0.1 * torch.tanh(torch.tensor([-0.1] * 3, dtype=D)))


def test_learns_the_digits():
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X, dtype=torch.float32) / 16, torch.tensor(y)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = LionK(net.parameters(), lr=2e-3, weight_decay=2.0)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X[:1200]), y[:1200]).backward()
        optimizer.step()
    assert (net(X[1200:]).argmax(1) == y[1200:]).float().mean() > 0.85
    assert constraint_distance(optimizer) == 0


# -- diagnostics --


@pytest.mark.parametrize("kernel", [EntropyBox(0.5), SquaredL2(), RidgeBox(0.5)], ids=repr)
def test_lyapunov_decreases_along_the_differential_equation(kernel):
    """Fourth-order integration of the equation, step 1e-3, from inside the constraint."""
    A = torch.diag(torch.tensor([3.0, 1.0, 0.3], dtype=D))
    b = torch.tensor([2.0, -1.0, 0.4], dtype=D)
    x = torch.tensor([0.3, 0.4, -0.2], dtype=D, requires_grad=True)
    optimizer = LionK([x], lr=0.1, betas=(0.8, 0.9), weight_decay=1.0, kernel=kernel)
    alpha, gamma, epsilon = ode_params(0.1, (0.8, 0.9))
    optimizer.state[x]["exp_avg"] = -torch.tensor([-0.2, 0.1, 0.5], dtype=D)

    def rate(z):
        u, m = z
        m_rate = -alpha * (A @ u - b) - gamma * m
        return torch.stack([kernel.grad_conjugate(m + epsilon * m_rate) - u, m_rate])

    z, dt, values = torch.stack([x.detach().clone(), -optimizer.state[x]["exp_avg"]]), 1e-3, []
    for t in range(1000):
        if t % 4 == 0:
            with torch.no_grad():
                x.copy_(z[0])
            optimizer.state[x]["exp_avg"] = -z[1]
            values.append(lyapunov(optimizer, 0.5 * z[0] @ A @ z[0] - b @ z[0]))
        k1 = rate(z)
        k2 = rate(z + dt / 2 * k1)
        k3 = rate(z + dt / 2 * k2)
        z = z + dt / 6 * (k1 + 2 * k2 + 2 * k3 + rate(z + dt * k3))
    values = torch.tensor(values, dtype=D)
    assert (values.diff() <= 1e-12).all()
    assert values[0] - values[-1] > 0.1


def test_ode_step_is_the_optimizer_step(generator):
    lr, betas, w = 0.05, (0.7, 0.9), 0.8
    kernel, x = EntropyBox(0.2), parameter(5)
    optimizer = LionK([x], lr=lr, betas=betas, weight_decay=w, kernel=kernel)
    optimizer.state[x]["exp_avg"] = average = torch.randn(5, dtype=D, generator=generator)
    g, m, before = torch.randn(5, dtype=D, generator=generator), -average.clone(), x.detach().clone()
    alpha, gamma, epsilon = ode_params(lr, betas)
    m_rate = -alpha * g - gamma * m
    x.grad = g
    optimizer.step()
    torch.testing.assert_close(x.detach(), before + lr * (kernel.grad_conjugate(m + epsilon * m_rate) - w * before))
    torch.testing.assert_close(-optimizer.state[x]["exp_avg"], m + lr * m_rate)


@pytest.mark.parametrize("kernel", [LInfBall(), LqBall(2.0), LassoBox(0.2), EntropyBox(0.3)], ids=repr)
def test_gap_is_zero_exactly_at_the_optimum(kernel):
    """f = |x - t|^2 / 2 has its constrained optimum where each problem's closed form says."""
    t, w = torch.tensor([2.0, -0.1, 0.4], dtype=D), 2.0
    if isinstance(kernel, LInfBall):
        best = t.clamp(-0.5, 0.5)
    elif isinstance(kernel, LqBall):
        best = t / t.norm() / w
    elif isinstance(kernel, LassoBox):
        best = (t.sign() * (t.abs() - 0.2).clamp(min=0)).clamp(-0.5, 0.5)
    else:  # smooth: solve x - t + e w x / sqrt(1 - (w x)^2) = 0 by bisection
        low, high = torch.full_like(t, -0.5), torch.full_like(t, 0.5)
        for _ in range(60):
            best = (low + high) / 2
            up = best - t + 0.3 * w * best / (1 - (w * best) ** 2).sqrt() > 0
            low, high = torch.where(up, low, best), torch.where(up, best, high)
    for x, zero in ((best, True), (0.9 * best, False)):
        x = x.clone().requires_grad_()
        x.grad = x.detach() - t
        gap = fw_gap(LionK([x], lr=0.1, weight_decay=w, kernel=kernel))
        assert gap == pytest.approx(0, abs=1e-12) if zero else gap > 1e-4


def test_gap_is_the_frank_wolfe_gap(generator):
    x = (0.5 * torch.rand(6, dtype=D, generator=generator)).requires_grad_()
    x.grad = torch.randn(6, dtype=D, generator=generator)
    corner = -0.5 * x.grad.sign()
    wanted = float(x.grad @ (x.detach() - corner))
    assert fw_gap(LionK([x], lr=0.1, weight_decay=2.0)) == pytest.approx(wanted)
    upward = x.detach().clone().requires_grad_()
    upward.grad = -x.grad
    assert fw_gap(LionK([upward], lr=0.1, weight_decay=2.0, maximize=True)) == pytest.approx(wanted)


def test_outside_the_box_gap_and_lyapunov_are_infinite():
    x = torch.tensor([3.0], dtype=D, requires_grad=True)
    x.grad = torch.ones(1, dtype=D)
    optimizer = LionK([x], lr=0.1, weight_decay=1.0)
    assert fw_gap(optimizer) == float("inf")
    assert lyapunov(optimizer, 0.0) == float("inf")
    assert constraint_distance(optimizer) == 2.0


# -- bad input --


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"lr": 0.0}, ValueError, "lr must be > 0, got 0.0"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got str"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be >= 0, got -1.0"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be >= 0 and < 1, got 1.0"),
        ({"betas": 0.9}, ValueError, "betas must be two numbers, got 0.9"),
        ({"lr": 0.5, "weight_decay": 3.0}, ValueError, r"lr \* weight_decay must be <= 1 .* got 1.5"),
        ({"kernel": "l7"}, ValueError, "kernel must be one of 'l1', .* got 'l7'"),
        ({"kernel": 3}, TypeError, "kernel must be a name, .* got 3"),
        ({"kernel": "nuclear"}, ValueError, r"kernel SpectralBall\(radius=1.0\) needs matrices, .* shape \(3,\)"),
        ({"decay": "coupled"}, ValueError, "decay must be one of 'explicit', 'implicit', got 'coupled'"),
        ({"capturable": True}, ValueError, "capturable is not supported by LionK, got True"),
        ({"differentiable": True}, ValueError, "differentiable is not supported"),
        ({"fused": True}, ValueError, "fused is not supported"),
    ],
)
def test_refuses_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        LionK([torch.zeros(3, requires_grad=True)], **options)


@pytest.mark.bad_input
def test_refuses_bad_parameters_and_gradients():
    with pytest.raises(TypeError, match=r"parameters must be real, got torch.complex64"):
        LionK([torch.zeros(3, dtype=torch.complex64, requires_grad=True)])
    x, y = parameter(3), parameter(2, 2)
    optimizer = LionK([{"params": [y]}, {"params": [x]}], lr=0.1)
    kept = y.detach().clone()
    for bad in (float("nan"), float("inf"), float("-inf")):
        y.grad, x.grad = torch.ones(2, 2, dtype=D), torch.tensor([1.0, bad, 1.0], dtype=D)
        with pytest.raises(ValueError, match=r"gradients must be finite, .* gradient 0 of group 1, of shape \(3,\)"):
            optimizer.step()
    assert torch.equal(y, kept)  # nothing was changed before the check
    x.grad = torch.full((3,), 1e308, dtype=D)  # large but finite
    optimizer.step()
    x.grad = None
    x.grad = torch.zeros(3, dtype=D).to_sparse()
    with pytest.raises(TypeError, match="gradients must be dense, got a sparse one"):
        optimizer.step()


@pytest.mark.bad_input
def test_unchecked_nan_is_hidden_by_the_sign():
    """Why the check is there: without it the weight stands still for ever and nobody sees why."""
    x = torch.zeros(1, requires_grad=True)
    optimizer = LionK([x], lr=0.1, check_finite=False)
    x.grad = torch.tensor([float("nan")])
    optimizer.step()
    assert x.item() == 0
    assert optimizer.state[x]["exp_avg"].isnan().all()


@pytest.mark.bad_input
def test_refuses_a_schedule_that_breaks_the_bound():
    x = parameter(3)
    optimizer = LionK([x], lr=0.1, weight_decay=5.0)
    optimizer.param_groups[0]["lr"] = 0.3
    x.grad = torch.ones(3, dtype=D)
    with pytest.raises(ValueError, match=r"lr \* weight_decay must be <= 1"):
        optimizer.step()
    LionK([x], lr=0.3, weight_decay=5.0, decay="implicit").step()


@pytest.mark.bad_input
def test_refuses_another_kernels_state_and_diagnostics_without_values():
    x = parameter(3)
    state = LionK([x], kernel="l2").state_dict()
    with pytest.raises(ValueError, match=r"state_dict must have kernel LInfBall\(radius=1.0, dim=-1\), got LqBall"):
        LionK([x]).load_state_dict(state)
    optimizer = LionK([x], kernel=torch.tanh, weight_decay=1.0)
    for diagnostic in (fw_gap, constraint_distance, lambda o: lyapunov(o, 0.0)):
        with pytest.raises(TypeError, match="needs a kernel with value and conjugate, got tanh"):
            diagnostic(optimizer)
    with pytest.raises(ValueError, match="weight_decay must be > 0, got 0"):
        fw_gap(LionK([x]))
    with pytest.raises(ValueError, match=r"every parameter must have a gradient, .* shape \(3,\)"):
        fw_gap(LionK([x], weight_decay=1.0))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LqBall(1.0), "q must be > 1 and < inf, got 1.0"),
        (lambda: SparseBox(0), "k must be >= 1, got 0"),
        (lambda: LassoBox(0.0), "e must be > 0, got 0.0"),
    ],
)
def test_refuses_bad_constraints(make, message):
    with pytest.raises(ValueError, match=message):
        make()
