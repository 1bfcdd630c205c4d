"""The trie tokenizer: at each place the longest token that fits (maximum forward matching), with byte fallback.

Defined over characters: take the longest token that starts here; where none does, the bytes of the character, one token
each. Computed over bytes by an Aho-Corasick automaton with leftmost-longest matching, which is the same thing: UTF-8
never puts one character inside another, and with all 256 bytes in the vocabulary something matches everywhere.
A vocabulary without the 256 bytes (imported from Nano) turns every character it lacks into ``<|unknown|>``.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

from nano_ds.errors import UserError
from nano_ds.files import atomic_write, read_json
from nano_ds.tokenizer.base import Tokenizer

UNKNOWN = "<|unknown|>"
WINDOW = 1 << 14  # bytes matched at once: small enough that the matches stay in the processor's cache


class TrieTokenizer(Tokenizer):
    """Maximum forward matching over a fixed list of tokens."""

    FORMAT = "nano_ds.trie"
    VERSION = 1

    def __init__(self, tokens: Sequence[str], special: Sequence[int], source: str = "vocabulary"):
        """``tokens`` by id; ``special`` are the ids that ordinary text never becomes. Raises UserError if invalid."""
        _check(tokens, special, source)
        self.tokens = list(tokens)
        self.special = {self.tokens[i]: i for i in special}
        self.has_bytes = byte_tokens() <= set(self.tokens)
        if not self.has_bytes and UNKNOWN not in self.special:
            raise UserError(
                f"{source}: lacks some of the 256 byte tokens and has no special {UNKNOWN} for what it cannot encode; "
                "build it again with `nano-ds tokenizer trie`"
            )
        self._bytes = [t.encode("utf-8", "surrogateescape") for t in self.tokens]
        self._matchers: dict[bool, tuple[BytesAhoCorasick, np.ndarray, int]] = {}
        tree = {"format": self.FORMAT, "version": self.VERSION, "tokens": self.tokens, "special": sorted(special)}
        self._tree: dict[str, Any] = tree
        canonical = json.dumps(tree, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
        self._fingerprint = hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < len(self._bytes):
            raise ValueError(f"token id {id} is outside the vocabulary of {len(self._bytes)}")
        return self._bytes[id]

    def encode_array(self, text: str | bytes, allow_special: bool = False) -> np.ndarray:
        data = text if isinstance(text, bytes) else to_bytes(text)
        matcher, ids, longest = self._matcher(allow_special)
        if not self.has_bytes:
            return self._encode_with_gaps(data, matcher, ids)
        window = max(WINDOW, 4 * longest)
        parts = []
        pos = 0
        with _no_gc():
            while pos < len(data):
                # A match that starts inside the window sees every byte that could make it longer.
                found = matcher.find_matches_as_indexes(data[pos : pos + window + longest])
                if pos + window + longest < len(data):
                    while found[-1][1] >= window:
                        found.pop()
                parts.append(np.fromiter([m for m, _, _ in found], np.uint32, len(found)))
                pos += found[-1][2]
        return ids[np.concatenate(parts)] if parts else np.zeros(0, np.uint32)

    def save(self, path: str | Path) -> None:
        with atomic_write(path, "w") as f:
            json.dump(self._tree, f, ensure_ascii=True)
            f.write("\n")

    @classmethod
    def from_tree(cls, tree: Any, source: str) -> TrieTokenizer:
        """The tokenizer of a parsed ``tokenizer.json``."""
        version = tree.get("version")
        if version != cls.VERSION:
            raise UserError(
                f"{source}: tokenizer version {version!r}, this program reads {cls.VERSION}; update nano_ds"
            )
        unknown = set(tree) - {"format", "version", "tokens", "special"}
        if unknown:
            raise UserError(f"{source}: unknown key {sorted(unknown)[0]!r}; build the vocabulary again")
        tokens, special = tree.get("tokens"), tree.get("special")
        if not isinstance(tokens, list) or not isinstance(special, list):
            raise UserError(f'{source}: "tokens" and "special" must be lists; build the vocabulary again')
        return cls(tokens, special, source)

    @classmethod
    def from_nano_json(cls, nano: str | Path | dict[str, Any], source: str = "") -> TrieTokenizer:
        """The tokenizer in Nano's JSON (``vocab_size``, ``stoi``, ``itos``, ``special_tokens``).

        ``encode(text, allow_special=True)`` gives exactly the ids that Nano gives.
        """
        tree: Any = nano if isinstance(nano, dict) else read_json(nano, "a tokenizer of Nano")
        source = source or ("Nano tokenizer" if isinstance(nano, dict) else str(nano))
        stoi = tree.get("stoi") if isinstance(tree, dict) else None
        special = tree.get("special_tokens") if isinstance(tree, dict) else None
        if not isinstance(stoi, dict) or not isinstance(special, dict):
            raise UserError(f'{source}: "stoi" and "special_tokens" must be mappings of token to id; export it again')
        tokens: list[str | None] = [None] * len(stoi)
        for token, id in stoi.items():
            if type(id) is not int or not 0 <= id < len(stoi):
                raise UserError(
                    f"{source}: token {token!r} has id {id!r}, outside 0..{len(stoi) - 1}; ids have no gaps"
                )
            if tokens[id] is not None:
                raise UserError(f"{source}: id {id} belongs to both {tokens[id]!r} and {token!r}; mend one of them")
            tokens[id] = token
        if tree.get("vocab_size", len(stoi)) != len(stoi):
            raise UserError(f"{source}: vocab_size {tree['vocab_size']!r}, but {len(stoi)} tokens; the file is damaged")
        if "itos" in tree and tree["itos"] != tokens:
            raise UserError(f'{source}: "itos" and "stoi" contradict each other; the file is damaged')
        for token, id in special.items():
            if stoi.get(token) != id:
                raise UserError(f"{source}: special token {token!r} has id {id!r}, in stoi {stoi.get(token)!r}")
        return cls([t for t in tokens if t is not None], sorted(special.values()), source)

    def _matcher(self, allow_special: bool) -> tuple[BytesAhoCorasick, np.ndarray, int]:
        """The automaton, the id of each of its patterns, and the length of the longest pattern."""
        if allow_special not in self._matchers:
            left_out = set() if allow_special else set(self.special.values())
            ids = [i for i in range(len(self._bytes)) if i not in left_out]
            patterns = [self._bytes[i] for i in ids]
            # The contiguous NFA is as fast as the DFA here, builds in a fifth of the time and stays small.
            matcher = BytesAhoCorasick(patterns, MatchKind.LeftmostLongest, Implementation.ContiguousNFA)
            self._matchers[allow_special] = (matcher, np.array(ids, np.uint32), max(map(len, patterns), default=1))
        return self._matchers[allow_special]

    def _encode_with_gaps(self, data: bytes, matcher: BytesAhoCorasick, ids: np.ndarray) -> np.ndarray:
        with _no_gc():
            found = np.array(matcher.find_matches_as_indexes(data), np.int64).reshape(-1, 3)
        starts = np.append(found[:, 1], len(data))
        ends = np.insert(found[:, 2], 0, 0)
        at = np.nonzero(starts != ends)[0]
        missing = [len(data[ends[i] : starts[i]].decode("utf-8", "surrogateescape")) for i in at]
        return np.insert(ids[found[:, 0]], np.repeat(at, missing), self.special[UNKNOWN]).astype(np.uint32)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_matchers": {}}  # automata do not travel to worker processes; they build their own


def byte_token(byte: int) -> str:
    """The token of one byte: its character below 0x80, else the lone surrogate of PEP 383."""
    return chr(byte) if byte < 0x80 else chr(0xDC00 + byte)


def byte_tokens() -> set[str]:
    return {byte_token(b) for b in range(256)}


def to_bytes(text: str) -> bytes:
    """UTF-8 of ``text``; bytes escaped as U+DC80..U+DCFF come back as they were, other lone surrogates as U+FFFD."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        lone = dict.fromkeys([*range(0xD800, 0xDC80), *range(0xDD00, 0xE000)], "\ufffd")
        return text.translate(lone).encode("utf-8", "surrogateescape")


