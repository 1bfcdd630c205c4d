"""Encoding speed: our trie tokenizer against plain-Python tries and tiktoken, on the same text in the same run.

    python benchmarks/tokenizer.py [--text FILE] [--vocab-size N] [--rounds N]

The contenders take turns (A B C A B C …); the table shows medians. ``prefixes`` is how Nano encodes: try the longest
prefix of the remaining text first, then shorter ones, and cut it off. ``walk`` is the best that a plain-Python trie
can do: walk down once per token. Both must give our ids. tiktoken encodes with a byte-level BPE vocabulary of the same
size, trained here on the same text, on one thread, as ours does. The plain-Python ones get a smaller sample.
"""

from __future__ import annotations

import argparse
import collections
import heapq
import platform
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from nano_ds.corpus import python_docs
from nano_ds.tokenizer.build import build_trie
from nano_ds.tokenizer.trie import TrieTokenizer

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
SLOW_BYTES = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="another text to measure, UTF-8 (for example Chinese)")
    parser.add_argument("--vocab-size", type=int, default=4096, help="tokens of each vocabulary (default 4096)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender (default 7)")
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}")
    compare("English (builtin:python-docs)", list(python_docs()), args)
    if args.text:
        text = Path(args.text).read_text(encoding="utf-8")
        compare(args.text, [text[i : i + 8000] for i in range(0, len(text), 8000)], args)


def compare(name: str, documents: list[str], args: argparse.Namespace) -> None:
    train = [d for i, d in enumerate(documents) if i % 10]
    held = [d for i, d in enumerate(documents) if i % 10 == 0]
    tokenizer = build_trie(train, args.vocab_size)
    bpe = train_bpe(train, args.vocab_size)
    plain = PlainTrie(tokenizer)
    some, size = [], 0
    for d in held:
        if size < SLOW_BYTES:
            some.append(d)
            size += len(d.encode())
    for d in some:
        ids = tokenizer.encode(d)
        assert ids == plain.walk(d) == plain.prefixes(d), "the plain tries must agree with ours"
    contenders: list[tuple[str, Callable[[str], Any], list[str]]] = [
        ("nano_ds", tokenizer.encode_array, held),
        ("nano_ds, list", tokenizer.encode, held),
        ("prefixes (Nano's way)", plain.prefixes, some),
        ("walk (plain trie)", plain.walk, some),
        ("tiktoken", bpe.encode_ordinary, held),
    ]
    speeds: dict[str, list[float]] = {label: [] for label, _, _ in contenders}
    for _ in range(args.rounds):
        for label, encode, texts in contenders:
            start = time.perf_counter()
            for text in texts:
                encode(text)
            speeds[label].append(sum(len(t.encode()) for t in texts) / 1e6 / (time.perf_counter() - start))
    print(f"\n{name}: vocabulary {args.vocab_size}, {sum(len(t.encode()) for t in held) / 1e6:.2f} MB held out")
    print(f"{'':24}{'MB/s':>8}{'spread':>14}{'ours is':>9}{'chars/token':>13}")
    ours = statistics.median(speeds["nano_ds"])
    for label, encode, texts in contenders:
        speed = statistics.median(speeds[label])
        spread = f"{min(speeds[label]):.2f}-{max(speeds[label]):.2f}"
        per = sum(map(len, texts)) / sum(len(encode(t)) for t in texts) if texts is held else 0
        print(f"{label:24}{speed:8.2f}{spread:>14}{ours / speed:8.1f}x" + (f"{per:13.2f}" if per else ""))


class PlainTrie:
    """Longest matching in plain Python, two ways."""

    def __init__(self, tokenizer: TrieTokenizer):
        self.id = {t: i for i, t in enumerate(tokenizer.tokens) if t not in tokenizer.special}
        self.single = {b: tokenizer.tokens.index(chr(b) if b < 128 else chr(0xDC00 + b)) for b in range(256)}
        self.longest = max(map(len, self.id))
        self.root: dict[Any, Any] = {}
        for token, id in self.id.items():
            node = self.root
            for char in token:
                node = node.setdefault(char, {})
            node[""] = id

    def prefixes(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            for n in range(min(self.longest, len(text)), 0, -1):
                if self._holds(text[:n]):
                    ids.append(self.id[text[:n]])
                    text = text[n:]
                    break
            else:
                ids += [self.single[b] for b in text[0].encode("utf-8", "surrogateescape")]
                text = text[1:]
        return ids

    def _holds(self, word: str) -> bool:
        node = self.root
        for char in word:
            if char not in node:
                return False
            node = node[char]
        return "" in node

    def walk(self, text: str) -> list[int]:
        ids: list[int] = []
        at, size = 0, len(text)
        while at < size:
            node, here, best, end = self.root, at, -1, at + 1
            while here < size and text[here] in node:
                node = node[text[here]]
                here += 1
                if "" in node:
                    best, end = node[""], here
            if best < 0:
                ids += [self.single[b] for b in text[at].encode("utf-8", "surrogateescape")]
            else:
                ids.append(best)
            at = end
        return ids


def train_bpe(texts: list[str], vocab_size: int) -> Any:
    """A byte-level BPE vocabulary as a tiktoken Encoding: merge the commonest pair until there are enough tokens."""
    import regex
    import tiktoken

    counts: collections.Counter[bytes] = collections.Counter()
    for text in texts:
        counts.update(w.encode() for w in regex.findall(PATTERN, text))
    words = [[bytes([b]) for b in w] for w in counts]
    often = list(counts.values())
    ranks = {bytes([b]): b for b in range(256)}
    pairs: collections.Counter[tuple[bytes, bytes]] = collections.Counter()
    where: dict[tuple[bytes, bytes], set[int]] = collections.defaultdict(set)
    for i, w in enumerate(words):
        for p in pairwise(w):
            pairs[p] += often[i]
            where[p].add(i)
    heap = [(-n, p) for p, n in pairs.items()]
    heapq.heapify(heap)
    while len(ranks) < vocab_size and heap:
        n, best = heapq.heappop(heap)
        if pairs[best] != -n or n > -2:
            continue  # out of date: a newer entry says what it is now
        touched: set[tuple[bytes, bytes]] = set()
        ranks.setdefault(best[0] + best[1], len(ranks))
        for i in where.pop(best):
            old = words[i]
            for p in pairwise(old):
                pairs[p] -= often[i]
                touched.add(p)
            new: list[bytes] = []
            for part in old:
                if new and (new[-1], part) == best:
                    new[-1] += part
                else:
                    new.append(part)
            words[i] = new
            for p in pairwise(new):
                pairs[p] += often[i]
                where[p].add(i)
                touched.add(p)
        pairs[best] = 0
        for p in sorted(touched - {best}):
            heapq.heappush(heap, (-pairs[p], p))
    return tiktoken.Encoding("bench", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


if __name__ == "__main__":
    main()
