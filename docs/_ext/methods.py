"""Pages that nobody writes by hand, made before Sphinx reads its sources.

``methods/KEY.rst`` comes from the catalog's row, the docstrings, the claim and, where ``evidence/KEY.json`` or
``evidence/gpu/KEY.json`` exists, its record; ``generated/api.rst`` lists what the methods are built from. The evidence
page itself is copied beside them when there is one.
"""

import inspect
import re
import shutil
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from textwrap import indent
from typing import Any

import hadamard
import hadamard.claims
from hadamard import catalog
from hadamard.catalog import Method
from hadamard.claims import engine, page
from hadamard.claims.claim import Claim

SENSES = {"<=": "at most", ">=": "at least", "<": "below", ">": "above", "==": "equal to"}


def setup(app: Any) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("config-inited", lambda app, config: generate(Path(app.srcdir)))
    app.connect("autodoc-process-docstring", read_plainly, priority=400)  # before numpydoc
    app.connect("autodoc-skip-member", lambda app, what, name, *_: True if ROUTING.fullmatch(name) else None)
    return {"parallel_read_safe": True}


def generate(docs: Path) -> None:
    evidence = docs.parent / "evidence"
    extra = docs / "generated" / "extra" / "evidence"
    extra.mkdir(parents=True, exist_ok=True)
    shown = (evidence / "index.html").exists()
    if shown:
        shutil.copy(evidence / "index.html", extra / "index.html")
    pages = {f"methods/{m.key}.rst": method_page(m, engine.load(m.key), evidence, shown) for m in rows()}
    pages |= {"methods/index.rst": methods_index(), "generated/api.rst": api_page()}
    for stale in (docs / "methods").glob("*.rst"):
        if f"methods/{stale.name}" not in pages:
            stale.unlink()
    for name, text in pages.items():
        write(docs / name, text)


def rows() -> Iterable[Method]:
    return catalog.methods().values()


# ---- one method ----------------------------------------------------------------------------------------------------


def method_page(method: Method, claim: Claim, evidence: Path, shown: bool) -> str:
    parts = [
        heading(method.key, "="),
        rst(method.what),
        f"Takes the place of **{rst(method.drops_into)}**; saves **{rst(method.saves)}**.",
        block("code-block:: python", method.usage.strip()),
        *commands(method),
        heading("Claim", "-"),
        rst(claim.statement),
        f"**The paper reports:** {rst(claim.paper_figure)}",
    ]
    records = [r for p in (evidence, evidence / "gpu") if (r := page.read(p / f"{method.key}.json")) is not None]
    for record in records:
        parts += measured(record)
    if not records:
        parts += [bounds(claim)]
    where = " Its figures are on the `evidence page <../evidence/index.html#{key}>`__." if shown and records else ""
    parts += [
        f"Run it with ``hadamard claims {method.key}``." + where.format(key=method.key),
        heading("Reference", "-"),
        *(entry(name) for name in method.api),
        heading("Cite", "-"),
        f"{rst(method.author_line)}. *{rst(method.title)}*. {method.venue} {method.year}, "
        f"`arXiv:{method.arxiv} <https://arxiv.org/abs/{method.arxiv}>`__.",
        block("code-block:: bibtex", method.bibtex()),
    ]
    return "\n\n".join(parts)


def commands(method: Method) -> list[str]:
    lines = [f"$ hadamard {verb} {method.key} --help" for verb in ("apply", "train") if getattr(method, verb)]
    return [block("code-block:: console", "\n".join(lines))] if lines else []


def entry(name: str) -> str:
    thing = catalog.resolve(name)
    if inspect.isclass(thing):
        return block(f"autoclass:: {name}", ":members:")
    return f".. autofunction:: {name}"


def bounds(claim: Claim) -> str:
    """What must hold, before anything was measured."""
    lines = [(rst(bar.text), f"{SENSES[bar.sense]} {bar.bound:g}") for bar in claim.bars]
    return table(("What must hold", "Wanted"), lines, (70, 30))


def measured(record: dict[str, Any]) -> list[str]:
    """What a record says: its verdict, and each bound with what was measured."""
    lines = [
        (rst(bar["text"]), f"{SENSES[bar['sense']]} {bar['bound']:g}", page.number(bar["value"]), bar["holds"])
        for bar in record["bars"]
    ]
    place = record["environment"].get("gpu") or record["environment"].get("cpu") or "an unnamed machine"
    verdict = page.VERDICTS[record["verdict"]]
    parts = [
        f"**Measured** at size {record['size']} on {rst(place)}, {record['date'][:10]}: *{verdict}*; "
        f"the paper's headline: {record['paper_headline']}."
    ]
    if record["cause"]:
        parts.append(rst(record["cause"]))
    if lines:
        parts.append(table(("What must hold", "Wanted", "Measured", "Holds"), lines, (52, 20, 14, 14)))
    return parts


