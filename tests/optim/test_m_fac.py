"""M-FAC: the inverse Fisher matrix against dense algebra, the optimizer against both, pruning by its definition."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from hadamard.optim import MFAC, InverseFisher, cubic_amounts, loss_gradients, obs_correction, prune_obs
from tests.suites.operators import OperatorSuite

D = torch.float64


def rows(m, d, seed=0, dtype=D):
    return torch.randn(m, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def fisher(G, damp, block_size=None):
    F = G.mT @ G / len(G)
    if block_size is not None:
        block = torch.arange(len(F)) // block_size
        F = F * (block[:, None] == block)
    return F + damp * torch.eye(len(F), dtype=F.dtype)


# -- the inverse --


class TestInverse(OperatorSuite):
    dtypes = (D,)
    exact_dagger = True
    tol = 1e-11

    def operator(self):
        return InverseFisher(rows(4, 9), 0.3)

    def dense(self):
        return torch.linalg.inv(fisher(rows(4, 9), 0.3))


class TestBlocks(OperatorSuite):
    dtypes = (D,)
    exact_dagger = True
    tol = 1e-11

    def operator(self):
        return InverseFisher(rows(4, 9), 0.3, block_size=4)

    def dense(self):
        return torch.linalg.inv(fisher(rows(4, 9), 0.3, 4))


@pytest.mark.parametrize("m", [1, 16, 64])
@pytest.mark.parametrize("block_size", [None, 32])
def test_products_diagonal_and_entries_are_those_of_the_dense_inverse(m, block_size):
    G, x = rows(m, 100), rows(3, 100, 1)
    inverse, F = InverseFisher(G, 1e-3, block_size=block_size), fisher(G, 1e-3, block_size)
    dense = torch.linalg.inv(F)
    torch.testing.assert_close(inverse(x), torch.linalg.solve(F, x.mT).mT, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse.diag(), dense.diagonal(), rtol=1e-9, atol=0)
    torch.testing.assert_close(inverse.A_dagger(x), x @ F)
    for i, j in [(0, 0), (3, 7), (40, 3), (99, 98)]:
        assert abs(inverse.entry(i, j) - dense[i, j]) < 1e-8


def test_the_papers_recursion_gives_the_same():
    G, x, damp, m = rows(12, 40), rows(1, 40, 1)[0], 1e-2, 12
    V, den = [], []
    for g in G:
        v = g / damp - sum(((u @ g) / c) * u for u, c in zip(V, den)) if V else g / damp
        V.append(v)
        den.append(m + g @ v)
    V, den = torch.stack(V), torch.stack(den)
    inverse = InverseFisher(G, damp)
    torch.testing.assert_close(inverse(x), x / damp - V.mT @ ((V @ x) / den), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(inverse.W[0], V * (damp / den).sqrt()[:, None], rtol=1e-8, atol=1e-8)


def test_one_gradient_in_closed_form():
    g, x = rows(2, 30)
    want = (x - g * (g @ x) / (0.1 + g @ g)) / 0.1
    torch.testing.assert_close(InverseFisher(g[None], 0.1)(x), want)


def test_large_damping_and_order_of_the_gradients():
    G, x = rows(6, 20), rows(1, 20, 1)[0]
    torch.testing.assert_close(InverseFisher(G, 1e9)(x) * 1e9, x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(InverseFisher(G.flip(0), 0.1)(x), InverseFisher(G, 0.1)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype):
    G, x = rows(16, 200).to(dtype), rows(1, 200, 1)[0]
    got, want = InverseFisher(G, 0.01)(x.float()), InverseFisher(G.double(), 0.01)(x)
    assert got.dtype == torch.float32
    assert (got - want).norm() <= 1e-3 * want.norm()


def test_equal_and_zero_gradients():
    G = torch.cat([rows(1, 30).expand(5, 30), torch.zeros(3, 30, dtype=D)])
    x = rows(1, 30, 1)[0]
    torch.testing.assert_close(InverseFisher(G, 1e-6)(x), torch.linalg.solve(fisher(G, 1e-6), x), rtol=1e-6, atol=1e-3)


# -- the optimizer --


def run(make, steps, seed=0, dtype=D):
    """A small network, and its parameters after each step."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
    optimizer = make(net)
    generator, path = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        x = torch.randn(8, 5, dtype=D, generator=generator).to(dtype)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        path.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    return net, optimizer, path


