"""`nano-ds prepare`: text into token shards."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nano_ds.tokenizer import Tokenizer

HELP = """\
Turn text into the token shards that training reads.

  nano-ds prepare -c recipes/demo.yaml
  nano-ds prepare --text books/ notes.jsonl --tokenizer tokenizer.json --out data/books

Input: text files (UTF-8), folders (every .txt .md .rst .jsonl .py .c .h file in them, hidden ones passed over), .jsonl
files with {"text": "…"} on each line, or builtin:python-docs, the documentation that every Python carries.
Documents: a line of a .jsonl file; a text file up to 64 KiB; larger text files are cut at the last blank line before
64 KiB. Each is followed by <|eos|>. A hash of its text decides whether a document trains or validates, so equal
documents stay on one side, whatever their order and the number of workers; if that leaves nothing to validate, one
document is moved there.
With -c, a vocabulary that does not exist yet is built from the sets' text first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", metavar="RECIPE", help="recipe whose data section says what to prepare")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="recipe keys to change")
    parser.add_argument("--text", nargs="+", metavar="F", help="text files, folders, .jsonl files, builtin:python-docs")
    parser.add_argument("--tokenizer", metavar="T", help="tokenizer.json (from `nano-ds tokenizer trie`)")
    parser.add_argument("--out", metavar="DIR", help="folder of the set")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that encode (default: one per CPU)"
    )
    parser.add_argument("--val-fraction", type=float, metavar="F", help="share kept for validation (default 0.02)")
    parser.add_argument("--force", action="store_true", help="replace a set made from other text or settings")


def run(args: argparse.Namespace) -> int:
    from nano_ds.errors import UserError

    if args.workers < 0:
        raise UserError(f"--workers: {args.workers} is below 1; leave it out for one per CPU")
    if bool(args.config) == bool(args.text):
        raise UserError("give either -c RECIPE, or --text F… with --tokenizer T and --out DIR")
    return _from_recipe(args) if args.config else _from_text(args)


def _from_text(args: argparse.Namespace) -> int:
    from nano_ds.errors import UserError
    from nano_ds.tokenizer import load_tokenizer

    if args.overrides:
        raise UserError(f"{args.overrides[0]}: key=value changes a recipe, and there is none; put it after -c RECIPE")
    if not args.tokenizer or not args.out:
        missing = "--tokenizer T (make one: nano-ds tokenizer trie)" if not args.tokenizer else "--out DIR"
        raise UserError(f"--text also needs {missing}")
    fraction = 0.02 if args.val_fraction is None else args.val_fraction
    _prepare(args.text, load_tokenizer(args.tokenizer), args.out, fraction, args)
    print("next: name this folder in data.sets of a recipe, then nano-ds train -c RECIPE")
    return 0


def _from_recipe(args: argparse.Namespace) -> int:
    from nano_ds.config import load_config
    from nano_ds.errors import UserError
    from nano_ds.tokenizer import load_tokenizer

    if args.tokenizer or args.out:
        raise UserError(
            "--tokenizer and --out go with --text; with -c RECIPE use data.tokenizer=… and data.sets.0.dir=…"
        )
    data = load_config(args.config, args.overrides).data
    if not data.tokenizer:
        raise UserError(f"{args.config}: data.tokenizer is empty; name the tokenizer.json of the run")
    made = [s for s in data.sets if s.text]
    if not made:
        raise UserError(f"{args.config}: no set in data.sets has `text`, so there is nothing to prepare; add it")
    if not Path(data.tokenizer).exists():
        texts = list(dict.fromkeys(t for s in made for t in s.text))
        build_vocabulary(texts, data.tokenizer_vocab_size, data.tokenizer)
    tokenizer = load_tokenizer(data.tokenizer)
    fraction = data.val_fraction if args.val_fraction is None else args.val_fraction
    for s in made:
        _prepare(s.text, tokenizer, s.dir, fraction, args)
    print(f"next: nano-ds train {shlex.join(['-c', args.config, *args.overrides])}")
    return 0


def build_vocabulary(texts: Sequence[str], vocab_size: int, out: str) -> None:
    """Builds a trie vocabulary, with progress on stderr and its facts on stdout."""
    from nano_ds.prepare import find_sources, read_documents
    from nano_ds.tokenizer.build import build_trie

    sources = find_sources(texts)
    total = sum(s.size for s in sources)
    chars = 0
    with _bar(1.0, "sifting", bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}") as sifting:

        def documents() -> Iterator[str]:
            nonlocal chars
            with _bar(total, "reading") as reading:
                for text in read_documents(sources, reading.update):
                    chars += len(text)
                    yield text
                _full(reading)

        tokenizer = build_trie(documents(), vocab_size, total, sifting.update)
    tokenizer.save(out)
    if tokenizer.vocab_size < vocab_size:
        print(f"note: the text yields only {tokenizer.vocab_size:,} of {vocab_size:,} tokens", file=sys.stderr)
    print(f"vocabulary   {tokenizer.vocab_size:,} tokens from {chars / 1e6:.2f} M characters, {out}")


def _prepare(texts: Sequence[str], tokenizer: Tokenizer, out: str, fraction: float, args: argparse.Namespace) -> None:
    from nano_ds.prepare import find_sources, prepare_set

    with _bar(sum(s.size for s in find_sources(texts)), Path(out).name) as bar:
        result = prepare_set(
            texts, tokenizer, out, val_fraction=fraction, workers=args.workers, force=args.force, progress=bar.update
        )
        if result.up_to_date:
            bar.leave = False
        else:
            _full(bar)
    if result.up_to_date:
        print(f"{out}: up to date")
        return
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    train, val = result.manifest["total"]["train"], result.manifest["total"]["val"]
    size, tokens = train["text_bytes"] + val["text_bytes"], train["tokens"] + val["tokens"]
    facts = {
        "set": out,
        "documents": f"{train['documents']:,} train, {val['documents']:,} val",
        "tokens": f"{train['tokens']:,} train, {val['tokens']:,} val (vocabulary {tokenizer.vocab_size:,})",
        "text": f"{size / 1e6:.2f} MB, {size / tokens:.2f} bytes per token",
    }
    for name, fact in facts.items():
        print(f"{name:<12} {fact}")


def _bar(total: float, what: str, **how: Any) -> Any:
    """A progress bar on stderr; it first shows when it moves."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, file=sys.stderr, unit="B", unit_scale=True, delay=0.2, disable=None, **how)


def _full(bar: Any) -> None:
    """Ends a bar whose total was an estimate."""
    bar.total = bar.n
    bar.refresh()
