"""Lipschitz bounds: closed forms, all sorting patterns, other solvers, other ways to write the same, and rounding."""

import itertools
from fractions import Fraction

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from hadamard.certification import (
    GroupSort,
    Householder,
    MaxMin,
    Residual,
    lipschitz_bound,
    sampled_lower_bound,
    slope_restricted,
)
from hadamard.certification.enclosure import Enclosed
from hadamard.certification.lmi import assemble
from hadamard.certification.networks import Trace, constraint_of, flat
from tests.solvers.test_conic import definite

ACTIVATIONS = {
    "MaxMin": lambda n: MaxMin(),
    "GroupSort": lambda n: GroupSort(4),
    "Householder": lambda n: Householder(n, v=torch.randn(n // 2, 2, generator=torch.Generator().manual_seed(1))),
    "Householder, groups of 4": lambda n: Householder(n, 4, v=torch.ones(n // 4, 4) + torch.eye(4)[: n // 4]),
    "ReLU": lambda n: nn.ReLU(),
    "LeakyReLU": lambda n: nn.LeakyReLU(0.3),
    "PReLU": lambda n: nn.PReLU(n, init=-0.5),
    "Tanh": lambda n: nn.Tanh(),
    "Sigmoid": lambda n: nn.Sigmoid(),
    "SiLU": lambda n: nn.SiLU(),
}
SORTING = list(ACTIVATIONS)[:4]


@pytest.fixture
def unchecked(monkeypatch):
    """No annotation checks, whose wrappers the compiler cannot look through."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def network(*widths, act=ACTIVATIONS["MaxMin"], seed=0):
    g = torch.Generator().manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(widths):
        layer = nn.Linear(a, b, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(b, a, generator=g, dtype=torch.float64) / a**0.5)
        layers += [layer] if b == widths[-1] and len(layers) == 2 * len(widths) - 4 else [layer, act(b)]
    return nn.Sequential(*layers)


def identity(n, act):
    first, last = nn.Linear(n, n), nn.Linear(n, n)
    for layer in (first, last):
        nn.init.eye_(layer.weight)
    return nn.Sequential(first, act, last)


# ---- activations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("form", ["reduced", "nsr", "lambda"])
def test_constraints_hold_between_any_two_inputs(name, form):
    act, g = ACTIVATIONS[name](8).double(), torch.Generator().manual_seed(0)
    z = 3 * torch.randn(2, 20_000, 8, dtype=torch.float64, generator=g)
    z[1, ::2] = z[0, ::2] + 1e-3 * z[1, ::2]
    with torch.no_grad():
        difference = (act(z[1]) - act(z[0])).numpy()
    dz = (z[1] - z[0]).numpy()
    qc, _ = constraint_of(act, (8,), form, {})
    skip, read, write = (
        np.asarray(getattr(x.middle, "todense", lambda x=x: x.middle)()) for x in (qc.skip, qc.read, qc.write)
    )
    w = dz @ read.T
    d = np.linalg.lstsq(write, (difference - dz @ skip.T).T, rcond=None)[0].T
    np.testing.assert_allclose(dz @ skip.T + d @ write.T, difference, atol=1e-10)  # it is of the stated form
    D = np.concatenate([w.reshape(len(w), qc.units, -1), d.reshape(len(d), qc.units, -1)], 2)
    for K, positive in qc.kernels:
        values = np.einsum("bui,uij,buj->bu", D, K, D)
        assert values.min() >= -1e-10
        if not positive:
            assert values.max() <= 1e-10


def test_modules_sort_and_reflect():
    x = torch.randn(5, 8, 3, 3, dtype=torch.float64)
    expected = x.unflatten(1, (2, 4)).sort(2, descending=True).values.flatten(1, 2)
    assert torch.equal(GroupSort(4)(x), expected)
    assert torch.equal(MaxMin()(x), GroupSort(2)(x))
    torch.testing.assert_close(Householder(8).double()(x), MaxMin()(x))
    v = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    H = torch.eye(2, dtype=torch.float64) - 2 * v.T @ v / 25
    torch.testing.assert_close(Householder(2, v=v)(z), torch.stack([z[0], H @ z[1]]))


@pytest.mark.parametrize("act", [MaxMin(), GroupSort(3), Householder(6, 3)])
def test_modules_are_modules(act):
    act = act.double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(act, (x,))
    assert act(x.half()).dtype == torch.float16
    other = type(act)(6, 3) if isinstance(act, Householder) else act
    other.load_state_dict(act.state_dict())
    torch.testing.assert_close(other.double()(x), act(x))


@pytest.mark.parametrize("act", [MaxMin(), GroupSort(3), Householder(6, 3)])
def test_modules_compile(act, unchecked):
    x = torch.randn(4, 6)
    torch.testing.assert_close(torch.compile(act, backend="eager", fullgraph=True)(x), act(x))


# ---- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SORTING)
@pytest.mark.parametrize("method", ["reduced", "nsr", "lambda", "layer"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # nsr has no bounded optimum here
def test_norm_keeping_activations_have_constant_one(name, method):
    assert 1 <= lipschitz_bound(identity(4, ACTIVATIONS[name](4)), method=method).bound <= 1 + 2e-6


def test_a_relu_for_each_output_does_not_see_it():
    """max and min as two unrelated ReLUs: (a, b) -> (a, a) is allowed for, of norm sqrt(2)."""
    assert lipschitz_bound(identity(2, MaxMin()), method="residual").bound == pytest.approx(2**0.5, rel=1e-5)


def test_one_relu_a_pair_is_the_same_program():
    """MaxMin as x + g relu(b - a) through the engine's residual path: the reduced form's oracle."""
    net = network(6, 8, 8, 3)

    def one_relu():
        up, down = nn.Linear(8, 4, bias=False).double(), nn.Linear(4, 8, bias=False).double()
        with torch.no_grad():
            up.weight.copy_(torch.kron(torch.eye(4), torch.tensor([[-1.0, 1.0]])))
            down.weight.copy_(-up.weight.T)
        return Residual(nn.Sequential(up, nn.ReLU(), down))

    rewritten = nn.Sequential(net[0], one_relu(), net[2], one_relu(), net[4])
    x = torch.randn(9, 6, dtype=torch.float64)
    torch.testing.assert_close(rewritten(x), net(x))
    assert lipschitz_bound(rewritten).bound == pytest.approx(lipschitz_bound(net).bound, rel=2e-6)


def test_linear_networks_and_dead_ones():
    W = torch.randn(3, 5, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(5, 3)).double()
    net[0].weight.data = W
    norm = float(torch.linalg.matrix_norm(W, 2))
    for method in ("reduced", "product"):
        assert norm <= lipschitz_bound(net, method=method).bound <= norm * (1 + 1e-6)
    rows = float(W.abs().sum(1).max())
    assert lipschitz_bound(net, "linf").bound == pytest.approx(rows, rel=1e-5)
    dead = network(4, 6, 2)
    dead[2].weight.data.zero_()
    assert lipschitz_bound(dead).bound == 0
    hidden = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False), nn.ReLU())
    hidden[0].weight.data, hidden[1].weight.data = torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([[0.0, 1]])
    assert lipschitz_bound(hidden).bound < 1e-9  # the layers cancel


def test_units_that_read_or_give_nothing_change_nothing():
    small = network(4, 6, 2, act=ACTIVATIONS["ReLU"])
    pruned = network(4, 9, 2, act=ACTIVATIONS["ReLU"])
    with torch.no_grad():
        for layer in pruned[::2]:
            layer.weight.zero_()
        pruned[0].weight[:6], pruned[2].weight[:, :6] = small[0].weight, small[2].weight
        pruned[0].weight[7], pruned[2].weight[:, 8] = 1.0, 1.0
    assert lipschitz_bound(pruned).bound == pytest.approx(lipschitz_bound(small).bound, rel=2e-6)


def test_orthogonal_weights_give_one():
    net = network(8, 8, 8, 8)
    for layer in net[::2]:
        nn.init.orthogonal_(layer.weight)
    assert 1 - 1e-9 <= lipschitz_bound(net).bound <= 1 + 2e-6


# ---- brute force ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("linf", float("inf"))])
def test_no_pattern_of_sorts_is_steeper(norm, order):
    """All 2^6 orders of the pairs, reachable or not: the bound covers them, and in l2 is near."""
    net = network(5, 12, 3, seed=3)
    A, B = net[0].weight.detach(), net[2].weight.detach()
    swap, eye = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.eye(2)
    patterns = (torch.block_diag(*p).double() for p in itertools.product([eye, swap], repeat=6))
    steepest = max(float(torch.linalg.matrix_norm(B @ P @ A, order)) for P in patterns)
    bound = lipschitz_bound(net, norm).bound
    assert steepest <= bound
    assert bound <= steepest * (1.05 if norm == "l2" else 1.5)


def test_relu_against_all_patterns_and_the_original_program():
    """LipSDP-Neuron written out in cvxpy, as its paper has it."""
    import cvxpy

    net = network(4, 8, 2, act=ACTIVATIONS["ReLU"], seed=2)
    A, B = net[0].weight.detach().numpy(), net[2].weight.detach().numpy()
    T, rho = cvxpy.diag(cvxpy.Variable(8, nonneg=True)), cvxpy.Variable()
    M = cvxpy.bmat([[-rho * np.eye(4), A.T @ T], [T @ A, -2 * T + B.T @ B]])
    cvxpy.Problem(cvxpy.Minimize(rho), [(M + M.T) / 2 << 0]).solve("CLARABEL")
    bound = lipschitz_bound(net).bound
    assert bound == pytest.approx(float(rho.value) ** 0.5, rel=1e-5)
    steepest = max(np.linalg.norm((B * p) @ A, 2) for p in itertools.product([0, 1], repeat=8))
    assert steepest <= bound


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_above_every_jacobian_and_below_cruder_bounds(name, norm):
    net = network(6, 8, 8, 2, act=ACTIVATIONS[name]).double()
    lower = sampled_lower_bound(net, norm, samples=300, rounds=5, generator=torch.Generator().manual_seed(0))
    bounds = {m: lipschitz_bound(net, norm, m).bound for m in ("reduced", "lambda", "layer", "recursion", "product")}
    assert lower <= bounds["reduced"]
    assert bounds["reduced"] <= bounds["layer"] * (1 + 1e-5)
    assert bounds["reduced"] <= bounds["lambda"] * (1 + 1e-5)
    assert bounds["layer"] <= bounds["recursion"] * (1 + 1e-5)
    if norm == "l2":
        assert bounds["lambda"] <= bounds["product"] * (1 + 1e-5)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", SORTING)
def test_solvers_and_the_papers_form_agree(name):
    net = network(6, 8, 3, act=ACTIVATIONS[name]).double()
    ours = lipschitz_bound(net).bound
    assert lipschitz_bound(net, solver="CLARABEL").bound == pytest.approx(ours, rel=2e-6)
    assert lipschitz_bound(net, method="nsr").bound == pytest.approx(ours, rel=1e-3)
    assert lipschitz_bound(net, solver="SCS").bound == pytest.approx(ours, rel=1e-2)


def test_large_inputs_are_compressed_and_still_proved_whole():
    net = network(60, 8, 3)
    padded = network(8, 8, 3)
    Q = torch.linalg.qr(torch.randn(60, 8, dtype=torch.float64))[0]
    net[0].weight.data = padded[0].weight.data @ Q.T
    net[2].weight.data = padded[2].weight.data
    found = lipschitz_bound(net)
    assert found.size == 64
    assert found.bound == pytest.approx(lipschitz_bound(padded).bound, rel=1e-6)


# ---- invariances ----------------------------------------------------------------------------------------------------


def test_rotations_permuted_groups_and_scales():
    net = network(5, 8, 8, 4)
    bound = lipschitz_bound(net).bound
    Q, R = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for n in (5, 4))
    order = torch.tensor([2, 3, 0, 1, 6, 7, 4, 5])
    other = network(5, 8, 8, 4)
    other[0].weight.data = 3 * net[0].weight.data[order] @ Q
    other[2].weight.data = net[2].weight.data[:, order]
    other[4].weight.data = R @ net[4].weight.data
    assert lipschitz_bound(other).bound == pytest.approx(3 * bound, rel=3e-6)


def test_tiny_and_huge_weights():
    for scale in (1e-30, 1e30):
        net = network(5, 8, 4)
        bound = lipschitz_bound(net).bound
        net[0].weight.data *= scale
        assert lipschitz_bound(net).bound == pytest.approx(scale * bound, rel=3e-6)


# ---- rounding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_certificate_in_rational_arithmetic(norm):
    """With the returned multipliers the inequality holds exactly, for a network of integers."""
    net = network(2, 4, 1)
    for layer in net[::2]:
        layer.weight.data = torch.randint(
            -3, 4, layer.weight.shape, generator=torch.Generator().manual_seed(4)
        ).double()
    found = lipschitz_bound(net, norm)
    trace, output = Trace.of(flat(net), (2,), "reduced", {})
    lmi = assemble(trace, output, norm, False)
    exact = np.vectorize(Fraction)
    M, y = exact(lmi.constant.middle), exact(found.multipliers[0].numpy())
    for t in lmi.terms:
        rows, K = exact(t.rows.middle), exact(t.kernel.toarray())
        M = M + rows.T @ (y[t.owner, None] * K) @ rows
    assert definite(M)
    assert all(v >= 0 for v in y)
    cost = sum(exact(lmi.cost) * y)
    assert cost <= Fraction(found.bound) ** (2 if norm == "l2" else 1)
    assert found.verified
    assert found.margin > 0


def test_products_enclose_the_exact_ones():
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 6, 6))
    exact = np.vectorize(Fraction)
    twice = Enclosed(A) @ Enclosed(B) @ Enclosed(A) + Enclosed(B)
    error = np.abs(exact(A) @ exact(B) @ exact(A) + exact(B) - exact(twice.middle))
    assert (error <= exact(twice.radius)).all()
    assert error.max() > 0
    assert twice.radius.max() < 1e-13


def test_a_wrong_point_is_not_proved(monkeypatch):
    """A solver that lies costs tightness, never truth."""
    from sklearn.exceptions import ConvergenceWarning

    import hadamard.certification.lipsdp as module
    from hadamard.results import Solution

    net = network(5, 8, 3)
    bound = lipschitz_bound(net).bound
    for factor in (0.5, float("nan"), -1.0):

        def lie(lmi, start, tol, factor=factor):
            return Solution(value=factor * start, iterations=1, residual=0.0, converged=True)

        with monkeypatch.context() as patch:
            patch.setattr(module, "barrier", lie)
            if np.isfinite(factor):
                assert bound < lipschitz_bound(net).bound
            else:
                with pytest.warns(ConvergenceWarning, match="the bound is the product of norms"):
                    assert lipschitz_bound(net).bound == lipschitz_bound(net, method="product").bound


# ---- other networks -------------------------------------------------------------------------------------------------


def test_convolutions_batch_norm_and_image_groups():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), MaxMin(), nn.Conv2d(4, 4, 2, groups=2),
        GroupSort(4), nn.Dropout(), nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip
    net[1].running_var.copy_(torch.rand(4) + 0.5)
    net.eval()
    found = lipschitz_bound(net, input_shape=(1, 4, 4))
    lower = sampled_lower_bound(net, samples=500, input_shape=(1, 4, 4))
    assert lower <= found.bound <= 1.3 * lower
    assert found.bound < lipschitz_bound(net, method="product", input_shape=(1, 4, 4)).bound


def test_groups_lie_along_the_channels_of_images():
    """A network of 1 x 1 convolutions acts on each pixel alone, as the same matrices do on a vector."""
    net = network(3, 8, 2, act=ACTIVATIONS["Householder"]).double()
    pixels = nn.Sequential(nn.Conv2d(3, 8, 1), net[1], nn.Conv2d(8, 2, 1)).double()
    for i in (0, 2):
        pixels[i].weight.data = net[i].weight.data[:, :, None, None]
    found = lipschitz_bound(pixels, input_shape=(3, 2, 3)).bound
    assert found == pytest.approx(lipschitz_bound(net).bound, rel=1e-5)


def test_residual_networks():
    torch.manual_seed(0)
    block = Residual(nn.Sequential(nn.Linear(6, 8), MaxMin(), nn.Linear(8, 6)), nn.Linear(6, 6))
    net = nn.Sequential(nn.Linear(4, 6), block, nn.ReLU(), nn.Linear(6, 2)).double()
    lower, bound = sampled_lower_bound(net, samples=500), lipschitz_bound(net).bound
    assert lower <= bound <= lipschitz_bound(net, method="product").bound
    cancelled = nn.Sequential(Residual(nn.Linear(3, 3, bias=False))).double()
    cancelled[0].inner.weight.data = -torch.eye(3).double()
    assert lipschitz_bound(cancelled).bound < 1e-14


def test_other_libraries_and_own_rules():
    deel, orthogonium = (
        pytest.importorskip("deel.torchlip"),
        pytest.importorskip("orthogonium.layers.custom_activations"),
    )
    net = network(5, 8, 3)
    bound = lipschitz_bound(net).bound
    assert lipschitz_bound(nn.Sequential(net[0], deel.GroupSort(2), net[2])).bound == pytest.approx(bound)
    halves = torch.cat([torch.arange(0, 8, 2), torch.arange(1, 8, 2)])
    split = network(5, 8, 3)
    split[0].weight.data, split[2].weight.data = net[0].weight.data[halves], net[2].weight.data[:, halves]
    assert lipschitz_bound(nn.Sequential(split[0], orthogonium.MaxMin(), split[2])).bound == pytest.approx(bound)

    class Clipped(nn.Module):
        pass

    own = nn.Sequential(net[0], Clipped(), net[2])
    rules = {Clipped: lambda m, width, form: slope_restricted(0, 1, width)}
    assert lipschitz_bound(own, rules=rules).bound == lipschitz_bound(nn.Sequential(net[0], nn.ReLU(), net[2])).bound


def test_split_is_a_looser_product():
    net = network(6, 8, 8, 8, 3)
    whole, halves = lipschitz_bound(net).bound, lipschitz_bound(net, split=2).bound
    product = lipschitz_bound(net, method="product").bound
    assert whole < halves < product
    assert lipschitz_bound(net, split=4).bound == pytest.approx(product, rel=1e-5)


@pytest.mark.slow
def test_hundreds_of_units():
    net = network(64, 128, 128, 128, 10)
    found = lipschitz_bound(net)
    assert found.converged
    assert found.bound < 0.5 * lipschitz_bound(net, method="product").bound


# ---- bad input ------------------------------------------------------------------------------------------------------


def broken(value):
    net = network(4, 6, 2)
    net[0].weight.data[0, 0] = value
    return net


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (3, {}, TypeError, r"model must be a torch.nn.Module, got int"),
        (nn.Sequential(), {}, ValueError, "model must have layers, got an empty Sequential"),
        (network(4, 6, 2), {"norm": "l1"}, ValueError, "norm must be one of 'l2', 'linf', got 'l1'"),
        (network(4, 6, 2), {"method": "sdp"}, ValueError, "method must be one of 'reduced', 'nsr'"),
        (network(4, 6, 2), {"solver": "MOSEK"}, ValueError, "solver must be one of 'barrier'"),
        (
            network(4, 6, 2),
            {"split": 3},
            ValueError,
            "split must be at most the number of layers with weights, 2, got 3",
        ),
        (network(4, 6, 2), {"input_shape": (5,)}, ValueError, r"Linear expects 4 features, got shape \(5,\)"),
        (
            network(4, 6, 2, act=lambda n: GroupSort(4)),
            {},
            ValueError,
            "groups of 4 must divide the layer's width, got 6",
        ),
        (
            network(4, 6, 2, act=lambda n: Householder(4)),
            {},
            ValueError,
            "Householder has 4 channels, the layer before",
        ),
        (network(4, 6, 2, act=lambda n: nn.Softmax(1)), {}, ValueError, "Softmax is not known; known are Linear"),
        (
            network(4, 6, 2, act=lambda n: nn.BatchNorm1d(n)),
            {},
            ValueError,
            r"BatchNorm1d needs .* call model.eval\(\)",
        ),
        (network(4, 6, 2, act=lambda n: nn.Dropout()), {}, ValueError, r"Dropout is in training mode"),
        (network(4, 6, 2, act=lambda n: GroupSort(3)), {"method": "residual"}, ValueError, "residual rewriting is of"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), {}, ValueError, "input_shape must be given"),
        (broken(float("nan")), {}, ValueError, "Linear.weight must be finite, got 1 NaN or infinite"),
        (broken(1e300), {"norm": "l2"}, ValueError, "overflows"),
        (nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)), {}, ValueError, "Linear.weight must be real"),
        (network(4, 500, 2), {"solver": "CLARABEL"}, ValueError, "CLARABEL takes a matrix of side 220 at most"),
    ],
)
def test_bad_input(model, options, error, message):
    with pytest.raises(error, match=message):
        lipschitz_bound(model, **options)


@pytest.mark.bad_input
def test_too_large(monkeypatch):
    monkeypatch.setattr("hadamard.certification.lipsdp._LARGEST", 6)
    with pytest.raises(ValueError, match="a matrix of side 7, above 6: use split, or method='product'"):
        lipschitz_bound(network(4, 6, 2))


@pytest.mark.bad_input
def test_bad_activations():
    with pytest.raises(ValueError, match="group_size must be >= 2, got 1"):
        GroupSort(1)
    with pytest.raises(ValueError, match="group_size must divide channels, got 2 and 5"):
        Householder(5)
    with pytest.raises(ValueError, match="v must have directions of length above 0"):
        Householder(4, v=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"groups of 2 must divide dimension 1 of x, got shape \(1, 3\)"):
        MaxMin()(torch.zeros(1, 3))
