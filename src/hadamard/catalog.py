"""The table of contents: one row a method, read from ``catalog.toml``.

The command line, the docs and the tests all start from it; its order is the order in which claims are run.
"""

import tomllib
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

__all__ = ["Method", "markdown", "method", "methods", "resolve", "select"]


@dataclass(frozen=True)
class Method:
    """One row of the catalog.

    Attributes
    ----------
    key
        The method's name everywhere: ``src/hadamard/FAMILY/KEY.py``, its claim and its test.
    family
        The room it stands in.
    title, authors, venue, year, arxiv
        The paper; the authors as BibTeX has them, ``Last, First and Last, First``.
    api
        Dotted names of its public functions and classes, the main one first.
    drops_into
        The tool whose place it takes.
    saves
        What there is less of.
    what
        One sentence of what it is for.
    usage
        A short example.
    apply, train
        Whether ``hadamard apply KEY`` and ``hadamard train KEY`` exist.
    """

    key: str
    family: str
    title: str
    authors: str
    venue: str
    year: int
    arxiv: str
    api: tuple[str, ...]
    drops_into: str
    saves: str
    what: str
    usage: str
    apply: bool = False
    train: bool = False

    @property
    def module(self) -> str:
        """Dotted name of the module that holds the method."""
        return f"hadamard.{self.family}.{self.key}"

    @property
    def author_line(self) -> str:
        """The authors as a reader expects them: first names first, commas between."""
        names = [name.partition(", ") for name in self.authors.split(" and ")]
        return ", ".join(f"{first} {last}".strip() for last, _, first in names)

    def summary(self) -> dict[str, Any]:
        """The fields that ``hadamard list --json`` prints."""
        row = asdict(self) | {"api": list(self.api)}
        return {name: row[name] for name in ("key", "family", "title", "arxiv", "api", "drops_into", "saves")}

    def bibtex(self) -> str:
        """The paper as a BibTeX entry."""
        fields = {
            "title": f"{{{self.title}}}",
            "author": self.authors,
            "booktitle": self.venue,
            "year": self.year,
            "eprint": self.arxiv,
            "archivePrefix": "arXiv",
        }
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@inproceedings{{{self.key}_{self.year},\n{body}\n}}"


@cache
def methods() -> dict[str, Method]:
    """Every method by key, in the catalog's order.

    Examples
    --------
    >>> methods()["sinkhorn_newton_sparse"].family
    'transport'
    """
    rows = tomllib.loads(files("hadamard").joinpath("catalog.toml").read_text(encoding="utf-8"))
    return {key: Method(key=key, **{**row, "api": tuple(row["api"])}) for key, row in rows.items()}


def method(key: str) -> Method:
    """The row of one method.

    Raises
    ------
    ValueError
        If there is none; the message names the nearest keys.
    """
    if key not in methods():
        raise ValueError(f"unknown method {key!r}{_nearest(key, list(methods()))}")
    return methods()[key]


def select(names: list[str]) -> list[Method]:
    """Methods named by key or by family, in the catalog's order; all of them if nothing is named.

    Raises
    ------
    ValueError
        If a name is neither.
    """
    families = {m.family for m in methods().values()}
    for name in names:
        if name not in methods() and name not in families:
            raise ValueError(f"unknown method or family {name!r}{_nearest(name, [*methods(), *families])}")
    return [m for m in methods().values() if not names or m.key in names or m.family in names]


def resolve(dotted: str) -> Any:
    """The object behind a dotted name such as ``hadamard.transport.TransportPlan``."""
    module, _, name = dotted.rpartition(".")
    return getattr(import_module(module), name)


def markdown() -> str:
    """The catalog as a Markdown table, as the README shows it."""
    head = "| method | family | takes the place of | saves | paper |\n|---|---|---|---|---|"
    rows = [
        f"| `{m.key}` | {m.family} | {m.drops_into} | {m.saves} | [{m.title}](https://arxiv.org/abs/{m.arxiv}), "
        f"{m.venue} {m.year} |"
        for m in methods().values()
    ]
    return "\n".join([head, *rows])


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=2)
    return f"; did you mean {' or '.join(near)}?" if near else "; see 'hadamard list'"
