"""Transport with a bounded number of entries: closed forms, brute force, peers, gradients, routing, bad input."""

import contextlib
import io
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from hadamard.kernels import using
from hadamard.transport import SparseRouter, sparsity_constrained_ot
from hadamard.transport.semidual import SparseSquaredL2, ascend, prepare_dual, prepare_semi_dual, semi_dual
from tests.transport.problems import cloud

INF, NAN = float("inf"), float("nan")


def columns(a, b, M):
    """A problem as the semi-dual stores it: one batch dimension, costs by columns."""
    return a[None], b[None], M.mT.contiguous()[None]


def scores(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def best_of_all_supports(s, omega, mass=None):
    """The conjugate by trying every support; on one of them the maximiser has a closed form."""
    n, best = len(s), (-INF, None)
    for size in range(1, omega.k + 1):
        for support in itertools.combinations(range(n), size):
            part = s[list(support)]
            level = 0.0 if mass is None else (part.sum() - omega.reg * mass) / size
            t = torch.zeros_like(s)
            t[list(support)] = (part - level) / omega.reg
            if bool((t >= 0).all()):
                best = max(best, (float(s @ t - omega.value(t)), t), key=lambda found: found[0])
    return best if mass is not None or best[0] > 0 else (0.0, torch.zeros_like(s))


@pytest.mark.parametrize("mass", [None, 0.3, 2.0])
@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_conjugate_against_every_support(k, mass):
    omega = SparseSquaredL2(0.7, k)
    for seed in range(6):
        s = scores(6, seed=seed)
        given_mass = None if mass is None else torch.tensor(mass, dtype=torch.float64)
        value, t = best_of_all_supports(s, omega, mass)
        torch.testing.assert_close(float(omega.conjugate(s, given_mass)), value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(omega.grad_conjugate(s, given_mass), t)


@pytest.mark.parametrize("mass", [None, 0.5])
def test_fenchel_young(mass):
    omega, s = SparseSquaredL2(0.3, 3), scores(50, 8)
    mass = None if mass is None else torch.full((50,), mass, dtype=torch.float64)
    for seed in range(5):
        t = omega.grad_conjugate(scores(50, 8, seed=seed + 1), mass)
        assert (omega.value(t) + omega.conjugate(s, mass) >= (s * t).sum(-1) - 1e-12).all()
    t = omega.grad_conjugate(s, mass)
    torch.testing.assert_close(omega.value(t) + omega.conjugate(s, mass), (s * t).sum(-1))


def test_of_equal_scores_the_lowest_index_is_kept():
    s = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0])
    assert torch.equal(SparseSquaredL2(1.0, 2).grad_conjugate(s), torch.tensor([0.0, 2.0, 2.0, 0.0, 0.0]))
    t = SparseSquaredL2(1.0, 2).grad_conjugate(s, torch.tensor(1.0))
    assert torch.equal(t, torch.tensor([0.0, 0.5, 0.5, 0.0, 0.0]))


@pytest.mark.parametrize("path", ["auto", "portable", "torch"])
@pytest.mark.parametrize("k", [1, 3, 12])
def test_prepared_semi_dual_is_the_plain_one(k, path):
    a, b, M = cloud(batch=(4,))
    b[0, 2], M[1, 3, 4], C = 0, INF, None
    C, omega = M.mT.contiguous(), SparseSquaredL2(0.05, k)
    evaluate = prepare_semi_dual(a, b, C, omega)
    for scale in (0.0, 0.01, 1.0, 0.1, 0.001, 100.0):  # thresholds that come from far away, and from near
        alpha = scale * scores(4, 12)
        value, rows = semi_dual(alpha, C, b, omega)
        with using(path):
            got, gradient = evaluate(alpha)
        torch.testing.assert_close(got, value - (alpha * a).sum(1))
        torch.testing.assert_close(gradient, rows - a)


@pytest.mark.parametrize("prepare", [prepare_semi_dual, prepare_dual])
def test_gradients_of_the_duals_away_from_ties(prepare):
    a, b, C = columns(*cloud())
    evaluate = prepare(a, b, C, SparseSquaredL2(0.2, 3))
    size = 12 if prepare is prepare_semi_dual else 21
    for seed in range(3):
        x, h = 0.3 * scores(1, size, seed=seed), 1e-6
        gradient = evaluate(x)[1]
        for i in range(size):
            step = h * torch.eye(size, dtype=torch.float64)[i]
            slope = (evaluate(x + step)[0] - evaluate(x - step)[0]) / (2 * h)
            torch.testing.assert_close(slope, gradient[:, i], rtol=1e-5, atol=1e-7)


