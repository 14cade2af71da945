"""Who sent what: the ids that have arrived, in memory, and the account of them on disk."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int

__all__ = ["MAX_STEPS", "Arrivals", "Ledger", "read_ledger"]

MAX_STEPS = 2**24
"""Steps that one simulation may have: what keeps a wrong number from filling the memory."""


class Ledger:
    """A file to which (client, step) pairs are appended, eight bytes a pair.

    What was appended survives the death of the process. A run that goes back to a checkpoint cuts the ledger back to
    the length that it had then, so that it tells the history of the weights that there are.

    Parameters
    ----------
    path
        The file; made if absent.
    length
        Pairs to keep of what stands in it; what follows is cut off.

    Raises
    ------
    ValueError
        If the file holds fewer pairs than ``length``.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ledger = Ledger(f"{folder}/ledger")
    ...     ledger.append([(7, 0), (7, 1)])
    ...     ledger.close()
    ...     Ledger(f"{folder}/ledger", length=1).close()  # back to an earlier state
    ...     read_ledger(f"{folder}/ledger").tolist()
    [[7, 0]]
    """

    def __init__(self, path: str | Path, length: int = 0) -> None:
        self.path = Path(path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        found = os.fstat(self._file).st_size // 8
        if found < length:
            os.close(self._file)
            raise ValueError(f"{path} holds {found} entries, expected at least {length}: it is damaged")
        os.ftruncate(self._file, 8 * length)
        os.lseek(self._file, 0, os.SEEK_END)
        self.length = length

    def append(self, ids: Iterable[tuple[int, int]]) -> None:
        """Write pairs down."""
        rows = np.asarray(list(ids), dtype="<u4").reshape(-1, 2)
        if os.write(self._file, rows.tobytes()) != rows.nbytes:
            raise OSError(f"{self.path} could not be written: is the disk full?")
        self.length += len(rows)

    def sync(self) -> int:
        """Wait until the disk has it, and return the length."""
        os.fsync(self._file)
        return self.length

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_ledger(path: str | Path) -> Int[np.ndarray, "n 2"]:
    """Read the (client, step) pairs of a ledger, or of all ledgers of one kind in a folder.

    Parameters
    ----------
    path
        A ledger's file; or ``FOLDER/accepted`` or ``FOLDER/trained``, for those of all ranks one after another.

    Raises
    ------
    FileNotFoundError
        If there is none.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for rank in range(2):
    ...         Ledger(f"{folder}/accepted.{rank}").append([(rank, 5)])
    ...     read_ledger(f"{folder}/accepted").tolist()
    [[0, 5], [1, 5]]
    """
    path = Path(path)
    files = [path] if path.exists() else sorted(path.parent.glob(f"{path.name}.[0-9]*"))
    if not files:
        raise FileNotFoundError(f"there is no ledger {path}")
    return np.concatenate([np.fromfile(file, dtype="<u4").reshape(-1, 2) for file in files]).astype(np.int64)


class Arrivals:
    """Which steps of which client have arrived, one bit a step, in any order.

    Examples
    --------
    >>> arrivals = Arrivals()
    >>> arrivals.add(3, 10), arrivals.add(3, 10), arrivals.add(3, 0)
    (True, False, True)
    >>> arrivals.count(3), (3, 0) in arrivals, (3, 1) in arrivals
    (2, True, False)
    """

    def __init__(self) -> None:
        self._bits: dict[int, bytearray] = {}
        self._counts: dict[int, int] = {}
        self.n_steps: dict[int, int] = {}

    def __contains__(self, id: tuple[int, int]) -> bool:
        client, step = id
        bits = self._bits.get(client, b"")
        return step >> 3 < len(bits) and bool(bits[step >> 3] >> (step & 7) & 1)

    def add(self, client: int, step: int) -> bool:
        """Note an arrival; False if it was there already."""
        if not 0 <= step < MAX_STEPS:
            raise ValueError(f"step must be >= 0 and < {MAX_STEPS}, got {step}")
        if (client, step) in self:
            return False
        bits = self._bits.setdefault(client, bytearray())
        if len(bits) <= step >> 3:
            bits.extend(bytes((step >> 3) + 1 - len(bits)))
        bits[step >> 3] |= 1 << (step & 7)
        self._counts[client] = self.count(client) + 1
        return True

    def count(self, client: int) -> int:
        """Steps of a client that have arrived."""
        return self._counts.get(client, 0)

    def steps(self, client: int) -> bytes:
        """The bits of a client's steps, the lowest step in the lowest bit of the first byte."""
        return bytes(self._bits.get(client, b""))

    def finish(self, client: int, n_steps: int) -> None:
        """Note how many steps a client had in all."""
        self.n_steps[client] = n_steps

    def __len__(self) -> int:
        return sum(self._counts.values())
