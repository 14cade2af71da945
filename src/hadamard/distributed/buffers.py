"""Memory buffers between producers and a trainer: first in first out, first in random out, and the reservoir.

Solvers produce time steps in order and from few simulations at once, so that a network trained on them as they come
forgets what it saw before. A bounded buffer mixes them. The three of [1]_ and [2]_ differ in what :meth:`Buffer.get`
takes:

* :class:`FIFO` takes the oldest: each sample once, in the order of arrival.
* :class:`FIRO` takes any, uniformly: each sample once, and more than ``threshold`` are kept back to be mixed with.
* :class:`Reservoir` draws any, uniformly and with replacement, and keeps it: samples repeat while the producers are
  slow, so that the trainer never waits, and what makes room for a new sample is one that was trained on already.

A full buffer refuses a sample; asking again later is the caller's back-pressure. They are plain objects of one thread:
what waits, and across processes, is ``hadamard.distributed.buffer_server``.

References
----------
.. [1] L. Meyer, M. Schouler, R. A. Caulk, A. Ribés, B. Raffin, "Training Deep Surrogate Models with Large Scale Online
   Learning", ICML 2023, arXiv:2306.16133.
.. [2] L. Meyer, M. Schouler, R. A. Caulk, A. Ribés, B. Raffin, "High Throughput Training of Deep Surrogates from Large
   Ensemble Runs", SC 2023, arXiv:2309.16743.
"""

from abc import ABC, abstractmethod
from collections import deque
from random import Random
from typing import Any

__all__ = ["FIFO", "FIRO", "Buffer", "Reservoir"]


class Buffer(ABC):
    """What the three buffers share.

    Parameters
    ----------
    capacity
        The most samples that it holds.
    random_state
        Seed of its draws.
    """

    def __init__(self, capacity: int, *, random_state: int = 0) -> None:
        self.capacity = _check_range(capacity, "capacity", 1, integer=True)
        self.random_state = _check_range(random_state, "random_state", 0, integer=True)
        self.closed = False
        self._random = Random(random_state)

    @abstractmethod
    def __len__(self) -> int:
        """Samples held."""

    @property
    @abstractmethod
    def unseen(self) -> int:
        """Samples held that :meth:`get` has not returned yet."""

    @abstractmethod
    def _add(self, sample: Any) -> bool: ...

    @abstractmethod
    def _take(self, n: int) -> list[Any] | None: ...

    def put(self, sample: Any) -> bool:
        """Take a sample in, or return False because there is no room for it now.

        Raises
        ------
        ValueError
            After :meth:`close`.
        """
        if self.closed:
            raise ValueError("put after close: the buffer was told that no more samples come")
        return self._add(sample)

    def get(self, n: int) -> list[Any] | None:
        """Return a batch of ``n`` samples, or None because there is none to be had now.

        After :meth:`close` what is left comes out, each sample once, the last batch perhaps smaller; then None.
        """
        if n < 1:
            raise ValueError(f"n must be >= 1, got {n}")
        if self.closed:
            return self._take(min(n, len(self))) if len(self) else None
        return self._take(n)

    def close(self) -> None:
        """Say that no more samples come."""
        self.closed = True

    @property
    def exhausted(self) -> bool:
        """Whether nothing will come out any more."""
        return self.closed and not len(self)

    def check_batch(self, n: int) -> None:
        """Refuse a size of batch that the buffer, when full, could not give.

        Raises
        ------
        ValueError
            If ``n`` samples and those to be kept back exceed the capacity.
        """
        _check_range(n, "batch_size", 1, integer=True)
        if n > self.capacity:
            raise ValueError(f"batch_size must be at most the buffer's capacity of {self.capacity}, got {n}")

    def fresh(self, rank: int) -> "Buffer":
        """Return an empty buffer of the same kind, with draws of its own, for one of several ranks."""
        other = type(self)(**self._arguments())
        other._random = Random(f"{self.random_state} {rank}")
        return other

    def _arguments(self) -> dict[str, Any]:
        return {"capacity": self.capacity, "random_state": self.random_state}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self._arguments().items())})"


class _Once(Buffer):
    """A buffer out of which every sample comes once."""

    _samples: deque[Any] | list[Any]

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def unseen(self) -> int:
        """Samples held, none of which has come out."""
        return len(self)

    def _add(self, sample: Any) -> bool:
        if len(self) == self.capacity:
            return False
        self._samples.append(sample)
        return True


class FIFO(_Once):
    """First in, first out: every sample once, in the order of arrival.

    Parameters
    ----------
    capacity
        The most samples that it holds.
    random_state
        Not used; there for the other two's sake.

    Examples
    --------
    >>> buffer = FIFO(capacity=2)
    >>> [buffer.put(sample) for sample in "abc"]
    [True, True, False]
    >>> buffer.get(2)
    ['a', 'b']
    """

    def __init__(self, capacity: int, *, random_state: int = 0) -> None:
        super().__init__(capacity, random_state=random_state)
        self._samples: deque[Any] = deque()

    def _take(self, n: int) -> list[Any] | None:
        return [self._samples.popleft() for _ in range(n)] if len(self) >= n else None


