r"""Byte-level BPE: text is cut into pieces by a pre-tokeniser, and the bytes of each piece merge by a fixed list.

From text to ids, in this order:

1. Special and "added" tokens (`<think>`) are looked for: leftmost, then longest. Added ones are cut out always, special
   ones where the caller allows them; where not, one that is found stays text as a whole.
2. What lies between is normalised (NFC where the vocabulary says so; then decoding gives back the NFC of the text).
3. The pre-tokeniser (`pre.py`) cuts it into pieces.
4. With `ignore_merges` a piece that is a token is taken whole.
5. Else its bytes are tokens, and the listed pair that stands earliest in the list merges, leftmost first, again and
   again. A byte for which the vocabulary has no token is left out before that (SmolLM2 lacks 21, as control
   characters): what was on its two sides may merge.

Any bytes are text. A byte that is no part of valid UTF-8 is to the pre-tokeniser one character that is neither letter,
number nor white space; the bytes of its piece then merge like any others. Invalid are: overlong forms, surrogates
(ED A0..BF), code points above U+10FFFF, continuation bytes without a lead, and every byte of a cut sequence.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from nano_ds.errors import UserError
from nano_ds.files import atomic_write
from nano_ds.tokenizer.base import Tokenizer
from nano_ds.tokenizer.merges import NEVER, reachable
from nano_ds.tokenizer.nfc import nfc
from nano_ds.tokenizer.pre import check_name, cut
from nano_ds.tokenizer.trie import to_bytes

_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # half a character, and no escaped byte
_ESCAPED = re.compile("[\ud800-\udfff]")
CACHED_PIECES = 1 << 17
CACHED_CHARS = 64  # longer pieces hardly ever come again
KEYS = (
    *("format", "version", "pre", "normalize", "ignore_merges", "tokens", "merges", "special", "added"),
    *("eos", "bos", "add_bos", "stop", "chat_template"),
)


class BPETokenizer(Tokenizer):
    """Merges over bytes, as GPT-2, SmolLM2, Llama 3 and Qwen do it: the same ids as the `tokenizers` library gives."""

    FORMAT = "nano_ds.bpe"
    VERSION = 1

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Sequence[Sequence[int]] | np.ndarray,
        pre: str,
        *,
        normalize: str | None = None,
        ignore_merges: bool = False,
        special: Sequence[int] = (),
        added: Sequence[int] = (),
        eos: int | None = None,
        bos: int | None = None,
        add_bos: bool = False,
        stop: Sequence[int] = (),
        chat_template: str | None = None,
        source: str = "vocabulary",
    ):
        """Everything that `tokenizer.json` holds (docs/tokenizers.md).

        Args:
            tokens: text by id; bytes that are no UTF-8 as U+DC80..U+DCFF.
            merges: pairs of ids, most urgent first.
            pre: name of the pre-tokeniser.
            normalize: None or "nfc".
            special: ids that a user's own text never becomes.
            added: ids of tokens that are found in text before anything else.
            eos: ends a document. bos: begins one; ``add_bos``: the model expects it before every prompt.
            stop: ids that end an answer, beside ``eos``.
            chat_template: as the model's maker wrote it (Jinja).

        Raises:
            UserError: it contradicts itself; names ``source``.
        """
        self.tokens = list(tokens)
        self.pre, self.normalize, self.ignore_merges = pre, normalize, ignore_merges
        self.eos, self.bos, self.add_bos, self.stop = eos, bos, add_bos, list(stop)
        self.chat_template = chat_template
        self.added = list(added)
        self._source = source
        _check(self, special)
        self.added.sort()
        check_name(pre, source)
        self.merges = _pairs(merges, len(self.tokens), source)
        self.special = {self.tokens[i]: i for i in sorted(special)}
        self._bytes = [t.encode("utf-8", "surrogateescape") for t in self.tokens]
        ordinary = _ordinary(self._bytes, set(special), set(added))
        self._ranks = reachable(self._bytes, self.merges, ordinary, source)
        self._whole = {self._bytes[i]: i for i in np.nonzero(ordinary)[0].tolist()} if ignore_merges else {}
        known = {self._bytes[i][0] for i in np.nonzero(self._ranks == -1)[0].tolist()}
        self.missing_bytes = bytes(b for b in range(256) if b not in known)
        self._pieces: _Pieces | None = None
        self._mark_ids = {**self.special, **{self.tokens[i]: i for i in self.added}}
        names = sorted(self._mark_ids, key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, names))) if names else None
        self._fingerprint = _fingerprint(self._tree())

    @property
    def fingerprint(self) -> str:
        """Of all but the chat template and the stop ids, which change no token of a text."""
        return self._fingerprint

    @property
    def eos_id(self) -> int:
        if self.eos is None:
            raise UserError(f"{self._source}: the vocabulary names no token that ends a document; set its eos")
        return self.eos

    @property
    def bos_ids(self) -> list[int]:
        return [self.bos] if self.add_bos and self.bos is not None else []

    @property
    def stop_ids(self) -> list[int]:
        """``eos``, the ids of ``stop``, and what ends a text by its name."""
        return list(dict.fromkeys([*([] if self.eos is None else [self.eos]), *self.stop, *super().stop_ids]))

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < len(self._bytes):
            raise ValueError(f"token id {id} is outside the vocabulary of {len(self._bytes)}")
        return self._bytes[id]

    def encode_array(self, text: str | bytes, allow_special: bool = False) -> np.ndarray:
        data = text if isinstance(text, bytes) else to_bytes(text)
        if self._pieces is None:
            self._pieces = _Pieces(self._bytes, self._ranks, self._whole, self.missing_bytes)
        encoded: Iterator[list[int]] = chain.from_iterable(
            (part,) if isinstance(part, list) else map(self._pieces.__getitem__, cut(self.pre, part))
            for part in self._parts(data.decode("utf-8", "surrogateescape"), allow_special)
        )
        return np.fromiter(chain.from_iterable(encoded), np.uint32)

    def save(self, path: str | Path) -> None:
        with atomic_write(path, "w") as f:
            json.dump(self._tree(), f, ensure_ascii=True, separators=(",", ":"))
            f.write("\n")

    @classmethod
    def from_tree(cls, tree: dict[str, Any], source: str) -> BPETokenizer:
        """The tokenizer of a parsed ``tokenizer.json``. Raises UserError for whatever is wrong with it."""
        if tree.get("version") != cls.VERSION:
            raise UserError(
                f"{source}: tokenizer version {tree.get('version')!r}, this program reads {cls.VERSION}; update nano_ds"
            )
        for key in sorted(set(tree) ^ set(KEYS)):
            raise UserError(f"{source}: {'unknown' if key in tree else 'no'} key {key!r}; import the model again")
        wanted: dict[str, type | tuple[type, ...]] = {
            **dict.fromkeys(("tokens", "merges", "special", "added", "stop"), list),
            **dict.fromkeys(("ignore_merges", "add_bos"), bool),
            **dict.fromkeys(("normalize", "chat_template"), (str, type(None))),
            "pre": str,
        }
        for key, kind in wanted.items():
            if not isinstance(tree[key], kind):
                raise UserError(f"{source}: {key!r} is a {type(tree[key]).__name__}; import the model again")
        return cls(**{k: tree[k] for k in KEYS[2:]}, source=source)

    def _tree(self) -> dict[str, Any]:
        values = {
            "format": self.FORMAT,
            "version": self.VERSION,
            "merges": self.merges.tolist(),
            "special": sorted(self.special.values()),
        }
        return {k: values[k] if k in values else getattr(self, k) for k in KEYS}

    def _parts(self, text: str, allow_special: bool) -> Iterator[str | list[int]]:
        """Text between marks, and the marks' ids; text comes normalised."""
        at = 0
        # Special tokens are looked for even where they may not be found, and then hide added tokens inside them.
        looking = self._marks.finditer(text) if self._marks and (allow_special or self.added) else ()
        for found in looking:
            id = self._mark_ids[found[0]]
            if allow_special or found[0] not in self.special:
                yield from self._stretch(text[at : found.start()])
                yield [id]
                at = found.end()
        yield from self._stretch(text[at:])

    def _stretch(self, text: str) -> Iterator[str]:
        if text:
            yield nfc(text) if self.normalize == "nfc" else text

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pieces": None}  # a worker process builds its own


