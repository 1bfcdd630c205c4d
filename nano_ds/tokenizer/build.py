"""Chooses the vocabulary of a trie tokenizer from text.

Special tokens, the 256 bytes, frequent characters, then words. Which words pay under longest-match encoding cannot be
read off their counts (a longer word takes the place of its parts), so: take several times too many candidates, encode a
sample with all of them, drop those that saved least, and repeat until the size is right; then let the best of the
dropped ones try again a few times.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np

from nano_ds.errors import UserError
from nano_ds.tokenizer.trie import TrieTokenizer, byte_token, to_bytes

SPECIAL = (
    "<|padding|>",
    "<|unknown|>",
    "<|bos|>",
    "<|eos|>",
    "<|instruct_mark|>",
    "<|response_mark|>",
    "<|BD4SUR|>",
)
SMALLEST = len(SPECIAL) + 256
LONGEST = 16  # characters of a word; Nano's C programs allow 17

COUNT_CHARS = 12_000_000  # characters of text whose pieces are counted
ENCODE_CHARS = 5_000_000  # characters that are encoded again in each round
CROWD = 8  # candidates per place at the start
SHRINK = 0.8  # share of the candidates that survive a round
RETRIES = 6  # rounds in which dropped candidates come back

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003ffff"
Progress = Callable[[float], object]

# Pieces in which candidates are looked for: CJK runs; words and numbers with a space before; punctuation; white space.
_PIECE = re.compile(rf"[{_CJK}]+| ?[^\W\d_{_CJK}]+| ?\d+| ?[^\w\s]+| ?_+|\n[ \t]*|[ \t]+|\s|.", re.DOTALL)
_IS_CJK = re.compile(rf"[{_CJK}]")


def build_trie(
    documents: Iterable[str], vocab_size: int, total_chars: int = 0, progress: Progress = lambda share: None
) -> TrieTokenizer:
    """A vocabulary of exactly ``vocab_size`` tokens (fewer if the text has no more words that occur twice).

    The same text in the same order gives the same vocabulary.

    Args:
        total_chars: roughly how much text is coming; of more than 12 M characters an even sample is used.
        progress: told, again and again, which further share of the sifting is done; 1 in all.
    """
    if vocab_size < SMALLEST:
        raise UserError(f"--vocab-size: {vocab_size} leaves no room for {SMALLEST} special and byte tokens; take more")
    texts = sample(documents, COUNT_CHARS / total_chars if total_chars > COUNT_CHARS else 1.0)
    if not texts:
        raise UserError("no text to build a vocabulary from; give files that hold some")
    base = [*SPECIAL, *(byte_token(b) for b in range(256))]
    room = vocab_size - len(base)
    chars = _frequent_characters(texts, room // 2)
    base += chars
    room -= len(chars)
    words = _sift(_candidates(texts, CROWD * room, set(chars)), base, room, texts, progress) if room else []
    return TrieTokenizer(base + words, range(len(SPECIAL)))


def sample(documents: Iterable[str], share: float) -> list[str]:
    """The documents whose hash falls below ``share``: the same ones wherever they stand."""
    limit = int(share * 2**64)
    texts = []
    for text in documents:
        digest = hashlib.blake2b(to_bytes(text), digest_size=8, person=b"vocabulary").digest()
        if int.from_bytes(digest, "big") < limit:
            texts.append(text)
    return texts


def _frequent_characters(texts: list[str], most: int) -> list[str]:
    """Characters beyond ASCII worth a token, most frequent first: 99.9 % of the text's, none that is rare."""
    count: Counter[str] = Counter()
    total = 0
    for text in texts:
        total += len(text)
        if not text.isascii():
            count.update(re.sub(r"[\x00-\x7f\ud800-\udfff]+", "", text))
    wanted = 0.999 * sum(count.values())
    least = max(2, total // 100_000)
    chosen: list[str] = []
    for char, n in sorted(count.items(), key=lambda item: (-item[1], item[0])):
        if wanted <= 0 or len(chosen) == most or n < least:
            break
        chosen.append(char)
        wanted -= n
    return chosen


def _candidates(texts: list[str], most: int, chars: set[str]) -> list[str]:
    """Strings that might pay as tokens, by count x (length - 1), best first."""
    pieces: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for text in texts:
        found = _PIECE.findall(text)
        pieces.update(found)
        pairs.update(pairwise(found))
    count: Counter[str] = Counter()
    for piece, n in pieces.items():
        longest = 4 if _IS_CJK.match(piece) else LONGEST
        if n == 1 and longest == LONGEST:
            continue
        for start in range(min(len(piece), 64 if longest == LONGEST else 1 << 20)):
            for end in range(start + 2, min(start + longest, len(piece)) + 1):
                count[piece[start:end]] += n
    for (left, right), n in pairs.items():
        if n > 2 and len(left) + len(right) <= LONGEST:
            count[left + right] += n
    for unit in [w for w in count if "\ud800" <= max(w) <= "\udfff" or "\0" in w or not _covered(w, chars)]:
        del count[unit]
    best = sorted((w for w, n in count.items() if n > 1), key=lambda w: (-count[w] * (len(w) - 1), w))
    return best[:most]


def _covered(word: str, chars: set[str]) -> bool:
    return word.isascii() or all(c.isascii() or c in chars for c in word)


def _sift(words: list[str], base: list[str], room: int, texts: list[str], progress: Progress) -> list[str]:
    """The ``room`` words that save most tokens when they are all there together, best first."""
    stride = max(1, sum(map(len, texts)) // ENCODE_CHARS)
    sample = texts[::stride]
    dropped: dict[str, float] = {}
    plan: list[int] = []
    size = len(words)
    while size > room:
        size = max(room, int(size * SHRINK))
        plan.append(size)
    rounds = len(plan) + RETRIES
    for size in plan:
        words = _best(words, base, size, sample, dropped)
        progress(1 / rounds)
    for _ in range(RETRIES):
        again = sorted(dropped, key=lambda w: (-dropped[w], w))[: room // 4]
        for word in again:
            del dropped[word]
        words = _best(words + again, base, room, sample, dropped)
        progress(1 / rounds)
    return words


def _best(words: list[str], base: list[str], size: int, sample: list[str], dropped: dict[str, float]) -> list[str]:
    """Encodes the sample with all ``words``; keeps the ``size`` that saved most, notes the saving of the others."""
    tokenizer = TrieTokenizer(base + words, range(len(SPECIAL)))
    uses = np.zeros(tokenizer.vocab_size, np.int64)
    for text in sample:
        uses += np.bincount(tokenizer.encode_array(text), minlength=len(uses))
    saving = {}
    known = set(words)
    for i, word in enumerate(words, start=len(base)):
        # Without the word, its characters would be taken by the longest shorter tokens.
        saving[word] = float(uses[i]) * (_pieces_without(word, known) - 1)
    ranked = sorted(words, key=lambda w: (-saving[w], w))
    dropped.update((w, saving[w]) for w in ranked[size:])
    return ranked[:size]


def _pieces_without(word: str, known: set[str]) -> int:
    """Into how many tokens the word falls when it is no token itself."""
    pieces = at = 0
    while at < len(word):
        end = len(word) - (at == 0)
        while end > at + 1 and word[at:end] not in known:
            end -= 1
        at = max(end, at + 1)
        pieces += 1
    return pieces
