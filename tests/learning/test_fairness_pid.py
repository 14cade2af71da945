"""Partial information: closed forms, three solvers, identities; audits, limits and penalties on top of it."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from hadamard.learning import AGLFOP, GlobalLocalPenalty, fairness_pid, pid
from hadamard.learning._broja import objective, solve_binary, solve_interior
from hadamard.learning.partial_information import mutual_information

UNIQUE, REDUNDANT, SYNERGY = np.zeros((3, 2, 2, 2))
UNIQUE[[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1]] = 1 / 4
REDUNDANT[[0, 1], [0, 1], [0, 1]] = 1 / 2
SYNERGY[[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1]] = 1 / 4


def joints(n, shape, seed=0, concentration=1.0):
    return np.random.default_rng(seed).dirichlet(np.full(math.prod(shape), concentration), n).reshape(n, *shape)


def parts(found):
    return np.stack([found.unique_1, found.unique_2, found.redundant, found.synergy])


# ------------------------------------------------------------------------------------------- decomposition


@pytest.mark.parametrize("solver", ["binary", "interior"])
@pytest.mark.parametrize(
    "joint, expected", [(UNIQUE, (1, 0, 0, 0)), (REDUNDANT, (0, 0, 1, 0)), (SYNERGY, (0, 0, 0, 1))]
)
def test_canonical_examples(joint, expected, solver):
    np.testing.assert_allclose(parts(pid(joint, solver=solver)), expected, atol=1e-8)


def test_the_and_gate():
    """A third of a bit and a half, from Bertschinger et al.: no unique information, half a bit of synergy."""
    gate = np.zeros((2, 2, 2))
    for x, s in product(range(2), repeat=2):
        gate[x & s, x, s] = 1 / 4
    redundant = 3 / 4 * math.log2(4 / 3)
    np.testing.assert_allclose(parts(pid(gate)), (0, 0, redundant, 1 / 2), atol=1e-12)


@pytest.mark.parametrize("concentration", [1.0, 0.1])
def test_two_solvers_agree(concentration):
    """One has a closed form, the other follows a central path and proves its distance."""
    p = joints(300, (2, 2, 2), concentration=concentration)
    p[::3] *= np.random.default_rng(1).random((100, 2, 2, 2)) < 0.7  # empty cells
    p /= p.sum((1, 2, 3), keepdims=True)
    exact, (q, gap, _) = solve_binary(p), solve_interior(p, 1e-10, 100)
    assert gap.max() <= 1e-10
    np.testing.assert_allclose(objective(q), objective(exact), atol=3e-10)
    for found in (exact, q):
        np.testing.assert_allclose(found.sum(3), p.sum(3), atol=1e-8)
        np.testing.assert_allclose(found.sum(2), p.sum(2), atol=1e-8)
        assert found.min() >= 0


def test_binary_against_a_fine_grid():
    for p in joints(5, (2, 2, 2), seed=3):
        m, a, b = p.sum((1, 2)), p[:, 1].sum(1), p[:, :, 1].sum(1)
        t = [np.linspace(max(0, a[z] + b[z] - m[z]), min(a[z], b[z]), 400) for z in range(2)]
        t = np.stack(np.meshgrid(*t, indexing="ij"), -1).reshape(-1, 2)
        q = np.stack([m - a - b + t, b - t, a - t, t], -1).reshape(-1, 2, 2, 2).clip(0)
        best = objective(q).min()
        exact = objective(solve_binary(p[None]))[0]
        assert exact <= best + 1e-12
        assert exact >= best - 1e-5


@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 2, 5), (3, 3, 3)])
def test_interior_against_exponential_cones(shape):
    import cvxpy

    p = joints(1, shape, seed=1)[0]
    q = [cvxpy.Variable(shape[1:], nonneg=True) for _ in range(shape[0])]
    margins = [rule for z in range(shape[0]) for rule in
               (cvxpy.sum(q[z], 1) == p[z].sum(1), cvxpy.sum(q[z], 0) == p[z].sum(0))]  # fmt: skip
    loss = sum(cvxpy.sum(cvxpy.rel_entr(each, sum(q))) for each in q)
    reference = cvxpy.Problem(cvxpy.Minimize(loss), margins).solve(solver="CLARABEL")
    assert objective(solve_interior(p[None], 1e-9, 100)[0])[0] == pytest.approx(reference, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 4, 2)])
def test_agrees_with_dit(shape):
    """As far as its local search from a random start comes, which may stop short and then finds more unique."""
    dit = pytest.importorskip("dit")
    np.random.seed(0)  # noqa: NPY002  (dit draws from it)

    p = joints(1, shape, seed=2)[0]
    cells = ["".join(map(str, cell)) for cell in np.ndindex(shape)]
    theirs = dit.pid.PID_BROJA(dit.Distribution(cells, p.ravel()), [[1], [2]], [0])
    expected = [theirs[node] for node in (((1,),), ((2,),), ((1,), (2,)), ((1, 2),))]
    found = parts(pid(p))
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert found[0] <= expected[0] + 1e-4
    assert found[1] <= expected[1] + 1e-4


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 2, 4), (2, 1, 3), (1, 2, 2), (2, 3, 1)])
@pytest.mark.parametrize("concentration", [1.0, 0.05])
def test_identities_and_bounds(shape, concentration):
    p = joints(20, shape, seed=4, concentration=concentration)
    found = pid(p)
    first, second = mutual_information(p.sum(3)), mutual_information(p.sum(2))
    both = mutual_information(p.reshape(20, shape[0], -1))
    assert parts(found).min() >= 0
    np.testing.assert_allclose(found.unique_1 + found.redundant, first, atol=1e-8)
    np.testing.assert_allclose(found.unique_2 + found.redundant, second, atol=1e-8)
    np.testing.assert_allclose(parts(found).sum(0), both, atol=1e-8)
    assert (found.redundant <= np.minimum(first, second) + 1e-8).all()


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 2, 4)])
def test_sources_exchanged_axes_moved_and_values_relabelled(shape):
    p = joints(5, shape, seed=5)
    expected = parts(pid(p))
    np.testing.assert_allclose(parts(pid(p, sources=(2, 1)))[[1, 0, 2, 3]], expected, atol=1e-7)
    np.testing.assert_allclose(parts(pid(p.transpose(0, 2, 3, 1), target=2, sources=(0, 1))), expected, atol=1e-7)
    np.testing.assert_allclose(parts(pid(p[:, ::-1, ::-1, ::-1])), expected, atol=1e-7)
    np.testing.assert_allclose(parts(pid(p, base=math.e)), expected * math.log(2), atol=1e-7)


def test_nothing_is_redundant_where_a_source_says_nothing():
    # z and s independent, x anything: P(z) P(s) P(x | z, s)
    p = joints(10, (3, 2, 4), seed=6)
    p = p / p.sum(2, keepdims=True) * joints(10, (3,), 7)[:, :, None, None] * joints(10, (4,), 8)[:, None, None]
    assert pid(p).redundant.max() < 1e-8
    assert pid(p[:, :2, :, :2] / p[:, :2, :, :2].sum((1, 2, 3), keepdims=True)).redundant.max() < 1e-8


def test_values_that_never_occur_change_nothing():
    p = joints(1, (2, 2, 2), seed=9)[0]
    padded = np.zeros((3, 4, 3))
    padded[np.ix_([0, 2], [1, 3], [0, 1])] = p
    np.testing.assert_allclose(parts(pid(padded)), parts(pid(p)), atol=1e-8)


def test_a_short_stop_warns_and_says_how_far():
    with pytest.warns(ConvergenceWarning, match=r"1 of 1 solved to .* above tol=1e-09, in 2 steps"):
        found = pid(joints(1, (3, 3, 2))[0], max_iter=2)
    assert not found.converged
    assert abs(found.unique_1 - pid(joints(1, (3, 3, 2))[0]).unique_1) <= found.residual


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change, message",
    [
        ({"joint": np.full((2, 2), 0.25)}, r"joint must have shape \(\.\.\., a, b, c\) and not be empty, got \(2, 2\)"),
        ({"joint": np.full((2, 2, 2), 0.5)}, "joint must sum to 1, got 4"),
        ({"joint": -REDUNDANT}, "joint must not be negative, got -0.5"),
        ({"joint": REDUNDANT * np.nan}, "joint must be finite, got 8 NaN or infinite values"),
        ({"target": 1}, r"target and sources must be the axes 0, 1 and 2, got 1 and \(1, 2\)"),
        ({"base": 1}, "base must be > 1, got 1"),
        ({"solver": "cone"}, "solver must be one of 'auto', 'binary', 'interior', got 'cone'"),
        ({"joint": np.full((2, 2, 3), 1 / 12), "solver": "binary"}, "needs three binary variables"),
        ({"tol": 0}, "tol must be > 0, got 0"),
    ],
)
def test_bad_joints(change, message):
    with pytest.raises(ValueError, match=message):
        pid(**{"joint": REDUNDANT} | change)


# --------------------------------------------------------------------------------------------------- audit


def table_rows(p, n):
    """Labels z, y, s of n rows that have the distribution p (z, y, s)."""
    counts = np.round(p * n).astype(int)
    return tuple(np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices(p.shape))


def audit(z, y, s, **options):
    return fairness_pid(y, sensitive_features=z, client=s, **{"n_bootstrap": 0} | options)


@pytest.mark.parametrize("name, joint", [("unique", UNIQUE), ("redundant", REDUNDANT), ("masked", SYNERGY)])
def test_canonical_audits(name, joint):
    found = audit(*table_rows(joint, 8))
    for each in ("unique", "redundant", "masked"):
        assert getattr(found, each) == pytest.approx(float(each == name), abs=1e-9)
    assert found.global_ == pytest.approx(float(name != "masked"), abs=1e-9)
    assert found.local == pytest.approx(float(name != "redundant"), abs=1e-9)


def test_an_audit_is_the_decomposition_of_its_table():
    z, y, s = table_rows(joints(1, (2, 3, 4), seed=1)[0], 5000)
    found = audit(z, y, s)
    np.testing.assert_allclose(found.joint, np.histogramdd((z, y, s), bins=(2, 3, 4))[0] / len(z), atol=1e-12)
    split = pid(found.joint)
    assert (found.unique, found.redundant, found.masked) == (split.unique_1, split.redundant, split.synergy)
    assert found.local == pytest.approx(sum(c.share * c.disparity for c in found.per_client.values()), abs=1e-8)


def test_gaps_are_those_of_fairlearn():
    metrics = pytest.importorskip("fairlearn.metrics")

    z, y, s = table_rows(joints(1, (3, 2, 3), seed=2)[0], 400)
    found = audit(z, y, s)
    assert found.parity_gap == pytest.approx(metrics.demographic_parity_difference(y, y, sensitive_features=z))
    for client, report in found.per_client.items():
        mine = s == client
        gap = metrics.demographic_parity_difference(y[mine], y[mine], sensitive_features=z[mine])
        assert report.parity_gap == pytest.approx(gap)


def test_weights_probabilities_and_several_attributes():
    z, y, s = table_rows(joints(1, (2, 2, 2), seed=3)[0], 60)
    weight = np.random.default_rng(0).integers(0, 4, len(z))
    weighted, repeated = audit(z, y, s, sample_weight=weight), audit(*(np.repeat(a, weight) for a in (z, y, s)))
    np.testing.assert_allclose(weighted.joint, repeated.joint, atol=1e-12)
    assert audit(z, y, s, sample_weight=np.full(len(z), 7.0)).local == pytest.approx(audit(z, y, s).local)
    soft = audit(z, np.eye(2)[y], s)
    assert soft.decisions == [0, 1]
    np.testing.assert_allclose(soft.joint, audit(z, y, s).joint, atol=1e-12)
    half = audit(np.arange(4) % 2, np.full((4, 2), 0.5), [0, 0, 1, 1])
    assert half.global_ == pytest.approx(0, abs=1e-12)
    crossed = audit(np.column_stack([z, s]), y, s)
    assert crossed.groups == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_labels_come_as_users_have_them():
    pandas = pytest.importorskip("pandas")

    z, y, s = table_rows(joints(1, (2, 2, 2), seed=4)[0], 50)
    frame = pandas.DataFrame({"sex": np.array(["f", "m"])[z], "site": pandas.Categorical(s), "ok": y == 1})
    found = audit(frame["sex"], frame["ok"], frame["site"])
    assert (found.groups, found.decisions, list(found.per_client)) == (["f", "m"], [False, True], [0, 1])
    np.testing.assert_allclose(found.joint, audit(z, y, s).joint)
    assert audit(frame[["sex", "ok"]], torch.tensor(y), frame["site"]).groups[0] == ("f", False)


def test_one_client_one_group():
    z, y, s = table_rows(joints(1, (2, 2, 2), seed=5)[0], 100)
    alone = audit(z, y, np.zeros_like(s))
    assert alone.local == pytest.approx(alone.global_, abs=1e-8)
    assert alone.redundant == pytest.approx(0, abs=1e-8)
    one = audit(np.zeros_like(z), y, s)
    assert (one.global_, one.local, one.parity_gap) == (0, 0, 0)
    apart = audit(z, y, z)  # each client has one group
    assert apart.local == pytest.approx(0, abs=1e-9)
    assert math.isnan(apart.per_client[0].rates[1][0])


def test_intervals_cover_and_shrink_with_the_root_of_n():
    p = joints(1, (2, 2, 2), seed=3)[0]
    truth, random = pid(p), np.random.default_rng(0)
    widths = []
    for n in (400, 6400):
        covered, width = 0, []
        for _ in range(60):
            counts = random.multinomial(n, p.ravel()).reshape(p.shape)
            found = audit(*table_rows(counts / n, n), n_bootstrap=200, random_state=random)
            low, high = found.intervals["redundant"]
            covered += low <= truth.redundant <= high
            width.append(high - low)
        assert covered >= 51
        widths.append(np.mean(width))
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


def test_bias_is_that_of_an_information_from_a_finite_sample():
    n = 4000
    z, y, s = table_rows(np.full((2, 2, 2), 1 / 8), n)
    found = audit(z, y, s, n_bootstrap=2000)
    assert found.global_ == pytest.approx(0, abs=1e-12)
    assert found.bias["global_"] == pytest.approx(1 / (2 * n * math.log(2)), rel=0.15)
    assert found.bias["local"] == pytest.approx(2 / (2 * n * math.log(2)), rel=0.15)
    assert found.intervals["global_"][0] == 0
    assert audit(z, y, s, n_bootstrap=20, random_state=1).bias == audit(z, y, s, n_bootstrap=20, random_state=1).bias


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change, message",
    [
        ({"client": [0, 1]}, "client must have as many rows as the predictions, 4, got 2"),
        (
            {"sensitive_features": [0.0, 1.0, float("nan"), 0.0]},
            "sensitive_features must not have missing labels, got 1",
        ),
        ({"client": ["a", None, "b", "a"]}, "client must not have missing labels, got 1"),
        ({"client": ["a", 1, "b", "a"]}, "client must have labels of one kind, got int, str"),
        (
            {"sample_weight": [1, -1, 1, 1]},
            "sample_weight must be finite, >= 0 and not all zero, got a minimum of -1.0",
        ),
        ({"sample_weight": [1, 1]}, r"sample_weight must have shape \(4,\), got \(2,\)"),
        ({"y_pred": np.full((4, 2), 0.6)}, "must hold probabilities with sum 1 in each row"),
        ({"y_pred": np.eye(4, 2, dtype=int)}, r"y_pred must be labels \(n,\) or floating probabilities"),
        ({"y_pred": []}, r"y_pred must have shape \(n,\) or \(n, k\) and not be empty"),
        ({"level": 1}, "level must be > 0 and < 1, got 1"),
        ({"n_bootstrap": -1}, "n_bootstrap must be >= 0, got -1"),
    ],
)
def test_bad_tables(change, message):
    good = {"y_pred": [0, 1, 0, 1], "sensitive_features": [0, 0, 1, 1], "client": [0, 1, 1, 0]}
    with pytest.raises(ValueError, match=message):
        fairness_pid(**good | change)


# --------------------------------------------------------------------------------------------------- limit


def test_corners_of_the_frontier():
    p = joints(1, (3, 2, 2), seed=1)[0]
    limit = AGLFOP.from_table(p)
    free = limit.solve()
    assert free.accuracy == pytest.approx(1)
    assert free.global_ == pytest.approx(mutual_information(p.sum(1)), abs=1e-6)
    # no disparity at all: within a client all groups have one rate, and so have all clients together
    fair, size = limit.solve(0.0, 0.0), p.sum(2)
    rates = fair.joint.sum(2) / size[..., None]
    np.testing.assert_allclose(rates, rates[:1].repeat(3, 0), atol=1e-6)
    # budgets of entropy bind nothing, and a decision for everybody is always fair
    assert limit.solve(2.0, 2.0).accuracy == pytest.approx(1)
    assert fair.accuracy >= p.sum((0, 1)).max() - 1e-9


def test_one_client_and_no_disparity_is_a_scan_over_one_rate():
    p = joints(1, (3, 1, 2), seed=2)[0]
    size, positive = p.sum(2)[:, 0], p[:, 0, 1]
    losses = [np.abs(positive - rate * size).sum() for rate in np.r_[0, 1, positive / size]]
    assert AGLFOP.from_table(p).solve(0.0).accuracy == pytest.approx(1 - min(losses), abs=1e-8)


def test_against_a_grid_over_the_rates():
    p = joints(1, (2, 1, 2), seed=3)[0]
    size, positive = p.sum(2)[:, 0], p[:, 0, 1]
    v = np.stack(np.meshgrid(*(np.linspace(0, each, 800) for each in size), indexing="ij"), -1).reshape(-1, 2)
    disparity = mutual_information(np.stack([size - v, v], -1))
    accuracy = 1 - np.abs(v - positive).sum(1)
    for eps in (0.001, 0.01, 0.03):
        best = accuracy[disparity <= eps].max()
        assert AGLFOP.from_table(p).solve(eps).accuracy == pytest.approx(best, abs=4e-3)
        assert AGLFOP.from_table(p).solve(eps).accuracy >= best - 1e-9


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 4, 3)])
@pytest.mark.parametrize("budgets", [(0.0, 0.0), (0.0, math.inf), (0.01, 0.0), (0.003, 0.02), (math.inf, 0.05)])
def test_optima_keep_to_their_budgets_and_prove_it(shape, budgets):
    p = joints(1, shape, seed=4, concentration=0.5)[0]
    p[0, 1] = 0  # a group that a client has not
    p /= p.sum()
    limit = AGLFOP.from_table(p)
    found = limit.solve(*budgets)
    assert found.converged
    ((_, _, _, duals),) = limit._compiled.values()
    assert limit._bound(budgets, duals) >= found.accuracy - 1e-9
    assert 0 <= found.bound - found.accuracy <= 1e-6
    np.testing.assert_allclose(found.joint.sum(3), p, atol=1e-12)
    assert found.joint.min() >= 0
    assert np.einsum("zstt->", found.joint) == pytest.approx(found.accuracy)
    table = found.joint.sum(2)
    assert mutual_information(table.sum(1)) == pytest.approx(found.global_, abs=1e-9)
    assert sum(map(mutual_information, table.transpose(1, 0, 2))) == pytest.approx(found.local, abs=1e-9)
    assert found.global_ <= budgets[0] + 1e-9
    assert found.local <= budgets[1] + 1e-9


def test_what_a_solver_leaves_is_moved_within_the_budgets():
    limit = AGLFOP.from_table(joints(1, (3, 4, 2), seed=4)[0])
    for budgets in ((0.001, 0.002), (0.001, math.inf), (math.inf, 0.01)):
        v = limit._repair(limit._labels, budgets)
        np.testing.assert_allclose(v.sum(1), limit._labels.sum(1), atol=1e-12)
        assert all(limit._disparity(v, which) <= budget + 1e-12 for which, budget in enumerate(budgets))


def test_the_four_way_joint_of_the_paper_has_the_same_optimum():
    """With the paper's unknowns: a joint of group, client, label and decision."""
    import cvxpy

    p = joints(1, (2, 2, 2), seed=5)[0]
    r = cvxpy.Variable((8, 2), nonneg=True)  # (z, s, t) by y
    z, s, t = np.indices((2, 2, 2)).reshape(3, -1)
    cells = [[cvxpy.sum(r[(z == a) & (s == b)], 0) for b in range(2)] for a in range(2)]
    size = p.sum(2)
    of_all = [cvxpy.rel_entr(sum(cells[a]), size[a].sum() * cvxpy.sum(r, 0)) for a in range(2)]
    by_client = [cvxpy.rel_entr(cells[a][b], size[a, b] / size[:, b].sum() * (cells[0][b] + cells[1][b]))
                 for a in range(2) for b in range(2)]  # fmt: skip
    rules = [cvxpy.sum(r, 1) == p.ravel()]
    rules += [cvxpy.sum(sum(terms)) <= 0.01 * math.log(2) for terms in (of_all, by_client)]
    kept = cvxpy.sum(cvxpy.multiply(r, np.eye(2)[t]))
    reference = cvxpy.Problem(cvxpy.Maximize(kept), rules).solve(solver="CLARABEL")
    assert AGLFOP.from_table(p).solve(0.01, 0.01).accuracy == pytest.approx(reference, abs=1e-6)