def test_semi_dual_adds_up_over_blocks_of_columns():
    _, b, C = columns(*cloud())
    alpha, omega = scores(1, 12), SparseSquaredL2(0.1, 2)
    whole, parts = (
        semi_dual(alpha, C, b, omega),
        [semi_dual(alpha, C[:, i], b[:, i], omega) for i in ([0, 1, 2], [3, 4, 5, 6, 7, 8])],
    )
    torch.testing.assert_close(whole[0], parts[0][0] + parts[1][0])
    torch.testing.assert_close(whole[1], parts[0][1] + parts[1][1])


@pytest.mark.parametrize("kink", [0.0, 1.0])
def test_ascend_on_quadratics_with_and_without_a_kink(kink):
    weights, centre = torch.logspace(0, 3, 7, dtype=torch.float64), scores(3, 7)

    def fun(x):
        d = x - centre
        return (weights * d.square()).sum(1) / 2 + kink * d.abs().amax(1), weights * d + kink * torch.where(
            d.abs() == d.abs().amax(1, keepdim=True), d.sign(), 0
        )

    best, residual, evaluations = ascend(fun, torch.zeros_like(centre), 1.0, torch.full((3,), 1e-9), 400)
    torch.testing.assert_close(best, centre, rtol=0, atol=1e-9 if kink == 0 else 0.05)
    torch.testing.assert_close(residual, fun(best)[1].abs().sum(1))
    assert evaluations < 200 or kink


@pytest.mark.parametrize("solver", ["semi_dual", "dual"])
@pytest.mark.parametrize("reg", [1.0, 0.05])
def test_without_a_bound_it_is_quadratic_transport(reg, solver):
    import cvxpy as cp

    a, b, M = cloud()
    found = sparsity_constrained_ot(a, b, M, reg, 12, solver=solver, tol=1e-10)
    T = cp.Variable((12, 9), nonneg=True)
    objective = cp.sum(cp.multiply(M.numpy(), T)) + reg / 2 * cp.sum_squares(T)
    cp.Problem(cp.Minimize(objective), [T.sum(1) == a.numpy(), T.sum(0) == b.numpy()]).solve("CLARABEL")
    assert float((found.plan - torch.from_numpy(T.value)).abs().max()) < 1e-5
    torch.testing.assert_close(float(found.value), objective.value, rtol=1e-6, atol=1e-6)
    assert abs(float(found.extras["duality_gap"])) < 1e-10


@pytest.mark.parametrize("k", [2, 5])
def test_against_pot(k):
    import ot

    a, b, M = cloud(20, 15)
    found = sparsity_constrained_ot(a, b, M, 0.02, k, warn=False)
    with contextlib.redirect_stdout(io.StringIO()):  # POT prints on the way
        _, log = ot.smooth.smooth_ot_semi_dual(
            a.numpy(), b.numpy(), M.numpy(), 0.02, reg_type="sparsity_constrained", max_nz=k, log=True
        )
    alpha = torch.from_numpy(log["alpha"])
    value = float(alpha @ a - semi_dual(alpha, M.mT, b, SparseSquaredL2(0.02, k))[0])
    assert float(found.value) >= value - 1e-5  # both are lower bounds


def test_dual_and_semi_dual_have_one_optimum():
    a, b, M = cloud(30, 12)
    for k, binds in ((5, True), (8, False)):
        found = [
            sparsity_constrained_ot(a, b, M, 0.02, k, solver=s, tol=1e-9, warn=False) for s in ("semi_dual", "dual")
        ]
        assert all(result.converged is not binds for result in found)
        torch.testing.assert_close(found[0].value, found[1].value, rtol=1e-6, atol=0)
        if not binds:
            torch.testing.assert_close(found[0].plan, found[1].plan, rtol=0, atol=1e-8)


def test_one_entry_gives_unregularised_transport():
    import ot

    for seed in range(2):
        a, b, M = cloud(5, 8, seed=seed)
        found = sparsity_constrained_ot(a, b, M, 0.01, 1, tol=1e-9, warn=False)
        exact = float(ot.emd2(a.numpy(), b.numpy(), M.numpy()))
        shifted = exact + 0.01 / 2 * float(b.square().sum())
        assert shifted - 1e-3 < float(found.value) < shifted + 1e-9