@pytest.mark.parametrize("warm", ["full", "count"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.1, "maximize": True}])
def test_steps_are_those_of_the_dense_inverse_also_after_the_window_is_full(warm, options, generator):
    m, d, damp, lr = 4, 7, 0.1, 0.01
    x = rows(2, d)[0].clone()
    parameters = [x[:3].clone().requires_grad_(), x[3:].clone().view(2, 2).requires_grad_()]
    optimizer = MFAC(parameters, lr=lr, ngrads=m, damp=damp, warm=warm, **options)
    decay, momentum = options.get("weight_decay", 0.0), options.get("momentum", 0.0)
    window, average = [], torch.zeros(d, dtype=D)
    for _ in range(3 * m + 1):
        g = torch.randn(d, dtype=D, generator=generator)
        parameters[0].grad, parameters[1].grad = g[:3], g[3:].view(2, 2)
        optimizer.step()
        g = (-g if "maximize" in options else g) + decay * x
        window = [*window, g][-m:]
        count = m if warm == "full" else len(window)
        G = torch.stack(window)
        step = torch.linalg.solve(G.mT @ G / count + damp * torch.eye(d, dtype=D), g)
        average = momentum * average + (1 - momentum) * step
        x = x - lr * average
        torch.testing.assert_close(torch.cat([p.detach().flatten() for p in parameters]), x, rtol=1e-9, atol=1e-10)


def test_first_step_in_closed_form():
    x = torch.zeros(3, dtype=D, requires_grad=True)
    optimizer = MFAC([x], lr=1.0, ngrads=8, damp=0.5)
    x.grad = torch.tensor([3.0, 0.0, 4.0], dtype=D)
    optimizer.step()
    torch.testing.assert_close(x.detach(), -x.grad / (0.5 + 25 / 8))


def test_groups_have_their_own_rate_and_share_or_split_the_window():
    def make(window):
        return lambda net: MFAC(
            [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.02, "weight_decay": 0.1}],
            lr=0.01, ngrads=4, damp=0.1, window=window,
        )  # fmt: skip

    _, _, shared = run(make("global"), 6)
    _, _, split = run(make("per_group"), 6)
    assert not torch.allclose(shared[-1], split[-1])
    _, _, alone = run(lambda net: MFAC(net[0].parameters(), lr=0.01, ngrads=4, damp=0.1), 1)
    torch.testing.assert_close(split[0][:24], alone[0][:24])  # the first layer takes no part in the second's window


def test_parameters_without_gradient_count_as_zero():
    x, unused = (torch.ones(3, dtype=D, requires_grad=True) for _ in range(2))
    twin = x.detach().clone().requires_grad_()
    both, alone = MFAC([x, unused], lr=0.1, ngrads=3), MFAC([twin], lr=0.1, ngrads=3)
    for t in range(5):
        for p, optimizer in ((x, both), (twin, alone)):
            p.grad = rows(1, 3, t)[0]
            optimizer.step()
    torch.testing.assert_close(x, twin)
    assert torch.equal(unused.detach(), torch.ones(3, dtype=D))
    x.grad = unused.grad = None
    both.step()  # nothing to do, nothing pushed
    assert both.state["window 0"]["count"] == 5