def test_the_frontier_rises_and_is_concave():
    grid = np.linspace(0, 0.06, 5)
    found = AGLFOP.from_table(joints(1, (2, 2, 2), seed=6)[0]).frontier(grid, grid)
    accuracy = found.accuracy
    assert (np.diff(accuracy, axis=0) >= -1e-7).all()
    assert (np.diff(accuracy, axis=1) >= -1e-7).all()
    for i, j in product(product(range(5), repeat=2), repeat=2):
        middle = (i[0] + j[0]) / 2, (i[1] + j[1]) / 2
        if all(m == int(m) for m in middle):
            assert accuracy[int(middle[0]), int(middle[1])] >= (accuracy[i] + accuracy[j]) / 2 - 1e-7


def test_no_classifier_beats_the_limit():
    random = np.random.default_rng(0)
    z, t, s = table_rows(joints(1, (2, 2, 2), seed=7)[0], 300)
    limit = AGLFOP(t, sensitive_features=z, client=s)
    for _ in range(15):
        y = np.where(random.random(len(t)) < 0.3 * random.random((2, 2, 2))[z, t, s], 1 - t, t)
        found = audit(z, y, s)
        assert (y == t).mean() <= limit.solve(found.global_, found.local).bound + 1e-9


def test_a_frontier_is_drawn():
    pytest.importorskip("matplotlib")
    z, y, s = table_rows(joints(1, (2, 2, 2), seed=8)[0], 200)
    frontier = AGLFOP(y, sensitive_features=z, client=s).frontier([0.0, 0.02], [0.0, 0.02])
    axes = frontier.plot(models=[("mine", audit(z, y, s))])
    assert axes.get_xlabel().startswith("global disparity")
    assert [text.get_text() for text in axes.texts] == ["mine"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: AGLFOP.from_table(REDUNDANT).solve(-0.1), "eps_global must be >= 0, got -0.1"),
        (lambda: AGLFOP.from_table(REDUNDANT).solve(0.1, float("nan")), "eps_local must be >= 0, got nan"),
        (
            lambda: AGLFOP.from_table(np.ones((2, 2))),
            r"table must have shape \(groups, clients, labels\), got \(2, 2\)",
        ),
        (lambda: AGLFOP.from_table(-REDUNDANT), "table must be finite, >= 0 and not all zero"),
        (lambda: AGLFOP([0, 1], sensitive_features=[0], client=[0, 1]), "sensitive_features must have as many rows"),
        (lambda: AGLFOP([[0, 1]], sensitive_features=[0], client=[0]), r"y_true must have shape \(n,\)"),
    ],
)
def test_bad_limits(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------------------- penalty


def batch(n=40, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, dtype=torch.float64, generator=generator)
    z, s = (torch.randint(k, (n,), generator=generator) for k in (2, 3))
    return logits, z, s


def test_the_penalty_is_what_an_audit_finds():
    logits, z, s = batch()
    soft = logits.softmax(-1)
    found = audit(z, soft, s)
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.5, 2.0)):
        value = GlobalLocalPenalty(2, 3, *weights)(soft, z, s)
        assert float(value) == pytest.approx(weights[0] * found.global_ + weights[1] * found.local, abs=1e-8)