def test_lower_bound_of_every_sparse_plan():
    """All supports of a problem with 4 sources, 3 targets and 2 entries a column, each a small quadratic program."""
    import cvxpy as cp

    a, b, M = cloud(4, 3, seed=3)
    supports, reg, least = list(itertools.combinations(range(4), 2)), 0.3, INF
    keep, T = cp.Parameter((4, 3), nonneg=True), cp.Variable((4, 3), nonneg=True)
    objective = cp.sum(cp.multiply(M.numpy(), T)) + reg / 2 * cp.sum_squares(T)
    program = cp.Problem(cp.Minimize(objective), [T.sum(1) == a.numpy(), T.sum(0) == b.numpy(), keep >= T])
    for chosen in itertools.product(supports, repeat=3):
        mask = torch.zeros(4, 3)
        for j, rows in enumerate(chosen):
            mask[list(rows), j] = 1
        if bool((mask.sum(1) > 0).all()):
            keep.value = mask.numpy()
            value = program.solve("CLARABEL")
            least = min(least, value)
    found = sparsity_constrained_ot(a, b, M, reg, 2, warn=False)
    assert float(found.value) <= least + 1e-7
    assert least < INF


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 20), st.integers(1, 15), st.integers(1, 6), st.floats(-3, 0.5), st.integers(0, 99))
def test_what_holds_of_every_plan(n, m, k, exponent, seed):
    a, b, M = cloud(n, m, seed=seed)
    k = min(max(k, -(-n // m)), n)
    found = sparsity_constrained_ot(a, b, M, 10**exponent, k, max_iter=50, warn=False)
    assert int((found.plan > 0).sum(0).max()) <= k
    torch.testing.assert_close(found.plan.sum(0), b)
    assert found.residual == pytest.approx(float((found.plan.sum(1) - a).abs().sum()), abs=1e-12)
    gap = float((found.plan * M).sum() + 10**exponent / 2 * found.plan.square().sum() - found.value)
    assert gap == pytest.approx(float(found.extras["duality_gap"]), abs=1e-9)
    f, g = found.potentials
    t = SparseSquaredL2(10**exponent, k).grad_conjugate((f[:, None] + g - M).mT).mT  # the dual's own plan
    torch.testing.assert_close(t, found.plan, rtol=1e-6, atol=1e-9)


def test_plan_is_optimal_for_its_own_sums():
    a, b, M = cloud(20, 5)
    found = sparsity_constrained_ot(a, b, M, 0.5, 4, max_iter=50, warn=False)
    assert found.residual > 1e-4
    rows = found.plan.sum(1)
    again = sparsity_constrained_ot(rows, b, M, 0.5, 4, max_iter=300, warn=False)
    objective = (found.plan * M).sum() + 0.25 * found.plan.square().sum()
    assert float(again.value) <= float(objective) + 1e-9
    assert float(again.value) >= float(objective) - 1e-3


def test_permutation():
    a, b, M = cloud(20, 10)
    i, j = torch.randperm(20), torch.randperm(10)
    plan = sparsity_constrained_ot(a, b, M, 0.02, 5, tol=1e-9).plan
    torch.testing.assert_close(
        sparsity_constrained_ot(a[i], b[j], M[i][:, j], 0.02, 5, tol=1e-9).plan, plan[i][:, j], rtol=0, atol=1e-8
    )


def test_batch_is_every_problem_by_itself():
    a, b, M = cloud(20, 8, batch=(2, 2))
    a[0, 0, 3], b[1, 1, 2] = 0, 0
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    found = sparsity_constrained_ot(a, b, M, 0.02, 8, tol=1e-9)
    assert torch.equal(torch.isneginf(found.potentials[0]), a == 0)
    assert torch.equal(torch.isneginf(found.potentials[1]), b == 0)
    assert found.extras["row_error"].shape == (2, 2)
    for i, j in itertools.product(range(2), range(2)):
        alone = sparsity_constrained_ot(a[i, j], b[i, j], M[i, j], 0.02, 8, tol=1e-9)
        torch.testing.assert_close(found.plan[i, j], alone.plan, rtol=0, atol=1e-8)


def test_a_problem_at_a_kink_does_not_hold_up_the_others():
    a, b, M = cloud(40, 5, batch=(2,))
    M[1] = M[0] * torch.linspace(0, 1, 40, dtype=torch.float64)[:, None] ** 4  # the second one wants 20 entries
    alone = sparsity_constrained_ot(a[0], b[0], M[0], 0.05, 14, tol=1e-8)
    both = sparsity_constrained_ot(a, b, M, 0.05, 14, tol=1e-8, warn=False)
    assert float(both.extras["row_error"][1]) > 1e-6
    torch.testing.assert_close(both.plan[0], alone.plan, rtol=0, atol=1e-7)


def test_without_compiled_kernels_the_plan_is_the_same():
    a, b, M = cloud(30, 10, batch=(2,))
    M[0][:, 2:5][M[0][:, 2:5] > 0.3] = INF
    found = sparsity_constrained_ot(a, b, M, 0.02, 8, tol=1e-9)
    with using("torch"):
        plain = sparsity_constrained_ot(a, b, M, 0.02, 8, tol=1e-9)
    torch.testing.assert_close(found.plan, plain.plan, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.value, plain.value)


def test_sparse_plan_and_float32():
    a, b, M = cloud(30, 10, dtype=torch.float32)
    dense = sparsity_constrained_ot(a, b, M, 0.02, 6)
    found = sparsity_constrained_ot(a, b, M, 0.02, 6, sparse=True)
    assert found.plan.layout == torch.sparse_csr
    assert found.plan.values().numel() == int((dense.plan > 0).sum()) <= 60
    assert torch.equal(found.plan.to_dense(), dense.plan)
    assert found.value.dtype == found.plan.dtype == found.potentials[0].dtype == torch.float32
    want = sparsity_constrained_ot(a.double(), b.double(), M.double(), 0.02, 6)
    torch.testing.assert_close(found.plan.to_dense().double(), want.plan, rtol=0, atol=1e-5)


def test_tiny_masses_and_forbidden_pairs():
    a, b, M = cloud(20, 10, dtype=torch.float32)
    b[3], M[:, 2:5][M[:, 2:5] > 0.3] = 1e-14, INF
    b = b / b.sum()
    found = sparsity_constrained_ot(a, b, M, 1e-2, 8, tol=1e-5)
    assert torch.isfinite(found.plan).all()
    assert float(found.plan[M == INF].sum()) == 0
    torch.testing.assert_close(found.plan.sum(0), b, rtol=1e-4, atol=0)


def test_stops_short_with_a_warning():
    with pytest.warns(
        ConvergenceWarning, match="stopped after .* evaluations at residual .* a smaller reg or a larger"
    ):
        found = sparsity_constrained_ot(None, None, cloud(20, 5)[2], 0.5, 4, max_iter=20)
    assert not found.converged


def test_value_gradients_are_the_plan_and_the_potentials():
    inputs = [t.requires_grad_() for t in cloud(20, 8)]
    found = sparsity_constrained_ot(*inputs, 0.05, 6, tol=1e-10)
    grads = torch.autograd.grad(found.value, inputs)
    torch.testing.assert_close(grads[2], found.plan.detach())
    for grad, potential, x in zip(grads, found.potentials, inputs):
        torch.testing.assert_close(grad, potential - potential.mean())
        shift = torch.zeros_like(grad)
        shift[0], shift[1] = 1e-6, -1e-6  # the mass stays
        moved = [[x + s * shift if y is x else y for y in inputs] for s in (1, -1)]
        up, down = (sparsity_constrained_ot(*m, 0.05, 6, tol=1e-10).value for m in moved)
        assert float((up - down).detach()) / 2e-6 == pytest.approx(float(grad[0] - grad[1]), rel=1e-4)


def test_gradcheck_of_the_plan():
    a, b, M = cloud(5, 3)
    x, y = a.log().requires_grad_(), b.log().requires_grad_()

    def solve(x, y, M):
        found = sparsity_constrained_ot(x.softmax(0), y.softmax(0), M, 0.1, 3, tol=1e-12, warn=False)
        assert found.residual < 1e-9
        return found.value, found.plan

    assert torch.autograd.gradcheck(solve, (x, y, M.requires_grad_()), atol=1e-5)


def test_points_without_mass_get_no_gradient():
    a, b, M = cloud()
    a[2] = 0
    a = (a / a.sum()).requires_grad_()
    found = sparsity_constrained_ot(a, b, M.requires_grad_(), 0.05, 6)
    (found.value + found.plan[0, 0]).backward()
    assert float(a.grad[2]) == 0
    assert torch.isfinite(a.grad).all()
    assert float(M.grad[2].abs().sum()) == 0


@pytest.mark.parametrize("combine", ["softmax", "plan"])
def test_router_serves_every_token_within_the_places(combine, generator):
    logits = 3 * torch.randn(3, 64, 8, generator=generator) + torch.linspace(0, 4, 8)  # the last expert is a favourite
    routing = SparseRouter(combine=combine)(logits)
    assert routing.indices.shape == routing.weights.shape == (3, 8, 10)
    assert float(routing.dropped.float().mean()) <= 0.01
    assert (routing.weights >= 0).all()
    sent = torch.zeros(3, 64, 8)
    for g, e in itertools.product(range(3), range(8)):
        used = routing.weights[g, e] > 0
        assert used.sum() == routing.indices[g, e][used].unique().numel()
        sent[g, routing.indices[g, e], e] += routing.weights[g, e]
    assert torch.equal(routing.dropped, (sent == 0).all(-1))
    if combine == "plan":
        torch.testing.assert_close(sent.sum(1), torch.full((3, 8), 8.0))  # every expert has its share
        assert float((sent.sum(2) - 1).abs().mean()) < 0.05
    else:
        gates = logits.softmax(-1)
        assert torch.equal(sent[sent > 0], gates[sent > 0])


@pytest.mark.parametrize("combine", ["softmax", "plan"])
def test_router_passes_gradients_to_the_scores(combine, generator):
    logits = torch.randn(32, 4, generator=generator, requires_grad=True)
    weights = SparseRouter(combine=combine, tol=1e-6)(logits).weights
    (weights * torch.rand(weights.shape, generator=generator)).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert float(logits.grad.abs().max()) > 0


def test_router_has_the_shape_of_a_module():
    router = SparseRouter(1.5, reg=0.05)
    assert router.state_dict() == {}
    assert repr(router) == "SparseRouter(capacity_factor=1.5, reg=0.05, combine='softmax')"
    assert router(torch.randn(7, 3)).indices.shape == (3, 4)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"reg": 0.0}, ValueError, "reg must be > 0, got 0.0"),
        ({"max_nz": 0}, ValueError, "max_nz must be >= 1, got 0"),
        ({"max_nz": 2.5}, TypeError, "max_nz must be an integer, got float 2.5"),
        ({"max_nz": 1}, ValueError, "max_nz must be >= 2 for the targets to reach every source that has mass, got 1"),
        ({"solver": "primal"}, ValueError, "solver must be one of 'semi_dual', 'dual', got 'primal'"),
        ({"tol": -1.0}, ValueError, "tol must be >= 0, got -1.0"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1, got 0"),
        ({"a": torch.ones(12, dtype=torch.float64)}, ValueError, "a and b must have equal mass, got 12 and 1"),
        ({"a": -torch.ones(12, dtype=torch.float64)}, ValueError, "a must be >= 0, got -1.0"),
        ({"M": torch.full((12, 9), NAN, dtype=torch.float64)}, ValueError, "M must hold costs that are finite or inf"),
        ({"M": torch.full((12, 9), INF, dtype=torch.float64)}, ValueError, "M forbids every pair of a row"),
        ({"b": torch.ones(9)}, ValueError, "a and b must have the same dtype"),
        ({"M": torch.ones(2, 12, 9, dtype=torch.float64), "sparse": True}, ValueError, r"one problem, got .* \(2,\)"),
    ],
)
def test_bad_input(change, error, message):
    a, b, M = cloud()
    with pytest.raises(error, match=message):
        sparsity_constrained_ot(**{"a": a, "b": b, "M": M, "reg": 0.1, "max_nz": 4, **change})


