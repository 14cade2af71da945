from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator
from typer.testing import CliRunner

from hadamard.learning import LowRank, RobustALS, complete
from hadamard.learning._regressions import conjugate, exact, observe, sketched

SHAPE = (40, 30)


def low_rank(n=40, m=30, k=2, p=0.5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    M = torch.randn(n, k, generator=generator, dtype=dtype) @ torch.randn(k, m, generator=generator, dtype=dtype)
    indices = (torch.rand(n, m, generator=generator) < p).nonzero().T
    return M, indices, M[indices[0], indices[1]]


def regression(n=20, m=60, k=4, seed=0, noise=1.0):
    """A pattern, a design and values that no X fits."""
    _, indices, values = low_rank(n, m, k, 0.6, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    seen = observe(indices, values + noise * torch.randn(values.shape, generator=generator, dtype=values.dtype), (n, m))
    return seen, torch.randn(m, k, generator=generator, dtype=values.dtype)


@pytest.fixture(scope="module")
def noisy():
    return regression()


def lstsq(seen, design, ridge=0.0):
    """Row by row with NumPy."""
    X = np.zeros((seen.rows.shape[0], design.shape[1]))
    for i in range(len(X)):
        at = (seen.rows.rows == i).numpy()
        A, b = design.numpy()[seen.rows.cols.numpy()[at]], seen.values.numpy()[at]
        A, b = np.vstack([A, ridge**0.5 * np.eye(A.shape[1])]), np.append(b, np.zeros(A.shape[1]))
        X[i] = np.linalg.lstsq(A, b, rcond=None)[0]
    return torch.from_numpy(X)


@pytest.mark.parametrize("reg", [0.0, 0.7])
@pytest.mark.parametrize("solver", ["cg", "sketch", "cholesky"])
def test_each_regression_agrees_with_least_squares(noisy, solver, reg, generator):
    seen, design = noisy
    ridge, zero = design.new_full((20,), reg), design.new_zeros(20, 4)
    if solver == "cholesky":
        X, residual = exact(seen.rows, design, zero, seen.values, ridge)
    else:
        factors = sketched(seen.rows, design, ridge, generator) if solver == "sketch" else None
        X, residual = conjugate(seen.rows, design, zero, seen.values, ridge, 12, factors)
    torch.testing.assert_close(X, lstsq(seen, design, reg), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(residual, seen.values - seen.rows.sample(X, design), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(30, 20), (70_000, 40_000)], ids=["32 bits", "64 bits"])
def test_entries_are_sorted_by_rows_and_by_columns(shape, generator):
    indices = torch.stack([torch.randperm(size, generator=generator)[:20] for size in shape])
    values = torch.randn(20, generator=generator, dtype=torch.float64)
    seen = observe(indices, values, shape)
    for pattern, order, index in ((seen.rows, indices[0].argsort(), 0), (seen.cols, indices[1].argsort(), 1)):
        assert torch.equal(pattern.rows, indices[index, order])
        assert torch.equal(pattern.cols, indices[1 - index, order])
        assert torch.equal((seen.values if index == 0 else seen.values[seen.to_cols]), values[order])
        sums = pattern.sum(values[order])
        assert torch.equal(pattern.each(sums), values[order])
        assert int(sums.count_nonzero()) == 20


def test_rows_with_fewer_entries_than_factors_get_the_shortest_solution():
    seen = observe(torch.tensor([[0, 0, 1], [0, 1, 2]]), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), (3, 3))
    design = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    X, _ = exact(seen.rows, design, design.new_zeros(3, 3), seen.values, design.new_zeros(3))
    torch.testing.assert_close(X[:2], lstsq(seen, design)[:2], rtol=1e-8, atol=1e-8)
    assert (X[2] == 0).all()


def test_every_inner_step_lowers_the_objective(noisy):
    seen, design = noisy
    ridge, start = design.new_full((20,), 0.3), torch.ones(20, 4, dtype=torch.float64)

    def objective(steps):
        residual = seen.values - seen.rows.sample(start, design)
        X, residual = conjugate(seen.rows, design, start, residual, ridge, steps)
        return float(residual.square().sum() + 0.3 * X.square().sum())

    values = [objective(s) for s in range(5)]
    assert all(b < a for a, b in pairwise(values))


def test_the_sketch_conditions_tall_blocks(generator):
    k, n = 8, 400
    design = torch.randn(n, k, generator=generator, dtype=torch.float64) * torch.logspace(0, 3, k, dtype=torch.float64)
    seen = observe(torch.stack([torch.zeros(n).long(), torch.arange(n)]), torch.ones(n, dtype=torch.float64), (1, n))
    conditions = []
    for _ in range(5):
        L = sketched(seen.rows, design, design.new_zeros(1), generator)[0]
        conditions.append(float(torch.linalg.cond(torch.linalg.solve_triangular(L, design.mT, upper=False))))
    assert max(conditions) <= 3 < float(torch.linalg.cond(design))


@pytest.mark.parametrize("solver", ["auto", "cg", "sketch", "cholesky"])
def test_exact_rank_is_recovered(solver):
    M, indices, values = low_rank()
    found = complete(indices, values, SHAPE, 2, solver=solver, max_iter=200, tol=1e-10)
    assert found.converged
    assert float((found.to_dense() - M).norm() / M.norm()) < 1e-8
    torch.testing.assert_close(found.V.mT @ found.V, torch.eye(2, dtype=M.dtype))
    torch.testing.assert_close(found.entries(indices), values)
    assert found.value == pytest.approx(float((found.entries(indices) - values).square().mean().sqrt()), abs=1e-9)


def test_a_matrix_that_is_wholly_seen_gives_its_truncated_svd():
    M = torch.randn(20, 15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    indices = torch.ones(20, 15).nonzero().T
    found = complete(indices, M.flatten(), (20, 15), 3, solver="cg", max_iter=500, tol=1e-14)
    U, s, Vh = torch.linalg.svd(M)
    torch.testing.assert_close(found.to_dense(), U[:, :3] * s[:3] @ Vh[:3], rtol=1e-5, atol=1e-5)


def test_permuting_the_matrix_permutes_the_result():
    _, indices, values = low_rank()
    i, j = torch.randperm(40), torch.randperm(30)
    options = {"solver": "cg", "max_iter": 100, "tol": 1e-10}
    there = complete(torch.stack([i[indices[0]], j[indices[1]]]), values, SHAPE, 2, **options).to_dense()
    torch.testing.assert_close(there[i][:, j], complete(indices, values, SHAPE, 2, **options).to_dense())


def test_offsets_that_explain_everything_are_found():
    b, c = torch.arange(40.0, dtype=torch.float64), torch.arange(30.0, dtype=torch.float64)
    M, (_, indices, _) = 3 + b[:, None] / 40 + c / 10, low_rank()
    found = complete(indices, M[indices[0], indices[1]], SHAPE, 1, biases=True, reg=1e-3, max_iter=300, tol=1e-3)
    torch.testing.assert_close(found.to_dense(), M, rtol=0, atol=2e-2)
    assert (found.U[:, -1] == 1).all()
    assert (found.V[:, 0] == 1).all()


def test_going_on_from_a_result_equals_going_through():
    _, indices, values = low_rank()
    options = {"biases": True, "reg": 0.1, "solver": "cholesky", "tol": 0.0}
    with pytest.warns(ConvergenceWarning, match="stopped after"):
        whole = complete(indices, values, SHAPE, 2, max_iter=4, **options)
    with pytest.warns(ConvergenceWarning):
        half = complete(indices, values, SHAPE, 2, max_iter=2, **options)
    with pytest.warns(ConvergenceWarning):
        rest = complete(indices, values, SHAPE, 2, max_iter=2, init=half, **options)
    torch.testing.assert_close(rest.to_dense(), whole.to_dense())
    assert not whole.converged
    assert len(whole.extras["rmse_history"]) == 4


@pytest.mark.parametrize("options", [{"weighted": True, "reg": 0.01}, {"clip": 3.0}, {"init": "random"}])
def test_options_still_recover(options):
    M, indices, values = low_rank(dtype=torch.float32, p=0.6)
    found = complete(indices, values, SHAPE, 2, max_iter=300, tol=1e-5, **options)
    assert found.U.dtype == torch.float32
    assert float((found.to_dense() - M).norm() / M.norm()) < 0.05


def test_weighted_ridge_is_the_ridge_times_the_count():
    _, indices, values = low_rank(p=2.0)
    plain = complete(indices, values, SHAPE, 2, reg=0.3 * 30, max_iter=300, tol=1e-6, solver="cholesky")
    weighted = complete(indices, values, SHAPE, 2, reg=0.3, weighted=True, max_iter=300, tol=1e-6, solver="cholesky")
    # rows have 30 entries and columns 40: the products of the two ridges differ by 4 / 3
    assert weighted.value > plain.value


@pytest.mark.parametrize(
    "estimator", [RobustALS(1), RobustALS(1, solver="cg"), RobustALS(1, biases=True, reg=0.1)], ids=str
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.bad_input
def test_scikit_learn_accepts_the_estimator(estimator):
    results = check_estimator(estimator, expected_failed_checks={}, on_skip=None)
    assert {r["status"] for r in results} <= {"passed", "skipped"}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_sparse_and_dense_input_agree_and_stored_zeros_count():
    M, indices, _ = low_rank()
    M = M.numpy().copy()
    M[indices[0, 0], indices[1, 0]] = 0.0
    dense = np.full(SHAPE, np.nan)
    dense[tuple(indices)] = M[tuple(indices)]
    sparse = scipy.sparse.coo_array((M[tuple(indices)], tuple(indices.numpy())), shape=SHAPE)
    one, two = (RobustALS(2, reg=0.1, random_state=0).fit(X) for X in (dense, sparse.tocsr()))
    np.testing.assert_allclose(one.complete(dense), two.complete(sparse), atol=1e-10)
    assert sparse.tocsr().nnz == indices.shape[1]


def test_rows_are_folded_in_and_observed_entries_kept():
    M, indices, values = low_rank(60)
    X = np.full((60, 30), np.nan)
    X[tuple(indices)] = values
    model = RobustALS(2, max_iter=200, tol=1e-10, random_state=0).fit(X[:40])
    filled = model.complete(X[40:])
    np.testing.assert_allclose(filled, M[40:], atol=1e-6)
    np.testing.assert_array_equal(filled[~np.isnan(X[40:])], X[40:][~np.isnan(X[40:])])
    np.testing.assert_allclose(model.transform(X[:40]), model.U_, atol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_empty_rows_and_too_few_entries_are_said():
    indices, values = torch.tensor([[0, 1], [0, 1]]), torch.tensor([1.0, 2.0])
    with pytest.warns(UserWarning, match=r"1 row\(s\) without observations"):
        found = complete(indices, values, (3, 2), 1, reg=0.1)
    assert (found.to_dense()[2] == 0).all()
    with pytest.warns(UserWarning, match="under-determined: 2 observations for 3 free numbers"):
        complete(indices, values, (2, 2), 1)


I, V = torch.tensor([[0, 1, 1], [0, 0, 1]]), torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"indices": torch.tensor([[0, 1, 1], [0, 0, 0]])}, ValueError, "observed once, got 1 repeated, the first at"),
        ({"indices": torch.tensor([[0, 1, 2], [0, 0, 1]])}, ValueError, "indices must lie in the shape .* rows 0 to 2"),
        ({"indices": I.float()}, TypeError, "indices must have an integer dtype"),
        ({"indices": I[:, :2]}, ValueError, "values must have shape"),
        ({"values": torch.tensor([1, 2, 3])}, TypeError, "values must have a floating dtype"),
        ({"values": torch.tensor([1.0, float("inf"), 3.0])}, ValueError, "values must be finite"),
        ({"indices": I[:, :0], "values": V[:0]}, ValueError, "must not be empty"),
        ({"shape": (0, 2)}, ValueError, "shape must be two positive integers"),
        ({"rank": 3}, ValueError, "rank must be >= 1 and <= 2, got 3"),
        ({"solver": "lu"}, ValueError, "solver must be one of"),
        ({"reg": -1.0}, ValueError, "reg must be >= 0"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1"),
        ({"inner_steps": 1.5}, TypeError, "inner_steps must be an integer"),
        ({"init": "zeros"}, ValueError, "init must be one of"),
        ({"clip": 0.0}, ValueError, "clip must be > 0"),
    ],
)
def test_bad_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        complete(**{"indices": I, "values": V, "shape": (2, 2), "rank": 1, **changes})


@pytest.mark.bad_input
def test_bad_tables():
    X = np.ones((4, 3))
    for bad, message in (
        (np.full((4, 3), np.nan), "at least one observed entry"),
        (np.where(X > 0, np.inf, X), "infinity"),
        (scipy.sparse.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(4, 3)), "observed once"),
    ):
        with pytest.raises(ValueError, match=message):
            RobustALS(1).fit(bad)
    with pytest.raises(ValueError, match="n_components must be >= 1 and <= min"):
        RobustALS(4).fit(X)
    start = LowRank(value=0.0, iterations=1, residual=0.0, converged=True, U=torch.ones(2, 2), V=torch.ones(2, 2))
    with pytest.raises(ValueError, match="init must have factors of shapes"):
        complete(I, V, (2, 2), 1, init=start, reg=1.0)


