"""Buffers against a model of what they may do, and their draws against the uniform distribution."""

import pickle
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import integers, sampled_from
from scipy.stats import chisquare

from hadamard.distributed import FIFO, FIRO, Reservoir

KINDS = {
    "fifo": lambda seed=0: FIFO(12, random_state=seed),
    "firo": lambda seed=0: FIRO(12, 5, random_state=seed),
    "reservoir": lambda seed=0: Reservoir(12, 5, random_state=seed),
}


class BufferMachine(RuleBasedStateMachine):
    """Puts and gets in any order; what was accepted and what came out is written down beside the buffer."""

    def __init__(self):
        super().__init__()
        self.buffer = None
        self.accepted, self.out = 0, Counter()

    @precondition(lambda self: self.buffer is None)
    @rule(kind=sampled_from(sorted(KINDS)), seed=integers(0, 9))
    def begin(self, kind, seed):
        self.kind, self.buffer = kind, KINDS[kind](seed)

    @precondition(lambda self: self.buffer is not None and not self.buffer.closed)
    @rule(n=integers(1, 8))
    def put(self, n):
        for _ in range(n):
            unseen, size = self.buffer.unseen, len(self.buffer)
            accepted = self.buffer.put(self.accepted)
            assert accepted == (unseen < 12 if self.kind == "reservoir" else size < 12)
            self.accepted += accepted

    @precondition(lambda self: self.buffer is not None)
    @rule(n=integers(1, 6))
    def get(self, n):
        size, closed = len(self.buffer), self.buffer.closed
        gate = {"fifo": size >= n, "firo": size - n >= 5, "reservoir": size >= 5}[self.kind]
        batch = self.buffer.get(n)
        assert (batch is not None) == (size > 0 if closed else gate)
        if batch is None:
            return
        assert len(batch) == (min(n, size) if closed else n)
        assert set(batch) <= set(range(self.accepted))
        if self.kind == "fifo":
            assert batch == list(range(sum(self.out.values()), sum(self.out.values()) + len(batch)))
        if closed or self.kind != "reservoir":
            assert len(self.buffer) == size - len(batch)
        self.out.update(batch)

    @precondition(lambda self: self.buffer is not None)
    @rule()
    def close(self):
        self.buffer.close()

    @precondition(lambda self: self.buffer is not None)
    @rule()
    def resume(self):
        self.buffer = pickle.loads(pickle.dumps(self.buffer))

    @invariant()
    def nothing_is_lost(self):
        if self.buffer is None:
            return
        assert len(self.buffer) <= 12
        assert self.accepted - len(self.out) == self.buffer.unseen  # what never came out is still there
        if self.kind != "reservoir":
            assert max(self.out.values(), default=1) == 1

    def teardown(self):
        if self.buffer is not None:
            self.buffer.close()
            while not self.buffer.exhausted:
                self.get(5)
            assert set(self.out) == set(range(self.accepted))


BufferMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBuffers = BufferMachine.TestCase


@pytest.mark.parametrize("kind", ["firo", "reservoir"])
def test_draws_are_uniform(kind):
    first = Counter()
    for seed in range(2400):
        buffer = KINDS[kind](seed)
        for sample in range(12):
            buffer.put(sample)
        first.update(buffer.get(1))
    assert chisquare([first[sample] for sample in range(12)]).pvalue > 1e-3


def test_the_evicted_sample_is_a_uniform_one_of_those_that_were_drawn():
    gone = Counter()
    for seed in range(1200):
        buffer = Reservoir(4, 1, random_state=seed)
        for sample in range(3):
            buffer.put(sample)
        while buffer.unseen:
            buffer.get(1)
        buffer.put(3)  # stays: not drawn
        buffer.put(4)
        buffer.close()
        gone.update({0, 1, 2, 3, 4} - set(buffer.get(4)))
    assert gone[3] == gone[4] == 0
    assert chisquare([gone[sample] for sample in range(3)]).pvalue > 1e-3


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_pickled_buffer_goes_on_with_the_same_draws(kind):
    buffer = KINDS[kind]()
    for sample in range(12):
        buffer.put(sample)
    buffer.get(2)
    copy = pickle.loads(pickle.dumps(buffer))
    assert [buffer.get(2), buffer.get(1)] == [copy.get(2), copy.get(1)]


def test_ranks_draw_differently_and_start_empty():
    buffer = Reservoir(50, 1)
    buffer.put(0)
    draws = []
    for rank in (0, 1, 1):
        fresh = buffer.fresh(rank)
        assert (len(fresh), repr(fresh)) == (0, "Reservoir(capacity=50, threshold=1, random_state=0)")
        for sample in range(50):
            fresh.put(sample)
        draws.append(fresh.get(20))
    assert draws[0] != draws[1] == draws[2]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FIFO(0), "capacity must be >= 1, got 0"),
        (lambda: FIRO(10, 10), "threshold must be >= 0 and < 10, got 10"),
        (lambda: Reservoir(10, 0), "threshold must be >= 1 and <= 10, got 0"),
        (lambda: Reservoir(10, 11), "threshold must be >= 1 and <= 10, got 11"),
        (lambda: FIFO(4).check_batch(5), "batch_size must be at most the buffer's capacity of 4, got 5"),
        (lambda: FIRO(8, 5).check_batch(4), "batch_size and threshold must fit into .* of 8 together, got 4 and 5"),
        (lambda: FIFO(4).get(0), "n must be >= 1, got 0"),
        (lambda: [b := FIFO(4), b.close(), b.put(1)], "put after close"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