class _Pieces(dict[str, list[int]]):
    """The ids of each piece, computed when first asked for."""

    def __init__(self, tokens: Sequence[bytes], ranks: np.ndarray, whole: dict[bytes, int], missing: bytes):
        usable = np.nonzero(ranks != NEVER)[0]
        usable = usable[np.argsort(ranks[usable], kind="stable")]
        in_order = bool((np.diff(usable[ranks[usable] >= 0]) > 0).all())  # then ids serve as ranks, which is faster
        self._ids = None if in_order else usable.tolist()
        table = {tokens[id]: id if in_order else rank for rank, id in enumerate(usable.tolist())}
        # Its regular expression goes unused: `regex` cuts, this merges, in n log n for the longest of pieces.
        self._merge = tiktoken.Encoding("nano_ds", pat_str=".", mergeable_ranks=table, special_tokens={})
        self._whole, self._missing = whole, missing

    def __missing__(self, piece: str) -> list[int]:
        data = piece.encode("utf-8", "surrogateescape")
        ids: list[int]
        if data in self._whole:
            ids = [self._whole[data]]
        else:
            if self._missing:
                data = data.translate(None, self._missing)
            ids = self._merge._encode_single_piece(data) if data else []
            if self._ids is not None:
                ids = [self._ids[rank] for rank in ids]
        if len(piece) <= CACHED_CHARS:
            if len(self) >= CACHED_PIECES:
                self.clear()
            self[piece] = ids
        return ids