def test_parameters_can_be_added_later():
    x, late = (torch.ones(3, dtype=D, requires_grad=True) for _ in range(2))
    optimizer = MFAC([x], lr=0.1, ngrads=3)
    x.grad = torch.ones(3, dtype=D)
    optimizer.step()
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones(3, dtype=D)
    optimizer.step()
    assert (late < 1).all()


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_resumes_to_the_last_bit(dtype):
    make = lambda net: MFAC(net.parameters(), lr=0.1, momentum=0.5, ngrads=4, damp=0.1, dtype=dtype)  # noqa: E731
    net, optimizer, _ = run(make, 6)
    twin = copy.deepcopy(net)
    resumed, saved = make(twin), io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    for _ in range(6):
        for model, o in ((net, optimizer), (twin, resumed)):
            o.zero_grad()
            model(torch.ones(4, 5, dtype=D)).square().sum().backward()
            o.step()
        for a, b in zip(net.parameters(), twin.parameters()):
            assert torch.equal(a, b)
    assert resumed.state["window 0"]["gradients"].dtype == (dtype or D)


def test_half_windows_and_half_parameters():
    _, optimizer, half = run(lambda net: MFAC(net.parameters(), lr=0.02, ngrads=4, damp=0.1, dtype=torch.bfloat16), 6)
    _, _, full = run(lambda net: MFAC(net.parameters(), lr=0.02, ngrads=4, damp=0.1), 6)
    assert optimizer.state["window 0"]["gradients"].dtype == torch.bfloat16
    assert (half[-1] - full[-1]).norm() < 0.03 * (full[-1] - full[0]).norm()
    _, _, single = run(lambda net: MFAC(net.parameters(), lr=0.02, ngrads=4, damp=0.1), 6, dtype=torch.float32)
    assert (single[-1] - full[-1]).norm() < 1e-3 * (full[-1] - full[0]).norm()
    net, _, _ = run(lambda net: MFAC(net.parameters(), ngrads=4, dtype=torch.float32), 2, dtype=torch.bfloat16)
    assert next(net.parameters()).dtype == torch.bfloat16


def test_sparse_keeps_zeros():
    def make(net):
        with torch.no_grad():
            net[0].weight[:, ::2] = 0
        return MFAC(net.parameters(), lr=0.1, momentum=0.5, weight_decay=0.1, ngrads=4, sparse=True)

    net, optimizer, _ = run(make, 6)
    assert (net[0].weight[:, ::2] == 0).all()
    assert (net[0].weight[:, 1::2] != 0).all()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    net[0].weight.grad.fill_(1.0)
    optimizer.step()
    assert (net[0].weight[:, ::2] == 0).all()


def test_schedulers_scalers_and_closures():
    net = nn.Linear(3, 1)
    optimizer = MFAC(net.parameters(), lr=0.1, ngrads=4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(2, 3)).square().sum()
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer.zero_grad()
    scaler.scale(net(torch.ones(2, 3)).square().sum()).backward()
    scaler.step(optimizer)
    assert optimizer.state["window 0"]["count"] == 2


def test_natural_gradient_ignores_the_scale_of_parameters():
    G, scale = rows(40, 4), torch.tensor([0.1, 1.0, 10.0, 100.0], dtype=D)
    scaled = scale * InverseFisher(scale * G, 1e-6)(scale * G[0])
    torch.testing.assert_close(scaled, InverseFisher(G, 1e-6)(G[0]), rtol=1e-3, atol=1e-3)


# -- pruning --


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    generator = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(1, 6, dtype=D, generator=generator), torch.randn(1, 3, dtype=D, generator=generator))
        for _ in range(40)
    ]
    return net, data


def weights(net):
    return torch.cat([net[0].weight.detach().flatten(), net[2].weight.detach().flatten()])


