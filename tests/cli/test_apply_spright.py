"""``hadamard apply spright``: tables and models in, interactions out, one line for what is wrong with a file."""

import csv
import pickle

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from typer import Typer
from typer.testing import CliRunner

from hadamard.cli.apply.spright import apply

BITS = (np.arange(64)[:, None] >> np.arange(6)) & 1
VALUES = 2 + 3 * (1 - 2 * BITS[:, 0]) * (1 - 2 * BITS[:, 4]) - 0.5 * (1 - 2 * BITS[:, 5])


@pytest.fixture
def run(tmp_path):
    """Run the command on a file of this folder; give its result and what it wrote."""
    app = Typer()
    app.command()(apply)

    def go(source, *options):
        result = CliRunner().invoke(app, [str(tmp_path / source), "-o", str(tmp_path / "out.csv"), *map(str, options)])
        written = tmp_path / "out.csv"
        rows = list(csv.reader(written.open())) if written.exists() else []
        return result, {name: float(value) for value, _, name in rows[1:]}

    return go


def bits_and_values(order):
    lines = [",".join([*map(str, BITS[i]), f"{VALUES[i]}"]) for i in order]
    return "a,b,c,d,e,f,value\n" + "\n".join(lines) + "\n"


def test_a_table_of_values(run, tmp_path):
    (tmp_path / "in.csv").write_text("\n".join(map(str, VALUES)))
    result, found = run("in.csv")
    assert result.exit_code == 0, result.exception
    assert found == pytest.approx({"x0 * x4": 3, "(constant)": 2, "x5": -0.5})
    assert "3 interactions from" in result.output


def test_rows_of_bits_in_any_order(run, tmp_path):
    (tmp_path / "in.csv").write_text(bits_and_values(np.random.default_rng(0).permutation(64)))
    assert run("in.csv")[1] == pytest.approx({"a * e": 3, "(constant)": 2, "f": -0.5})


def test_noisy_values(run, tmp_path):
    n = np.arange(4096)
    clean = 1.0 - 2 * ((n >> 3) & 1)
    noisy = clean + 0.1 * np.random.default_rng(0).standard_normal(4096)
    (tmp_path / "in.csv").write_text("value\n" + "\n".join(map(str, noisy)))
    result, found = run("in.csv", "--noise-std", 0.1, "--sparsity", 16)
    assert result.exit_code == 0, result.exception
    assert found == pytest.approx({"x3": 1}, abs=0.02)


def test_what_is_not_sparse_exits_with_1(run, tmp_path):
    (tmp_path / "in.csv").write_text("\n".join(map(str, np.random.default_rng(0).standard_normal(1024))))
    result, _ = run("in.csv", "--sparsity", 2)
    assert result.exit_code == 1
    assert "not all of it was found" in result.output
    assert "not sparse enough" in result.output


@pytest.fixture(scope="module")
def patients():
    X, y = load_breast_cancer(return_X_y=True)
    return X, y


@pytest.mark.parametrize(
    ("ending", "options"), [(".skops", ["--trust", "sklearn.tree._tree.Tree"]), (".pkl", ["--allow-pickle"])]
)
def test_a_tree_is_read_out_between_two_patients(run, tmp_path, patients, ending, options):
    """Setting each feature to the first's or the second's, what comes out is the model at all mixtures of them."""
    X, y = patients
    model = DecisionTreeRegressor(max_depth=3, random_state=0).fit(X, y)
    if ending == ".skops":
        skops = pytest.importorskip("skops.io")
        skops.dump(model, tmp_path / "model.skops")
    else:
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    two = X[[np.argmin(y), np.argmax(y)]]
    np.savetxt(tmp_path / "two.csv", two, delimiter=",", fmt="%.17g")
    result, found = run(f"model{ending}", "--points", tmp_path / "two.csv", *options)
    assert result.exit_code == 0, result.exception
    bits = np.random.default_rng(1).integers(0, 2, (200, 30))
    signs = {f"x{q}": 1 - 2 * bits[:, q] for q in range(30)} | {"(constant)": np.ones(200)}
    summed = sum(value * np.prod([signs[v] for v in name.split(" * ")], 0) for name, value in found.items())
    np.testing.assert_allclose(summed, model.predict(np.where(bits, two[1], two[0])), atol=1e-6)


