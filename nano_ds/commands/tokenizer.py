"""`nano-ds tokenizer`: build a vocabulary, or look at one."""

from __future__ import annotations

import argparse
import sys

HELP = """\
Build the vocabulary of a tokenizer from text, or look at one.

A trie tokenizer takes, at each place of the text, the longest token that fits; what no token covers becomes single
bytes, so nothing is ever unknown and decoding gives back the very text. A bpe tokenizer merges the bytes of a word by
rules learned from the text, as GPT-2, Llama 3 and Qwen do. `nano-ds prepare -c RECIPE` builds either, too.

  nano-ds tokenizer trie --text book.txt --vocab-size 4096 -o tokenizer.json
  nano-ds tokenizer bpe --text book.txt --vocab-size 4096 --pre qwen2 -o tokenizer.json
  nano-ds tokenizer show tokenizer.json "Longest match wins."
"""

PRE = ("gpt-2", "smollm", "llama-bpe", "qwen2")  # as in nano_ds.tokenizer.pre, which takes long to load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for kind, what in (("trie", "longest match"), ("bpe", "byte-level BPE")):
        title = f"Build a vocabulary ({what}) from text."
        made = sub.add_parser(kind, help=f"build a vocabulary from text: {what}", description=title)
        made.add_argument(
            "--text", nargs="+", required=True, metavar="F", help="text files, folders, .jsonl, builtin:python-docs"
        )
        made.add_argument(
            "--vocab-size", type=int, default=4096, metavar="N", help="tokens, at least 263 (default 4096)"
        )
        if kind == "bpe":
            made.add_argument(
                "--pre",
                default="gpt-2",
                choices=PRE,
                help="how text is cut first: numbers whole (gpt-2), by 3 digits (llama-bpe) or by 1 (default gpt-2)",
            )
        made.add_argument("-o", "--out", required=True, metavar="FILE", help="tokenizer.json to write")
        made.add_argument("--force", action="store_true", help="replace FILE if it exists")
    show = sub.add_parser(
        "show", help="facts of a vocabulary; with TEXT, its tokens", description="Look at a vocabulary."
    )
    show.add_argument("file", help="tokenizer.json")
    show.add_argument("text", nargs="?", help="text to encode")


def run(args: argparse.Namespace) -> int:
    return show(args) if args.action == "show" else build(args)


def build(args: argparse.Namespace) -> int:
    from pathlib import Path

    from nano_ds.commands.prepare import build_vocabulary
    from nano_ds.errors import UserError

    if Path(args.out).exists() and not args.force:
        raise UserError(
            f"{args.out}: exists already; --force replaces it (sets prepared with it must be prepared again)"
        )
    build_vocabulary(args.text, args.vocab_size, args.out, args.action, getattr(args, "pre", "gpt-2"))
    print(f"next: nano-ds prepare --text … --tokenizer {args.out} --out data/mine")
    return 0


def show(args: argparse.Namespace) -> int:
    from nano_ds.tokenizer import BPETokenizer, TrieTokenizer, load_tokenizer
    from nano_ds.tokenizer.trie import byte_tokens

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
    special = [f"{t} {i}" for t, i in tokenizer.special.items()]
    facts = {
        "vocabulary": f"{tokenizer.vocab_size:,} tokens",
        "special": ", ".join(special[:24]) + (f" and {len(special) - 24} more" if len(special) > 24 else ""),
        "bytes": "all 256: encodes any text, losslessly",
        "characters": f"{sum(len(t) == 1 for t in words):,} beyond the single bytes",
        "words": f"{sum(len(t) > 1 for t in words):,}, the longest of {max(map(len, words), default=0)} characters",
        "fingerprint": tokenizer.fingerprint,
    }
    if isinstance(tokenizer, TrieTokenizer) and not tokenizer.has_bytes:
        facts["bytes"] = "not all 256: what it lacks becomes <|unknown|>"
    if isinstance(tokenizer, BPETokenizer):
        if tokenizer.missing_bytes:
            lacks = tokenizer.missing_bytes.hex(" ")
            facts["bytes"] = f"{256 - len(tokenizer.missing_bytes)} of 256; left out of any text: {lacks}"
        normal = ", after NFC" if tokenizer.normalize else ""
        facts["merges"] = f"{len(tokenizer.merges):,}, within pieces as {tokenizer.pre} cuts them{normal}"
        facts["added"] = ", ".join(f"{tokenizer.tokens[i]} {i}" for i in tokenizer.added) or "none"
        ends = {"eos": tokenizer.eos, "bos": tokenizer.bos}
        facts |= {k: f"{tokenizer.tokens[i]} {i}" for k, i in ends.items() if i is not None}
        facts["template"] = "none" if tokenizer.chat_template is None else "in the file"
    for name, fact in facts.items():
        print(f"{name:<12} {fact}")
    return 0