def _fingerprint(tree: dict[str, Any]) -> str:
    decisive = {k: v for k, v in tree.items() if k not in ("chat_template", "stop")}
    return hashlib.sha256(json.dumps(decisive, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def _ordinary(tokens: Sequence[bytes], special: set[int], added: set[int]) -> np.ndarray:
    """(V,) bool: what text may become by merges. Of tokens with the same bytes, the first that was not added."""
    ordinary = np.zeros(len(tokens), bool)
    seen: set[bytes] = set()
    for id in [*(i for i in range(len(tokens)) if i not in added), *sorted(added)]:
        if id not in special and tokens[id] not in seen:
            seen.add(tokens[id])
            ordinary[id] = True
    return ordinary


def _pairs(merges: Any, size: int, source: str) -> np.ndarray:
    """(M, 2) int64."""
    if len(merges) == 0:
        return np.zeros((0, 2), np.int64)
    again = "import the model again"
    try:
        pairs = np.array(merges)
    except ValueError:  # of different lengths
        pairs = np.zeros(0)
    if pairs.shape != (len(merges), 2) or pairs.dtype.kind not in "iu":
        wrong = (k for k, pair in enumerate(merges) if np.shape(pair) != (2,) or {type(i) for i in pair} != {int})
        k = next(wrong, 0)
        raise UserError(f"{source}: merge {k} is {merges[k]!r}, not two ids; {again}")
    outside = np.nonzero(((pairs < 0) | (pairs >= size)).any(axis=1))[0]
    if len(outside):
        k = int(outside[0])
        raise UserError(f"{source}: merge {k} {pairs[k].tolist()} names an id outside 0..{size - 1}; {again}")
    return pairs.astype(np.int64)


def _check(t: BPETokenizer, special: Sequence[Any]) -> None:
    """Raises UserError at the first thing that makes the vocabulary invalid or ambiguous."""

    def fail(what: str) -> UserError:
        return UserError(f"{t._source}: {what}; import the model again")

    if not t.tokens:
        raise fail("no tokens")
    for i, token in enumerate(t.tokens):
        if not isinstance(token, str) or not token:
            raise fail(f"token {i} is {token!r}, it must be text of at least one character")
        if not token.isascii() and _HALF.search(token):
            raise fail(f"token {i} {token!r} holds half a character; only bytes may be escaped (U+DC80..U+DCFF)")
    ones: Iterable[tuple[str, int | None]] = (("eos", t.eos), ("bos", t.bos))
    ids = [*(("special", i) for i in special), *(("added", i) for i in t.added), *(("stop", i) for i in t.stop)]
    for what, id in [*ids, *((w, i) for w, i in ones if i is not None)]:
        if type(id) is not int or not 0 <= id < len(t.tokens):
            raise fail(f"{what} id {id!r} is outside 0..{len(t.tokens) - 1}")
    names: dict[str, int] = {}
    for what, id in ids:
        token = t.tokens[id]
        if what == "stop":
            continue
        if _ESCAPED.search(token):
            raise fail(f"{what} token {id} {token!r} is no text, so it could not be found in text")
        if token in names:
            raise fail(f"tokens {names[token]} and {id} are both {token!r}, and special or added")
        names[token] = id
    if t.add_bos and t.bos is None:
        raise fail("add_bos without a bos")
    if t.normalize not in (None, "nfc"):
        raise fail(f"normalize is {t.normalize!r}, not null or 'nfc'")