@pytest.mark.parametrize("block_size", [None, 10])
def test_one_removal_is_the_best_of_all(block_size):
    net, data = network()
    G = loss_gradients(net, data, nn.functional.mse_loss, [net[0].weight, net[2].weight])
    F, w = fisher(G, 1e-3, block_size), weights(net)
    costs, changes = [], []
    for q in range(len(w)):  # minimise d F d / 2 with d_q = -w_q by a bordered system
        e = torch.zeros(len(w), dtype=D)
        e[q] = 1
        bordered = torch.cat([torch.cat([F, e[:, None]], 1), torch.cat([e, torch.zeros(1, dtype=D)])[None]])
        change = torch.linalg.solve(bordered, torch.cat([torch.zeros_like(w), -w[q : q + 1]]))[:-1]
        costs.append(change @ F @ change / 2)
        changes.append(change)
    best = int(torch.stack(costs).argmin())
    for correction in ("joint", "independent"):
        twin = copy.deepcopy(net)
        prune_obs(
            twin, data, nn.functional.mse_loss, 1, damp=1e-3, block_size=block_size, correction=correction
        )  # fmt: skip
        torch.testing.assert_close(weights(twin), w + changes[best])
        assert weights(twin)[best] == 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), d=st.integers(2, 30), m=st.integers(1, 20), block_size=st.sampled_from([None, 1, 7]))
def test_joint_correction_is_the_constrained_minimum(seed, d, m, block_size):
    G, w = rows(m, d, seed), rows(1, d, seed + 1)[0]
    kept = rows(1, d, seed + 2)[0] > 0
    F, want = fisher(G, 0.1, block_size), torch.zeros(d, dtype=D)
    want[kept] = torch.linalg.solve(F[kept][:, kept], F[kept][:, ~kept] @ w[~kept])
    torch.testing.assert_close(obs_correction(G, w, kept, 0.1, block_size=block_size), want)


def test_conventions_of_torch_prune():
    net, data = network()
    parameters = [(net[0], "weight"), (net[2], "weight")]
    for amounts in ([0.5, 0.5], [20, 0.25]):
        ours, theirs = copy.deepcopy(net), copy.deepcopy(net)
        for amount in amounts:
            prune_obs(ours, data, nn.functional.mse_loss, amount)
            prune.global_unstructured(
                [(theirs[0], "weight"), (theirs[2], "weight")], prune.L1Unstructured, amount=amount
            )  # fmt: skip
            assert (weights(ours) == 0).sum() == (weights(theirs) == 0).sum()
        assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
        assert [n for n, _ in ours.named_buffers()] == [n for n, _ in theirs.named_buffers()]
        y = ours(data[0][0])
        for i in (0, 2):
            prune.remove(ours[i], "weight")
        torch.testing.assert_close(ours(data[0][0]), y)
        assert not prune.is_pruned(ours)
    prune_obs(net, data, nn.functional.mse_loss, 3, parameters=parameters[:1])
    assert (net[0].weight == 0).sum() == 3
    assert not hasattr(net[2], "weight_mask")


def test_repeated_pruning_keeps_what_is_pruned_and_gradients_flow():
    net, data = network()
    for amount in cubic_amounts(0.75, 3):
        before = weights(net) == 0
        prune_obs(net, data, nn.functional.mse_loss, amount)
        assert (weights(net)[before] == 0).all()
        copy.deepcopy(net)
        net.zero_grad()
        net(data[0][0]).sum().backward()
        assert net[0].weight_orig.grad is not None
    assert (weights(net) == 0).sum() == 54  # of 72


@pytest.mark.parametrize("pruned", [False, True])
def test_gradients_of_samples_are_those_of_batches_of_one(pruned):
    net, data = network()
    if pruned:
        prune_obs(net, data, nn.functional.mse_loss, 0.5)
    parameters = list(net.parameters())
    x, y = (torch.cat(z) for z in zip(*data))
    batches = list(zip(x.split(16), y.split(16)))
    one, many, before = copy.deepcopy(net), copy.deepcopy(net), net[0].weight
    ours = loss_gradients(net, batches, nn.functional.mse_loss, parameters, 35, per_sample=True)
    assert net[0].weight is before
    torch.testing.assert_close(ours, loss_gradients(net, data, nn.functional.mse_loss, parameters, 35))
    prune_obs(one, data, nn.functional.mse_loss, 0.5)
    prune_obs(many, batches, nn.functional.mse_loss, 0.5, per_sample=True)
    torch.testing.assert_close(weights(many), weights(one))
    with pytest.raises(ValueError, match=r"parameters must be the model's, got another of shape \(8, 6\)"):
        loss_gradients(net, batches, nn.functional.mse_loss, [net[0].weight.detach()], per_sample=True)