def run_apply(*args):
    import typer

    from hadamard.cli.apply.matrix_completion import apply

    app = typer.Typer()
    app.command()(apply)
    return CliRunner().invoke(app, [str(a) for a in args])


def test_ratings_file_to_predictions_file(tmp_path):
    rows = [f"u{u},i{i},{3 + (u % 2) - (i % 3)}" for u in range(8) for i in range(9) if (u + i) % 4]
    (tmp_path / "in.csv").write_text("user,item,rating\n" + "\n".join(rows) + "\n")
    result = run_apply(tmp_path / "in.csv", "--out", tmp_path / "out.csv", "--rank", 2, "--reg", 0.1, "--sweeps", 100)
    assert result.exit_code == 0, result.exception
    header, *lines = (tmp_path / "out.csv").read_text().split()
    assert header == "user,item,rating"
    assert len(lines) == 72 - len(rows)
    for line in lines:
        u, i, r = line.split(",")
        assert float(r) == pytest.approx(3 + int(u[1:]) % 2 - int(i[1:]) % 3, abs=0.35)
    (tmp_path / "pairs.csv").write_text("user,item\nu0,i0\nnew,i1\n")
    assert run_apply(tmp_path / "in.csv", "--out", tmp_path / "o.csv", "--pairs", tmp_path / "pairs.csv").exit_code == 0
    assert [line.rsplit(",", 1)[0] for line in (tmp_path / "o.csv").read_text().split()[1:]] == ["u0,i0", "new,i1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "the file is empty"),
        ("a,b,c\n1,2,3\n", "the header must be user,item,rating, got a,b,c"),
        ("user,item,rating\n1,2,3\n1,3\n", "line 3: expected 3 columns, got 2; is the file truncated"),
        ("user,item,rating\n1,2,3\n1,2,4\n", "line 3: user 1 and item 2 stand in the file twice"),
        ("user,item,rating\n1,2,good\n", "line 2: rating must be a finite number, got 'good'"),
        ("user,item,rating\n1,,3\n", "line 2: user and item must not be empty"),
        ("user,item,rating\n1,2,\n", "holds no rating"),
        ('user,item,rating\n1,"2,3\n', "truncated"),
    ],
)
def test_bad_files(tmp_path, text, message):
    if text is not None:
        (tmp_path / "in.csv").write_text(text)
    result = run_apply(tmp_path / "in.csv", "--out", tmp_path / "out.csv")
    assert isinstance(result.exception, (ValueError, FileNotFoundError))
    assert message in str(result.exception)
    assert not (tmp_path / "out.csv").exists()