def test_gradients_of_the_penalty():
    logits, z, s = batch(12)
    penalty = GlobalLocalPenalty(2, 3, 0.7, 1.3)
    assert torch.autograd.gradcheck(lambda x: penalty(x.softmax(-1), z, s), logits.requires_grad_())
    # groups that are not there and decisions that are certain leave gradients finite
    hard = torch.eye(3, dtype=torch.float64)[logits.argmax(-1)].requires_grad_()
    GlobalLocalPenalty(4, 5)(hard, z, s).backward()
    assert hard.grad.isfinite().all()


def test_clients_that_share_tables_see_the_penalty_of_all():
    logits, z, s = batch()
    soft = logits.softmax(-1).requires_grad_()
    penalty = GlobalLocalPenalty(2, 3)
    whole = penalty(soft, z, s)
    (expected,) = torch.autograd.grad(whole, soft)
    tables = [penalty.table(soft[s == c], z[s == c], s[s == c]) for c in range(3)]
    for c in range(3):
        own = soft[s == c].detach().requires_grad_()
        value = penalty(own, z[s == c], s[s == c], rest=sum(t for i, t in enumerate(tables) if i != c))
        assert value.item() == pytest.approx(whole.item())
        torch.testing.assert_close(torch.autograd.grad(value, own)[0], expected[s == c])


