"""Parquet files as data frames."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


def read_parquet(path: Path) -> "pandas.DataFrame":
    """Read one file; pandas and pyarrow are the extra ``data``."""
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError("reading parquet needs pandas and pyarrow: pip install 'hadamard[data]'") from error
    return pandas.read_parquet(path)
