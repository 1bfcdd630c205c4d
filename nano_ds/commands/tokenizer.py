"""`nano-ds tokenizer`: build a vocabulary, or look at one."""

from __future__ import annotations

import argparse
import sys

HELP = """\
Build the vocabulary of a tokenizer from text, or look at one.

A trie tokenizer takes, at each place of the text, the longest token that fits; what no token covers becomes single
bytes, so nothing is ever unknown and decoding gives back the very text. `nano-ds prepare -c RECIPE` builds one too.

  nano-ds tokenizer trie --text book.txt --vocab-size 4096 -o tokenizer.json
  nano-ds tokenizer show tokenizer.json "Longest match wins."
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    trie = sub.add_parser("trie", help="build a vocabulary from text", description="Build a vocabulary from text.")
    trie.add_argument(
        "--text", nargs="+", required=True, metavar="F", help="text files, folders, .jsonl, builtin:python-docs"
    )
    trie.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="tokens, at least 263 (default 4096)")
    trie.add_argument("-o", "--out", required=True, metavar="FILE", help="tokenizer.json to write")
    trie.add_argument("--force", action="store_true", help="replace FILE if it exists")
    show = sub.add_parser(
        "show", help="facts of a vocabulary; with TEXT, its tokens", description="Look at a vocabulary."
    )
    show.add_argument("file", help="tokenizer.json")
    show.add_argument("text", nargs="?", help="text to encode")


def run(args: argparse.Namespace) -> int:
    return build(args) if args.action == "trie" else show(args)


def build(args: argparse.Namespace) -> int:
    from pathlib import Path

    from nano_ds.commands.prepare import build_vocabulary
    from nano_ds.errors import UserError

    if Path(args.out).exists() and not args.force:
        raise UserError(
            f"{args.out}: exists already; --force replaces it (sets prepared with it must be prepared again)"
        )
    build_vocabulary(args.text, args.vocab_size, args.out)
    print(f"next: nano-ds prepare --text … --tokenizer {args.out} --out data/mine")
    return 0


def show(args: argparse.Namespace) -> int:
    from nano_ds.tokenizer import load_tokenizer
    from nano_ds.tokenizer.trie import TrieTokenizer, byte_tokens

    tokenizer = load_tokenizer(args.file)
    if args.text is not None:
        ids = tokenizer.encode(args.text)
        for id in ids:
            print(f"{id:>7}  {tokenizer.tokens[id]!r}")
        size = len(args.text.encode("utf-8", "surrogateescape"))
        print(f"{len(ids)} tokens, {size / max(1, len(ids)):.2f} bytes per token", file=sys.stderr)
        return 0
    single = byte_tokens()
    words = [t for t in tokenizer.tokens if t not in tokenizer.special and t not in single]
    complete = isinstance(tokenizer, TrieTokenizer) and tokenizer.has_bytes
    facts = {
        "vocabulary": f"{tokenizer.vocab_size:,} tokens",
        "special": ", ".join(f"{t} {i}" for t, i in tokenizer.special.items()),
        "bytes": "all 256: encodes any text, losslessly"
        if complete
        else "not all 256: what it lacks becomes <|unknown|>",
        "characters": f"{sum(len(t) == 1 for t in words):,} beyond the single bytes",
        "words": f"{sum(len(t) > 1 for t in words):,}, the longest of {max(map(len, words), default=0)} characters",
        "fingerprint": tokenizer.fingerprint,
    }
    for name, fact in facts.items():
        print(f"{name:<12} {fact}")
    return 0
