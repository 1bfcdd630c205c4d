r"""Pre-tokenisers: the regular expressions that cut text into the pieces inside which byte-level BPE merges.

They go by the names that GGUF writes in `tokenizer.ggml.pre`. Every character is exactly one of letter (`\p{L}`),
number (`\p{N}`), white space (`\s`, the property White_Space) or other, so each expression covers all text. A byte that
is no part of valid UTF-8 (PEP 383 escapes it as a lone surrogate) is one other character.

Libraries disagree about characters that Unicode has assigned since their tables were made; here the tables of the
`regex` package count.
"""

from __future__ import annotations

from functools import cache

import regex

from nano_ds.errors import UserError

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


@cache
def pattern(name: str, source: str = "vocabulary") -> regex.Pattern[str]:
    """The compiled expression; ``findall`` gives the pieces. Raises UserError for a name that is not in the table."""
    if name not in PATTERNS:
        raise UserError(f"{source}: pre-tokeniser {name!r} is not one that nano_ds knows ({', '.join(PATTERNS)})")
    return regex.compile(PATTERNS[name], regex.V0)
