"""English text that lies in Python's standard library."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from hadamard.validation import check_range

__all__ = ["Characters", "help_topics"]


@dataclass(frozen=True, kw_only=True)
class Characters:
    """A text as indices into its alphabet.

    Attributes
    ----------
    train, test
        Indices of shape (n,), int64; the test text is the end of the whole.
    alphabet
        The characters, sorted.
    provenance
        Where the text comes from and under which terms.
    """

    train: Int64[Tensor, " n"]
    test: Int64[Tensor, " m"]
    alphabet: str
    provenance: str


def help_topics(held_out: float = 0.1) -> Characters:
    """Python's help topics, nearly half a million characters about the language; nothing is downloaded.

    Parameters
    ----------
    held_out
        Share of the text that is kept for testing, between 0 and 1, both excluded.

    Raises
    ------
    ValueError
        If ``held_out`` is out of range.

    Examples
    --------
    >>> text = help_topics()
    >>> len(text.train) > 400_000, "".join(text.alphabet[i] for i in text.train[4:17])
    (True, '"assert" stat')
    """
    from pydoc_data.topics import topics

    check_range(held_out, "held_out", 0, 1, closed="neither")
    text = "".join(topics[name] for name in sorted(topics))
    alphabet = "".join(sorted(set(text)))
    number = {character: i for i, character in enumerate(alphabet)}
    indices = torch.tensor([number[character] for character in text])
    train, test = indices.tensor_split([round(len(text) * (1 - held_out))])
    return Characters(
        train=train,
        test=test,
        alphabet=alphabet,
        provenance="Help topics of Python's language reference (PSF licence), in the standard library",
    )