def test_a_bound_beyond_the_sources_is_told():
    a, b, M = cloud()
    with pytest.warns(UserWarning, match="max_nz=13 bounds nothing: there are 12 sources"):
        found = sparsity_constrained_ot(a, b, M, 0.1, 13)
    assert torch.equal(found.plan, sparsity_constrained_ot(a, b, M, 0.1, 12).plan)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"capacity_factor": 0.5}, ValueError, "capacity_factor must be >= 1, got 0.5"),
        ({"reg": 0}, ValueError, "reg must be > 0, got 0"),
        ({"combine": "sum"}, ValueError, "combine must be one of 'softmax', 'plan', got 'sum'"),
        ({"max_iter": 1.5}, TypeError, "max_iter must be an integer"),
    ],
)
def test_bad_settings_of_the_router(settings, error, message):
    with pytest.raises(error, match=message):
        SparseRouter(**settings)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "logits, error, message",
    [
        (torch.full((4, 2), NAN), ValueError, "scores must be finite, got 8 NaN"),
        (torch.ones(4, 2, dtype=torch.long), TypeError, "scores must have a floating dtype, got torch.int64"),
        (torch.ones(4), ValueError, r"scores must have shape \(..., \*, \*\), got \(4,\)"),
    ],
)
def test_bad_scores(logits, error, message):
    with pytest.raises(error, match=message):
        SparseRouter()(logits)
