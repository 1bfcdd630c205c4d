r"""Pre-tokenisers: the regular expressions that cut text into the pieces inside which byte-level BPE merges.

They go by the names that GGUF writes in `tokenizer.ggml.pre`. Every character is exactly one of letter (`\p{L}`),
number (`\p{N}`), white space (`\s`, the property White_Space) or other, so each expression covers all text. A byte that
is no part of valid UTF-8 (PEP 383 escapes it as a lone surrogate) is one other character.

Classes are those of Unicode 16, as in `tokenizers` and the C engine: what it does not assign is other, also where the
`regex` package knows a newer Unicode.
"""

from __future__ import annotations

import re
from functools import cache

import regex

from nano_ds.errors import UserError
from nano_ds.tokenizer.unassigned import RUNS

_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
_LLAMA = r"(?i:" + _CONTRACTIONS + r")|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PATTERNS = {
    # GPT-2: a space sticks to the word, number or punctuation behind it; of other white space the last one stays apart.
    "gpt-2": _CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # SmolLM: every digit by itself first, then GPT-2 on what lies between; white space before a digit is at an end.
    "smollm": _CONTRACTIONS + r"| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
    "llama-bpe": _LLAMA % r"\p{N}{1,3}",  # Llama 3
    "qwen2": _LLAMA % r"\p{N}",  # Qwen2, Qwen2.5, Qwen3
}


_RUNS = [[chr(int(end, 16)) for end in run.split("-")] for run in RUNS.split()]
_BEYOND = "\U00010000"
_NEW = re.compile(f"[{''.join('-'.join(run) for run in _RUNS)}]")
# Quicker, since it asks one table and one range: what is not found by it is not in _NEW either.
_PERHAPS_NEW = re.compile(f"[{''.join('-'.join(run) for run in _RUNS if run[-1] < _BEYOND)}{_BEYOND}-\U0010ffff]")
_OTHER = "\uffff"  # stands for a character that is to be other


@cache
def _compiled(name: str) -> regex.Pattern[str]:
    return regex.compile(PATTERNS[name], regex.V0)


def check_name(name: str, source: str) -> None:
    """Raises UserError for a pre-tokeniser that is not in the table."""
    if name not in PATTERNS:
        raise UserError(f"{source}: pre-tokeniser {name!r} is not one that nano_ds knows ({', '.join(PATTERNS)})")


def cut(name: str, text: str) -> list[str]:
    """The pieces of ``text``; joined they are the text. ``name`` is in the table."""
    expression = _compiled(name)
    if text.isascii() or not _PERHAPS_NEW.search(text) or not _NEW.search(text):
        pieces: list[str] = expression.findall(text)
        return pieces
    return [text[m.start() : m.end()] for m in expression.finditer(_NEW.sub(_OTHER, text))]
