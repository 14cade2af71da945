"""Tables divided among clients, by chance or by what is in them."""

from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike

from hadamard.validation import check_option, check_range

__all__ = ["federated_split"]


def federated_split(
    by: str,
    label: ArrayLike,
    sensitive: ArrayLike,
    n_clients: int = 2,
    *,
    purity: float = 0.9,
    random_state: int | np.random.Generator | None = None,
) -> Int[np.ndarray, " n"]:
    """Say which client each row of a table goes to.

    Parameters
    ----------
    by
        ``"iid"``: by chance, clients of equal size. ``"class"`` and ``"sensitive"``: each class, or each group of the
        sensitive attribute, has clients of its own. ``"mixed"``: client 0 has the first group's negatives and the
        second group's positives, client 1 the others; in general ``(class + group) mod 2``.
    label, sensitive
        Classes and groups, of shape (n,).
    n_clients
        Number of clients. What has clients of its own has those whose number is the same modulo the number of kinds.
    purity
        Share of the rows of a kind that goes to its clients; the rest goes to the others.
    random_state
        Seed or generator.

    Returns
    -------
    numpy.ndarray
        A client from 0 to ``n_clients - 1`` for each row.

    Raises
    ------
    ValueError
        If lengths differ, ``purity`` is outside [0, 1], or there are fewer clients than kinds.

    References
    ----------
    F. Hamman and S. Dutta, "Demystifying Local and Global Fairness Trade-offs in Federated Learning Using Partial
    Information Decomposition", ICLR 2024, arXiv:2307.11333: two clients; by sex with purity 0.9, mixed by a swap of 1 %
    of the rows, which is a purity of 0.99.

    Examples
    --------
    >>> label, sex = [0, 0, 1, 1], ["f", "m", "f", "m"]
    >>> federated_split("mixed", label, sex, purity=1.0)
    array([0, 1, 1, 0])
    """
    check_option(by, "by", ("iid", "class", "sensitive", "mixed"))
    check_range(n_clients, "n_clients", 1, integer=True)
    check_range(purity, "purity", 0, 1)
    y, z = _codes(label), _codes(sensitive)
    if len(y) != len(z):
        raise ValueError(f"label and sensitive must have as many rows, got {len(y)} and {len(z)}")
    random = np.random.default_rng(random_state)
    kind = {"iid": np.zeros_like(y), "class": y, "sensitive": z, "mixed": (y + z) % 2}[by]
    kinds = int(kind.max()) + 1
    if kinds > n_clients:
        raise ValueError(f"n_clients must be at least the number of kinds, {kinds}, got {n_clients}")
    client = np.empty(len(y), dtype=int)
    for k in range(kinds):
        rows = random.permutation(np.flatnonzero(kind == k))
        own = np.arange(k, n_clients, kinds)
        others = np.setdiff1d(np.arange(n_clients), own)
        home = round(purity * len(rows)) if len(others) else len(rows)
        client[rows[:home]] = np.resize(random.permutation(own), home)
        client[rows[home:]] = np.resize(random.permutation(others), len(rows) - home) if len(others) else 0
    return client


def _codes(labels: Any) -> Int[np.ndarray, " n"]:
    values = np.asarray(labels)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"label and sensitive must have shape (n,), got {values.shape}")
    return np.unique(values, return_inverse=True)[1]
