"""NFC in time that grows with the text: Python's own takes the square of the length of a run of combining marks."""

from __future__ import annotations

import unicodedata
from itertools import chain

import regex

# As long as nobody writes; a mark is of class M (all characters that are reordered are).
_LONG_RUN = regex.compile(r"\p{M}{64,}")


def nfc(text: str) -> str:
    """The normal form C of ``text``; an escaped byte (lone surrogate) stays what it is."""
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    return unicodedata.normalize("NFC", _LONG_RUN.sub(_sorted_run, text))


def _sorted_run(run: regex.Match[str]) -> str:
    """The marks decomposed and in canonical order, which Python's insertion sort then passes in one sweep."""
    out: list[str] = []
    waiting: list[str] = []  # marks since the last character of class 0, which none of them may pass
    for char in chain.from_iterable(unicodedata.normalize("NFD", c) for c in run[0]):
        if unicodedata.combining(char):
            waiting.append(char)
        else:
            out += [*sorted(waiting, key=unicodedata.combining), char]
            waiting.clear()
    return "".join([*out, *sorted(waiting, key=unicodedata.combining)])