@pytest.mark.bad_input  # annotations are checked by code that dynamo does not trace
def test_half_precision_and_compile():
    logits, z, s = batch()
    penalty = GlobalLocalPenalty(2, 3)
    soft = logits.softmax(-1)
    low = penalty(soft.bfloat16(), z, s)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), penalty(soft, z, s), atol=0.01, rtol=0.1)
    torch.testing.assert_close(torch.compile(penalty, backend="eager", fullgraph=True)(soft, z, s), penalty(soft, z, s))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p, y, z, s: GlobalLocalPenalty(0), "n_groups must be >= 1, got 0"),
        (lambda p, y, z, s: GlobalLocalPenalty(2, weight_local=-1.0), "weight_local must be >= 0, got -1.0"),
        (lambda p, y, z, s: p(y, z, s + 2), "client must be <= 2, got 4|client must be >= 0 and <= 2, got 4"),
        (lambda p, y, z, s: p(y, z[:3], s), "sensitive must have as many rows as probabilities, got 3"),
        (lambda p, y, z, s: p(y * math.nan, z, s), "probabilities must be finite"),
        (lambda p, y, z, s: p(y, z, s, rest=torch.ones(2, 2)), "rest must have shape"),
    ],
)
def test_bad_batches(call, message):
    logits, z, s = batch()
    with pytest.raises(ValueError, match=message):
        call(GlobalLocalPenalty(2, 3), logits.softmax(-1), z, s)
