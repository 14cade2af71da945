"""Tables in CSV files, read so that every fault is one line that names the file and the line."""

import csv
from pathlib import Path

import numpy as np

__all__ = ["number", "read_rows"]


def read_rows(path: Path) -> list[tuple[str, list[str]]]:
    """Read all rows of a CSV file, each with the words for where it stands.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is empty, no CSV file in UTF-8, or a row has not as many columns as the first.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    found: list[tuple[str, list[str]]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for row in filter(None, reader):
                where = f"{path}, line {reader.line_num}"
                wanted = len(found[0][1]) if found else len(row)
                if len(row) != wanted:
                    raise ValueError(f"{where}: expected {wanted} columns, got {len(row)}; is the file truncated?")
                found.append((where, [text.strip() for text in row]))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not a text file in UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{path}: is not a CSV file, or truncated ({error})") from None
    if not found:
        raise ValueError(f"{path}: the file is empty")
    return found


def number(text: str, where: str, name: str) -> float:
    """A finite number from a cell."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ValueError(f"{where}: {name} must be a finite number, got {text!r}")
    return value
