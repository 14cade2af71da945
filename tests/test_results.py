"""Results are frozen, say why they fell short, pickle and print."""

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from hadamard.results import Certificate, Solution, warn_short


def solution(**changes):
    return Solution(**{"value": 1.0, "iterations": 3, "residual": 0.5, "converged": True, **changes})


def test_fields_are_read_only():
    with pytest.raises(FrozenInstanceError):
        solution().value = 2.0
    with pytest.raises(FrozenInstanceError):
        Certificate(value=1, bound=2, verified=True).bound = 3


@pytest.mark.parametrize(
    "change",
    [
        lambda extras: extras.update(a=2),
        lambda extras: extras.pop("a"),
        lambda extras: extras.clear(),
        lambda extras: extras.popitem(),
        lambda extras: extras.setdefault("b", 1),
        lambda extras: extras.__setitem__("a", 2),
        lambda extras: extras.__delitem__("a"),
        lambda extras: extras.__ior__({"a": 2}),
    ],
)
def test_extras_are_read_only(change):
    found = solution(extras={"a": 1})
    with pytest.raises(TypeError, match="results are read-only"):
        change(found.extras)
    assert found.extras == {"a": 1}


def test_extras_are_a_copy():
    given = {"a": 1}
    found = solution(extras=given)
    given["a"] = 2
    assert found.extras["a"] == 1


def test_pickle_and_copies_stay_read_only():
    found = solution(value=torch.ones(2), extras={"a": torch.ones(1)})
    for twin in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found), copy.copy(found)):
        assert torch.equal(twin.value, found.value)
        with pytest.raises(TypeError, match="results are read-only"):
            twin.extras["b"] = 1


def test_subclasses_add_fields():
    @dataclass(frozen=True, kw_only=True)
    class Plan(Solution):
        plan: str

    assert Plan(plan="P", value=0, iterations=1, residual=0.0, converged=True).extras == {}


def test_falling_short_needs_a_message():
    with pytest.raises(ValueError, match="message must say why a solver that did not converge stopped"):
        solution(converged=False)
    assert solution(converged=False, message="max_iter").message == "max_iter"
    with pytest.raises(ValueError, match="reason must say why a certificate was not verified"):
        Certificate(value=-1, bound=0, verified=False)
    assert Certificate(value=-1, bound=0, verified=False, reason="abstained").reason == "abstained"


def test_repr():
    assert repr(solution()).startswith("Solution(value=1.0, iterations=3, residual=0.5, converged=True")


@pytest.mark.bad_input  # the checks of annotations stand on the stack too
def test_warning_points_at_the_caller_of_the_solver():
    def solver():
        warn_short("stopped")

    with pytest.warns(ConvergenceWarning, match="stopped") as caught:
        solver()
    assert caught[0].filename == __file__