@contextmanager
def _no_gc() -> Iterator[None]:
    """Millions of short-lived tuples would set off the garbage collector again and again for nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _check(tokens: Sequence[Any], special: Sequence[Any], source: str) -> None:
    """Raises UserError at the first thing that makes the vocabulary ambiguous."""
    again = "build the vocabulary again"
    if not tokens:
        raise UserError(f"{source}: no tokens; {again}")
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if not isinstance(token, str) or not token:
            raise UserError(f"{source}: token {i} is {token!r}, it must be text of at least one character; {again}")
        if token in seen:
            raise UserError(f"{source}: tokens {seen[token]} and {i} are both {token!r}; {again}")
        seen[token] = i
        surrogate = not token.isascii() and any("\ud800" <= c <= "\udfff" for c in token)
        if surrogate and not (len(token) == 1 and "\udc80" <= token <= "\udcff"):
            raise UserError(f"{source}: token {i} {token!r} holds half a character; only single bytes may; {again}")
    high = sum(byte_token(b) in seen for b in range(128, 256))
    if high not in (0, 128):
        raise UserError(f"{source}: {high} of the 128 byte tokens 0x80-0xFF; all or none must be there; {again}")
    for id in special:
        if type(id) is not int or not 0 <= id < len(tokens):
            raise UserError(f"{source}: special id {id!r} is outside 0..{len(tokens) - 1}; {again}")
    if len(set(special)) != len(special):
        raise UserError(f"{source}: a special id is listed twice; {again}")
    for id in special:
        if tokens[id] in byte_tokens():
            raise UserError(f"{source}: special token {id} is the byte {tokens[id]!r}; bytes are ordinary; {again}")
