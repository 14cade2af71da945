"""The account on disk and the bits in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists, tuples

from hadamard.distributed import Ledger, read_ledger
from hadamard.distributed.ledger import MAX_STEPS, Arrivals


@given(lists(tuples(integers(0, 3), integers(0, 40))))
def test_arrivals_are_a_set(ids):
    arrivals, there = Arrivals(), set()
    for client, step in ids:
        assert ((client, step) in arrivals) == ((client, step) in there)
        assert arrivals.add(client, step) == ((client, step) not in there)
        there.add((client, step))
    assert len(arrivals) == len(there)
    for client in range(4):
        bits = np.unpackbits(np.frombuffer(arrivals.steps(client), np.uint8), bitorder="little")
        assert set(np.flatnonzero(bits)) == {s for c, s in there if c == client}
        assert arrivals.count(client) == bits.sum()


def test_a_ledger_goes_back_to_the_length_of_a_checkpoint(tmp_path):
    ledger = Ledger(tmp_path / "ids.0")
    ledger.append([(1, 2), (3, 4)])
    kept = ledger.sync()
    ledger.append([(5, 6)])
    with (tmp_path / "ids.0").open("ab") as file:
        file.write(b"cut")  # what a killed process left
    again = Ledger(tmp_path / "ids.0", kept)
    again.append([(7, 2**32 - 1)])
    assert read_ledger(tmp_path / "ids").tolist() == [[1, 2], [3, 4], [7, 2**32 - 1]]


def test_a_damaged_ledger_and_a_missing_one(tmp_path):
    Ledger(tmp_path / "ids.0").append([(1, 2)])
    with pytest.raises(ValueError, match="holds 1 entries, expected at least 2"):
        Ledger(tmp_path / "ids.0", 2)
    with pytest.raises(FileNotFoundError, match="there is no ledger"):
        read_ledger(tmp_path / "other")


@pytest.mark.parametrize("step", [-1, MAX_STEPS])
def test_a_step_out_of_range(step):
    with pytest.raises(ValueError, match="step must be >= 0"):
        Arrivals().add(0, step)
