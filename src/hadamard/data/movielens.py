"""MovieLens 100k: who rated which film, how, and when."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hadamard.data._parquet import read_parquet
from hadamard.data.fetch import fetch, sources

__all__ = ["Ratings", "movielens_100k"]


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """Ratings as parallel arrays of one length.

    Attributes
    ----------
    users, items
        Zero-based indices, int64.
    ratings
        Values, float64.
    timestamps
        Seconds since 1970, int64.
    shape
        Number of users and of items.
    provenance
        Where the data comes from and under which terms.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    ratings: NDArray[np.float64]
    timestamps: NDArray[np.int64]
    shape: tuple[int, int]
    provenance: str


def movielens_100k() -> Ratings:
    """100,000 ratings from 1 to 5 that 943 people gave to 1,682 films (fetched on first use, 22 MB).

    Raises
    ------
    DataUnavailable
        If it is not in the cache and cannot be fetched.
    ImportError
        If pandas or pyarrow is missing.

    References
    ----------
    F. Maxwell Harper and Joseph A. Konstan. The MovieLens Datasets: History and Context. ACM Transactions on
    Interactive Intelligent Systems 5(4), 2015. doi:10.1145/2827872
    """
    table = read_parquet(fetch("movielens_100k")["MovieLens100k_data.parquet.brotli"])
    source = sources()["movielens_100k"]
    return Ratings(
        users=table["user_id"].to_numpy(np.int64) - 1,
        items=table["movie_id"].to_numpy(np.int64) - 1,
        ratings=table["rating"].to_numpy(np.float64),
        timestamps=table["timestamp"].to_numpy(np.int64),
        shape=(943, 1682),
        provenance=f"{source.what}; from {source.package} {source.version}; {source.licence}",
    )
