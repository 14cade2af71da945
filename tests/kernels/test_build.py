"""Loading the compiled kernels, and what happens where there are none."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from hadamard.kernels import available, build, instruction_set, using
from hadamard.transforms import softmax

SOURCES = Path(build.__file__).parent


@pytest.fixture
def no_library(monkeypatch):
    """As if no compiler had been there."""
    monkeypatch.setattr(build, "_built", lambda folder: None)
    build.library.cache_clear()
    yield
    build.library.cache_clear()


@pytest.mark.usefixtures("no_library")
def test_without_library_pytorch_runs_and_one_warning_says_so():
    x = torch.randn(2**17)
    with pytest.warns(RuntimeWarning, match="compiled kernels were not built .* plain PyTorch runs instead") as caught:
        first = softmax(x, algorithm="two_pass")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = softmax(x, algorithm="two_pass")
        assert instruction_set() == "torch"
        assert not available()
    assert torch.equal(first, torch.softmax(x, 0))
    assert torch.equal(second, first)


def test_newest_library_is_loaded(tmp_path):
    assert build._built(tmp_path) is None
    old, new = tmp_path / "_kernels.so", tmp_path / "_kernels.cpython-311-x86_64-linux-gnu.so"
    for age, path in ((0, new), (-100, old)):
        path.touch()
        stamp = path.stat().st_mtime + age
        os.utime(path, (stamp, stamp))
    assert build._built(tmp_path) == new


def test_cache_sizes_are_read(tmp_path):
    assert build._cache_size(tmp_path) == 32 * 2**20
    for i, text in enumerate(("32K", "512K", "16M\n", "unknown")):
        (tmp_path / f"index{i}").mkdir()
        (tmp_path / f"index{i}" / "size").write_text(text)
    assert build._cache_size(tmp_path) == 16 * 2**20


def test_using_is_undone_after_an_error():
    before = instruction_set()
    with pytest.raises(KeyError), using("torch"):
        {}[available()]
    assert instruction_set() == before


@pytest.mark.bad_input
def test_unknown_path():
    with (
        pytest.raises(ValueError, match="path must be one of 'auto', 'portable', 'torch', got 'sse'"),
        using("sse"),
    ):
        pass


def test_sources_never_ask_for_fast_math():
    """-ffast-math removes the NaN and infinity logic."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    for path in (project, *SOURCES.glob("*.cpp"), *SOURCES.glob("*.hpp")):
        assert "fast-math" not in path.read_text(), path.name


def test_first_calls_do_not_load_the_compiler_of_torch():
    """Dynamo and sympy take seconds to import, and nothing here needs them."""
    code = """
import sys, torch
from hadamard.spectral import fwht
from hadamard.transforms import gaunt_power
from hadamard.transport import sparsity_constrained_ot
fwht(torch.ones(4))
sparsity_constrained_ot(None, None, torch.eye(4), 0.1, 2)
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