class FIRO(_Once):
    """First in, random out: every sample once, mixed with those that are kept back.

    Parameters
    ----------
    capacity
        The most samples that it holds.
    threshold
        Samples that stay in the buffer as long as more are to come; less than ``capacity`` by at least one batch.
    random_state
        Seed of the draws.

    Examples
    --------
    >>> buffer = FIRO(capacity=10, threshold=4)
    >>> [buffer.put(sample) for sample in "abcde"]
    [True, True, True, True, True]
    >>> buffer.get(2) is None  # would leave three
    True
    >>> buffer.close()
    >>> sorted(buffer.get(5))
    ['a', 'b', 'c', 'd', 'e']
    """

    def __init__(self, capacity: int, threshold: int, *, random_state: int = 0) -> None:
        super().__init__(capacity, random_state=random_state)
        self.threshold = _check_range(threshold, "threshold", 0, capacity, closed="left", integer=True)
        self._samples: list[Any] = []

    def _take(self, n: int) -> list[Any] | None:
        if len(self) < n + (0 if self.closed else self.threshold):
            return None
        return [_pop(self._samples, self._random.randrange(len(self))) for _ in range(n)]

    def check_batch(self, n: int) -> None:
        """Refuse a size of batch that the buffer, when full, could not give."""
        super().check_batch(n)
        if n + self.threshold > self.capacity:
            raise ValueError(
                f"batch_size and threshold must fit into the buffer's capacity of {self.capacity} together, got "
                f"{n} and {self.threshold}"
            )

    def _arguments(self) -> dict[str, Any]:
        return {"capacity": self.capacity, "threshold": self.threshold, "random_state": self.random_state}


class Reservoir(Buffer):
    """Draw at random, keep what was drawn, and let a new sample replace one that was drawn before.

    A sample leaves only after it was drawn at least once: a buffer full of samples that never were refuses new ones.
    This is not the reservoir sampling of streams, which keeps a uniform sample of all that went by and may drop an
    element unseen.

    Parameters
    ----------
    capacity
        The most samples that it holds.
    threshold
        Nothing is drawn before it holds this many, at most ``capacity``.
    random_state
        Seed of the draws.

    Examples
    --------
    >>> buffer = Reservoir(capacity=2, threshold=1)
    >>> buffer.put("a"), len(buffer.get(3))  # drawn again and again
    (True, 3)
    >>> [buffer.put(sample) for sample in "bc"]  # "c" takes the place of "a"
    [True, True]
    >>> buffer.put("d")  # "b" and "c" have not been drawn
    False
    >>> buffer.close()
    >>> sorted(buffer.get(5))
    ['b', 'c']
    """

    def __init__(self, capacity: int, threshold: int, *, random_state: int = 0) -> None:
        super().__init__(capacity, random_state=random_state)
        self.threshold = _check_range(threshold, "threshold", 1, capacity, integer=True)
        self._seen: list[Any] = []
        self._unseen: list[Any] = []

    def __len__(self) -> int:
        return len(self._seen) + len(self._unseen)

    @property
    def unseen(self) -> int:
        """Samples held that were not drawn yet."""
        return len(self._unseen)

    def _add(self, sample: Any) -> bool:
        if len(self) == self.capacity:
            if not self._seen:
                return False
            _pop(self._seen, self._random.randrange(len(self._seen)))
        self._unseen.append(sample)
        return True

    def _take(self, n: int) -> list[Any] | None:
        if not self.closed and len(self) < self.threshold:
            return None
        return [self._draw() for _ in range(n)]

    def _draw(self) -> Any:
        i = self._random.randrange(len(self))
        if i >= len(self._unseen):
            i -= len(self._unseen)
            return _pop(self._seen, i) if self.closed else self._seen[i]
        sample = _pop(self._unseen, i)
        if not self.closed:
            self._seen.append(sample)
        return sample

    def check_batch(self, n: int) -> None:
        """Refuse what is no size of a batch; samples repeat, so that any number may be drawn."""
        _check_range(n, "batch_size", 1, integer=True)

    def _arguments(self) -> dict[str, Any]:
        return {"capacity": self.capacity, "threshold": self.threshold, "random_state": self.random_state}


def _pop(samples: list[Any], i: int) -> Any:
    """Remove an element in constant time; the last takes its place."""
    samples[i], samples[-1] = samples[-1], samples[i]
    return samples.pop()


def _check_range(*arguments: Any, **options: Any) -> Any:
    """Check an argument; imported when it is called, for processes that only use a buffer need no torch."""
    from hadamard.validation import check_range

    return check_range(*arguments, **options)