def methods_index() -> str:
    parts = [
        heading("Methods", "="),
        "Each page says what the method is for, how it is called, and what its claim gave.",
    ]
    for family in dict.fromkeys(m.family for m in rows()):
        members = [m for m in rows() if m.family == family]
        lines = [(f":doc:`{m.key}`", rst(m.what), rst(m.drops_into)) for m in members]
        parts += [heading(family, "-"), table(("Method", "What for", "In place of"), lines, (24, 50, 26))]
    parts.append(block("toctree::\n   :hidden:", "\n".join(m.key for m in rows())))
    return "\n\n".join(parts)


# ---- what the methods are built from ---------------------------------------------------------------------------------


def api_page() -> str:
    parts = [heading("API", "="), "The methods themselves are on their :doc:`own pages <../methods/index>`."]
    families = [m.name for m in iter_modules(hadamard.claims.__path__) if m.ispkg]
    taken = {name for m in rows() for name in m.api}
    parts += [heading("Shared rooms", "-")]
    for module in iter_modules(hadamard.__path__):
        if module.name not in families and module.name not in ("cli", "claims") and not module.name.startswith("_"):
            parts += room(f"hadamard.{module.name}")
    parts += [heading("Inside the families", "-")]
    for family in families:
        exported = getattr(import_module(f"hadamard.{family}"), "__all__", [])
        parts += [entry(name) for e in exported if (name := f"hadamard.{family}.{e}") not in taken]
    parts += [heading("Claims", "-"), *room("hadamard.claims"), *room("hadamard.claims.plots")]
    return "\n\n".join(parts)


def room(name: str) -> list[str]:
    if not getattr(import_module(name), "__all__", None):
        return []
    return [heading(name, "~"), block(f"automodule:: {name}", ":members:")]


# ---- reading docstrings ----------------------------------------------------------------------------------------------

ROUTING = re.compile(r"set_\w+_request|get_metadata_routing")  # scikit-learn makes these, and documents them
CODE = re.compile(r"(``.*?``|:\w+:`.*?`)")
STAR = re.compile(r"(?<![\\*\w])\*(?=\w)(?![^*]*\w\*)")  # of a shape such as (*batch, n); not of *emphasis*


def read_plainly(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Let shapes and norms stand in docstrings as they are: ``(*batch, n)`` and ``|x|`` are no markup."""
    literal = None
    for i, line in enumerate(lines):
        depth = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and depth <= literal:
            literal = None
        if literal is None and not line.lstrip().startswith((">>>", "...")):
            pieces = CODE.split(line)
            pieces[::2] = [STAR.sub(r"\*", piece).replace("|", r"\|") for piece in pieces[::2]]
            lines[i] = "".join(pieces)
        if literal is None and line.rstrip().endswith("::"):
            literal = depth


# ---- writing reStructuredText ----------------------------------------------------------------------------------------


def rst(text: str) -> str:
    """Plain text, in which `words between backticks` are code, for a place where markup is read."""
    parts = " ".join(text.split()).split("`")
    if len(parts) % 2 == 0:
        return rst(text.replace("`", "'"))
    pieces = [rf"\ ``{p.strip()}``\ " if i % 2 else re.sub(r"([\\*_|])", r"\\\1", p) for i, p in enumerate(parts)]
    return "".join(pieces).strip()


def heading(text: str, under: str) -> str:
    return f"{text}\n{under * len(text)}"


def block(directive: str, body: str) -> str:
    return f".. {directive}\n\n{indent(body, '   ')}" if not body.startswith(":") else f".. {directive}\n   {body}"


def table(head: Iterable[str], lines: Iterable[Iterable[str]], widths: Iterable[int]) -> str:
    body = "\n".join("* - " + "\n  - ".join(cells) for cells in [head, *lines])
    return f".. list-table::\n   :header-rows: 1\n   :widths: {' '.join(map(str, widths))}\n\n{indent(body, '   ')}"


def write(path: Path, text: str) -> None:
    """Write a page only where it changed, so that Sphinx reads it again only then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text + "\n":
        path.write_text(text + "\n", encoding="utf-8")