@pytest.mark.parametrize("correction", ["joint", "independent", "none"])
def test_rounds_are_calls_with_new_gradients(correction):
    net, data = network()
    at_once, again, single = (copy.deepcopy(net) for _ in range(3))
    options = {"damp": 1e-3, "correction": correction}
    prune_obs(at_once, data, nn.functional.mse_loss, 0.75, rounds=2, **options)
    for _ in range(2):
        prune_obs(again, data, nn.functional.mse_loss, 0.5, rounds=1, **options)
    prune_obs(single, data, nn.functional.mse_loss, 0.75, rounds=1, **options)
    assert torch.equal(weights(at_once), weights(again))
    assert not torch.equal(weights(at_once), weights(single))
    for amount, rounds in ((0.9, 16), (71, 5), (1, 16), (72, 3), (0.0, 4)):
        twin = copy.deepcopy(net)
        prune_obs(twin, data, nn.functional.mse_loss, amount, rounds=rounds)
        assert (weights(twin) == 0).sum() == (round(amount * 72) if isinstance(amount, float) else amount)


def test_gradients_of_some_entries():
    net, data = network()
    some = torch.arange(24) % 3 == 0
    G = loss_gradients(net, data, nn.functional.mse_loss, [net[2].weight])
    assert torch.equal(loss_gradients(net, data, nn.functional.mse_loss, [net[2].weight], entries=some), G[:, some])


def test_what_does_not_fit_is_refused_before_it_is_allocated(monkeypatch):
    net, data = network()
    weight = torch.zeros(3, 4, requires_grad=True)
    assert MFAC([weight], ngrads=5, dtype=torch.bfloat16).window_bytes == 5 * 12 * 2
    with pytest.raises(MemoryError, match=r"ngrads is too large: 1000000000000 vectors of 12 numbers in torch.float32"):
        MFAC([weight], ngrads=10**12)
    monkeypatch.setattr("hadamard.optim.memory.free_bytes", lambda device: 5 * 12 * 4 - 1)
    with pytest.raises(MemoryError, match=r"need 0.0 MiB, got 0.0 MiB free on cpu"):
        MFAC([weight], ngrads=5)
    MFAC([weight], ngrads=4)
    with pytest.raises(MemoryError, match="gradients is too large: 5 vectors of 12 numbers"):
        InverseFisher(torch.ones(5, 12))
    with pytest.raises(MemoryError, match="ngrads is too large: 80 vectors of 24 numbers in torch.float64"):
        loss_gradients(net, data, nn.functional.mse_loss, [net[2].weight])
    monkeypatch.setattr("hadamard.optim.memory.free_bytes", lambda device: None)
    MFAC([weight], ngrads=10**12)