def test_a_classifier_gives_its_probability_under_its_features_names(run, tmp_path):
    frame = pytest.importorskip("pandas").DataFrame(BITS, columns=list("abcdef"))
    model = DecisionTreeClassifier().fit(frame, BITS[:, 1] & BITS[:, 2])
    (tmp_path / "model.joblib").write_bytes(pickle.dumps(model))
    found = run("model.joblib", "--allow-pickle")[1]
    assert found == pytest.approx({"(constant)": 0.25, "b": -0.25, "c": -0.25, "b * c": 0.25})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "the file is empty"),
        ("value\n", "holds no values"),
        ("1\n2\n3\n", "expected 2^n values, got 3; is the file truncated?"),
        ("1\n", "expected 2^n values, got 1"),
        ("a,b,v\n0,0,1\n0,1,2\n1,0,3\n", "expected all 2^2 = 4 rows, got 3; is the file truncated?"),
        ("a,b,v\n0,0,1\n0,1,2\n1,0,3\n1\n", "line 5: expected 3 columns, got 1; is the file truncated?"),
        ("a,b,v\n0,0,1\n0,1,2\n1,0,3\n1,0,3\n", "some bits stand in it twice"),
        ("a,b,v\n0,0,1\n0,1,2\n1,0,3\n1,2,3\n", "every column but the last must hold zeros and ones"),
        ("1\nnan\n", "line 2: a value must be a finite number, got 'nan'"),
        ("v\n1\nmany\n", "line 3: a value must be a finite number, got 'many'"),
        ('1\n"2\n', "truncated"),
        (b"\xff\xfe\x00", "is not a text file in UTF-8"),
    ],
)
def test_bad_tables(run, tmp_path, text, message):
    if text is not None:
        (tmp_path / "in.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    result, _ = run("in.csv")
    assert isinstance(result.exception, (ValueError, FileNotFoundError))
    assert message in str(result.exception)
    assert not (tmp_path / "out.csv").exists()


def test_bad_models(run, tmp_path, patients):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(LinearRegression()))
    (tmp_path / "three.pkl").write_bytes(pickle.dumps(DecisionTreeClassifier().fit(BITS, BITS[:, 0] + BITS[:, 1])))
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps(LinearRegression().fit(BITS, VALUES))[:-40])
    (tmp_path / "fitted.pkl").write_bytes(pickle.dumps(LinearRegression().fit(BITS, VALUES)))
    (tmp_path / "points.csv").write_text("1,2\n3,4\n")
    (tmp_path / "table.csv").write_text("1\n2\n")
    for source, options, message in [
        ("model.pkl", [], "a pickle can run any program when it is read"),
        ("model.pkl", ["--allow-pickle"], "expected a fitted scikit-learn model, got LinearRegression"),
        ("three.pkl", ["--allow-pickle"], "a classifier must have two classes"),
        ("cut.pkl", ["--allow-pickle"], "cannot be read, it may be damaged or truncated"),
        ("fitted.pkl", ["--allow-pickle", "--points", tmp_path / "points.csv"], "expected 2 rows of 6 features"),
        ("table.csv", ["--points", tmp_path / "points.csv"], "--points goes with a model"),
        ("table.csv", ["--sparsity", 0], "--sparsity must be >= 1, got 0"),
        ("table.csv", ["--noise-std", -1], "--noise-std must be >= 0, got -1.0"),
    ]:
        result, _ = run(source, *options)
        assert isinstance(result.exception, ValueError), source
        assert message in str(result.exception)
        assert not (tmp_path / "out.csv").exists()


class Guess(LinearRegression):
    """A type of one's own."""


def test_skops_files_that_are_cut_or_hold_what_is_not_known(run, tmp_path):
    skops = pytest.importorskip("skops.io")
    skops.dump(Guess().fit(BITS, VALUES), tmp_path / "own.skops")
    name = f"{Guess.__module__}.{Guess.__qualname__}"
    assert f"--trust {name}" in str(run("own.skops")[0].exception)
    assert run("own.skops", "--trust", name)[0].exit_code == 0
    (tmp_path / "cut.skops").write_bytes((tmp_path / "own.skops").read_bytes()[:200])
    assert "cannot be read, it may be damaged or truncated" in str(run("cut.skops")[0].exception)
