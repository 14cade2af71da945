"""Every row of the catalog is held against the code."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from hadamard import catalog
from hadamard.claims import engine

ROOT = Path(__file__).parents[1]
KEYS = list(catalog.methods())


@pytest.mark.parametrize("key", KEYS)
def test_row_agrees_with_the_code(key):
    row = catalog.method(key)
    for name in row.api:
        assert callable(catalog.resolve(name)), name
    for path in (f"src/hadamard/{row.family}/{key}.py", f"src/hadamard/claims/{row.family}/{key}.py"):
        assert (ROOT / path).exists(), path
    assert (ROOT / f"tests/{row.family}/test_{key}.py").exists()
    claim = engine.load(key)
    assert claim.key == key
    assert {"quick", "full"} <= set(claim.sizes)
    assert {"method", "baseline"} <= {contender.role for contender in claim.contenders}
    if row.apply:
        assert callable(import_module(f"hadamard.cli.apply.{key}").apply)
    if row.train:
        assert callable(import_module(f"hadamard.claims.{row.family}.{key}").train)


@pytest.mark.parametrize("key", KEYS)
def test_a_bound_is_the_quoted_one_or_says_why_not(key):
    """The number in a bar stands in the words that it quotes, unless the bar says that it was weakened.

    What words say without a number is 0 (never, none), 1 or 100 % (at most the other's, always) or rounding (exactly).
    """
    for bar in engine.load(key).bars:
        words = bar.original_bound.replace("−", "-").replace("±", "+-")
        quoted = {float(x) for x in re.findall(r"\d*\.?\d+(?:e[-+]?\d+)?", words)}
        quoted |= {int(a) / int(b) for a, b in re.findall(r"(\d+)/(\d+)", words) if int(b)}
        quoted |= {0.5} if "half" in words else set()
        quoted = {0, 1, 100} | {y for x in quoted for y in (x, 100 * x, x / 100, 1 + x, 1 - x)}
        bound = abs(bar.bound)
        there = bound <= 1e-12 or any(bound == pytest.approx(x) for x in quoted)
        assert there or bar.weakened, (bar.text, bar.original_bound)


@pytest.mark.parametrize("key", KEYS)
def test_usage_runs(key):
    exec(compile(catalog.method(key).usage, f"usage of {key}", "exec"), {})


@pytest.mark.parametrize("key", KEYS)
def test_bibtex_names_every_author(key):
    row = catalog.method(key)
    entry = row.bibtex()
    assert entry.startswith("@inproceedings{")
    assert entry.count("{") == entry.count("}")
    assert all(name in entry for name in row.authors.split(" and "))
    assert row.author_line.count(",") == row.authors.count(" and ")


def test_methods_without_a_row_have_no_file():
    """Only methods that work have a row, and what works has one."""
    files = (ROOT / "src/hadamard/claims").glob("*/*.py")
    assert {p.stem for p in files if "\nclaim = Claim(" in p.read_text(encoding="utf-8")} == set(KEYS)


def test_select_by_family_and_by_key():
    assert [m.key for m in catalog.select([])] == KEYS
    first = catalog.methods()[KEYS[0]]
    assert first in catalog.select([first.family])
    assert catalog.select([first.key]) == [first]


def test_an_unknown_key_names_its_neighbours():
    with pytest.raises(ValueError, match="unknown method 'sinkhorn_newton'; did you mean sinkhorn_newton_sparse"):
        catalog.method("sinkhorn_newton")
    with pytest.raises(ValueError, match=r"unknown method or family 'zzz'; see 'hadamard list'"):
        catalog.select(["zzz"])


def test_readme_shows_the_catalog():
    assert catalog.markdown() in (ROOT / "README.md").read_text(encoding="utf-8"), "run 'make catalog'"
