"""The vocabulary as model files carry it: tokens by id, special ids, and the tokenizer field of Nano's `.bin`."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

from nano_ds.errors import UserError
from nano_ds.files import atomic_write
from nano_ds.tokenizer import load_tokenizer
from nano_ds.tokenizer.trie import TrieTokenizer

SCORED_FORMAT = "nano_ds.scored"  # tokens merged by score: kept whole, but nothing here encodes with it yet
MAX_TOKEN = 255  # code points of a token: its length is one byte
NANO_MAX_TOKEN = 17  # what Nano's own C programs have room for


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id; a byte above 0x7F that stands alone is "\\udc80".."\\udcff" (PEP 383)."""

    tokens: list[str]
    special: list[int] = field(default_factory=list)
    scores: list[float] | None = None  # of a type 3 (Qwen3) file

    def save(self, path: str | Path) -> None:
        if self.scores is None:
            TrieTokenizer(self.tokens, self.special, str(path)).save(path)
            return
        tree = {"format": SCORED_FORMAT, "version": 1, "tokens": self.tokens, "special": sorted(self.special)}
        with atomic_write(path, "w") as f:
            json.dump({**tree, "scores": self.scores}, f, ensure_ascii=True)
            f.write("\n")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Reads a trie ``tokenizer.json``; raises UserError for anything that `.bin` cannot carry."""
        tokenizer = load_tokenizer(path)
        if not isinstance(tokenizer, TrieTokenizer):
            raise UserError(f"{path}: a .bin file carries trie tokenizers only (.gguf will carry others: not yet)")
        return cls(list(tokenizer.tokens), sorted(tokenizer.special.values()))


def token_problem(points: tuple[int, ...]) -> str:
    """Why code points are no token, or nothing."""
    if not points:
        return "is empty"
    for point in points:
        if point > 0x10FFFF:
            return f"holds {point:#x}, above the last code point 0x10ffff"
        if 0xD800 <= point <= 0xDFFF and not (len(points) == 1 and 0xDC80 <= point <= 0xDCFF):
            return f"holds {point:#x}, half a character (only a lone 0xdc80..0xdcff may stand, for a single byte)"
    return ""


def parse_field(data: memoryview, vocab_size: int, where: str) -> Vocabulary:
    """The vocabulary of the tokenizer field ``data`` (its two leading words included).

    Raises:
        UserError: naming ``where`` and the first token that is not as the format says.
    """
    stored = struct.unpack_from("<I", data, 4)[0]
    if stored != vocab_size:
        raise UserError(
            f"{where}: tokenizer holds {stored} tokens, header word 7 says {vocab_size}; the file is damaged"
        )
    if len(data) < 8 + 12 * vocab_size:
        raise UserError(
            f"{where}: tokenizer field of {len(data)} bytes is too short for {vocab_size} tokens of at least 12"
        )
    tokens: list[str] = []
    special: list[int] = []
    at, end = 8, len(data)
    for i in range(vocab_size):
        if end - at < 8:
            raise UserError(f"{where}: tokenizer field ends inside token {i} of {vocab_size}")
        n, is_special, pad1, pad2, id = struct.unpack_from("<BBBBI", data, at)
        if is_special > 1 or (pad1, pad2) != (0xFF, 0xFF) or id != i:
            raise UserError(
                f"{where}: token {i} begins with special {is_special}, marks {pad1:#x} {pad2:#x}, id {id}; "
                f"expected 0 or 1, 0xff 0xff, {i}"
            )
        at += 8
        if end - at < 4 * n:
            raise UserError(f"{where}: tokenizer field ends inside token {i} of {vocab_size}")
        points = struct.unpack_from(f"<{n}I", data, at)
        at += 4 * n
        problem = token_problem(points)
        if problem:
            raise UserError(f"{where}: token {i} {problem}")
        tokens.append("".join(map(chr, points)))
        if is_special:
            special.append(i)
    if at != end:
        raise UserError(f"{where}: tokenizer field is {end} bytes, its tokens take {at}")
    return Vocabulary(_unique(tokens, where), special)


def parse_scored_field(data: memoryview, vocab_size: int, where: str) -> Vocabulary:
    """The vocabulary of a type 3 (Qwen3) file: per token a score, a byte count and the bytes."""
    longest = struct.unpack_from("<I", data, 4)[0]
    tokens: list[str] = []
    scores: list[float] = []
    at, end = 8, len(data)
    for i in range(vocab_size):
        if end - at < 8:
            raise UserError(f"{where}: tokenizer field ends inside token {i} of {vocab_size}")
        score, n = struct.unpack_from("<fI", data, at)
        at += 8
        if n > longest or n > end - at:
            raise UserError(f"{where}: token {i} of {n} bytes; at most {min(longest, end - at)} are left or allowed")
        tokens.append(bytes(data[at : at + n]).decode("utf-8", "surrogateescape"))
        scores.append(score)
        at += n
    if at != end:
        raise UserError(f"{where}: tokenizer field is {end} bytes, its tokens take {at}")
    special = [i for i, t in enumerate(tokens) if t.startswith("<|") and t.endswith("|>")]
    return Vocabulary(tokens, special, scores)


def build_field(vocabulary: Vocabulary) -> bytes:
    """The tokenizer field; the caller has checked the tokens."""
    special = set(vocabulary.special)
    parts = []
    for i, token in enumerate(vocabulary.tokens):
        points = [ord(c) for c in token]
        parts.append(struct.pack(f"<BBBBI{len(points)}I", len(points), i in special, 0xFF, 0xFF, i, *points))
    body = b"".join(parts)
    return struct.pack("<II", 8 + len(body), len(vocabulary.tokens)) + body


def _unique(tokens: list[str], where: str) -> list[str]:
    if len(set(tokens)) < len(tokens):
        seen: dict[str, int] = {}
        for i, token in enumerate(tokens):
            if token in seen:
                raise UserError(
                    f"{where}: tokens {seen[token]} and {i} are both {token!r}; encoding would be ambiguous"
                )
            seen[token] = i
    return tokens