def test_gradients_are_those_of_the_batches():
    net, data = network()
    read = []
    G = loss_gradients(net, (read.append(b) or b for b in data), nn.functional.mse_loss, [net[2].bias], ngrads=5)
    assert len(read) == 5
    for g, (x, y) in zip(G, data):
        torch.testing.assert_close(g, (2 * (net(x) - y) / 3)[0].detach())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": 0.0}, ValueError, "lr must be > 0, got 0.0"),
        ({"momentum": 1.0}, ValueError, "momentum must be >= 0 and < 1, got 1.0"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be >= 0, got -1.0"),
        ({"ngrads": 0}, ValueError, "ngrads must be >= 1, got 0"),
        ({"ngrads": 2.0}, TypeError, "ngrads must be an integer, got float 2.0"),
        ({"damp": 0.0}, ValueError, "damp must be > 0, got 0.0"),
        ({"window": "layer"}, ValueError, "window must be one of 'global', 'per_group', got 'layer'"),
        ({"warm": "no"}, ValueError, "warm must be one of 'full', 'count', got 'no'"),
        ({"dtype": torch.int32}, TypeError, "dtype must be floating, got torch.int32"),
        ({"params": []}, ValueError, "optimizer got an empty parameter list"),
        (
            {"params": [torch.ones(2, dtype=torch.complex64, requires_grad=True)]},
            TypeError,
            "must be real and floating",
        ),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        MFAC(**{"params": [torch.ones(2, requires_grad=True)]} | options)


@pytest.mark.bad_input
def test_bad_gradients_and_states_change_nothing():
    x = torch.ones(2, requires_grad=True)
    optimizer = MFAC([x], ngrads=3)
    for bad, error in ((torch.tensor([torch.nan, 1.0]), ValueError), (torch.ones(2).to_sparse(), TypeError)):
        x.grad = bad
        with pytest.raises(error, match="gradients must be"):
            optimizer.step()
        assert x.tolist() == [1.0, 1.0]
        assert "window 0" not in optimizer.state
    x.grad = torch.ones(2)
    optimizer.step()
    with pytest.raises(ValueError, match="state_dict must hold windows of 5 gradients, got 3"):
        MFAC([x], ngrads=5).load_state_dict(optimizer.state_dict())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net, data: InverseFisher(torch.ones(3)), ValueError, r"gradients must have 2 dimension\(s\)"),
        (lambda net, data: InverseFisher(torch.ones(3, 2), 0.0), ValueError, "damp must be > 0, got 0.0"),
        (lambda net, data: InverseFisher(torch.ones(3, 2), block_size=0), ValueError, "block_size must be >= 1, got 0"),
        (lambda net, data: InverseFisher(torch.nan * torch.ones(3, 2)), ValueError, "gradients must be finite"),
        (lambda net, data: InverseFisher(torch.ones(3, 2)).entry(0, 2), ValueError, "j must be >= 0 and < 2, got 2"),
        (lambda net, data: InverseFisher(torch.ones(3, 2))(torch.ones(3)), ValueError, r"x must have shape \(..., 2\)"),
        (
            lambda net, data: prune_obs(net, data, nn.MSELoss(), 1.5),
            ValueError,
            "amount must be >= 0 and <= 1, got 1.5",
        ),
        (lambda net, data: prune_obs(net, data, nn.MSELoss(), 73), ValueError, "amount must be >= 0 and <= 72, got 73"),
        (lambda net, data: prune_obs(net, [], nn.MSELoss(), 0.5), ValueError, "loader must give at least one batch"),
        (lambda net, data: prune_obs(nn.ReLU(), data, nn.MSELoss(), 0.5), ValueError, "parameters must name at least"),
        (
            lambda net, data: prune_obs(net, data, nn.MSELoss(), 0.5, correction="x"),
            ValueError,
            "correction must be one",
        ),
        (
            lambda net, data: prune_obs(net, data, nn.MSELoss(), 0.5, parameters=[(net[1], "weight")]),
            TypeError,
            "parameters must name floating tensors, got 'weight' of Tanh",
        ),
        (lambda net, data: prune_obs(net, data, nn.MSELoss(), 3, rounds=0), ValueError, "rounds must be >= 1, got 0"),
        (
            lambda net, data: prune_obs(net, iter(data), nn.MSELoss(), 3),
            ValueError,
            "loader must be one that can be read 16 times",
        ),
        (lambda net, data: cubic_amounts(1.0, 3), ValueError, "sparsity must be >= 0 and < 1, got 1.0"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(*network())
