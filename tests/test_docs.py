"""What the docs tell people to type does what they say."""

import re
import runpy
from pathlib import Path
from textwrap import dedent

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(p for p in (DOCS / "coming-from").glob("*.rst") if p.stem != "index")
BLOCK = re.compile(r"\.\. code-block:: python\n   :caption: (\w+)\n\n((?:   .*\n|\n)+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_coming_from_says_before_and_after_and_when_to_stay(page):
    text = page.read_text(encoding="utf-8")
    blocks = {caption: dedent(code) for caption, code in BLOCK.findall(text)}
    assert list(blocks) == ["Before", "After"]
    assert "**Stay with " in text
    compile(blocks["Before"], str(page), "exec")
    exec(compile(blocks["After"], str(page), "exec"), {})


@pytest.fixture(scope="module")
def methods():
    return runpy.run_path(str(DOCS / "_ext" / "methods.py"))


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("plain  words\nhere", "plain words here"),
        ("a_b * |c| \\d", r"a\_b \* \|c\| \\d"),
        ("n = `reg * 2`, so", r"n = \ ``reg * 2``\ , so"),
        ("an odd ` mark", "an odd ' mark"),
    ],
)
def test_plain_text_is_no_markup(methods, text, markup):
    assert methods["rst"](text) == markup


def test_shapes_and_norms_stand_in_docstrings_as_they_are(methods):
    lines = ["Of shape (*batch, n), so that |x| < ``a | b``, is *always* small::", "", "    *x | y", "Then (*batch,)."]
    methods["read_plainly"](None, "", "", None, None, lines)
    assert lines[0] == r"Of shape (\*batch, n), so that \|x\| < ``a | b``, is *always* small::"
    assert lines[2:] == ["    *x | y", r"Then (\*batch,)."]
