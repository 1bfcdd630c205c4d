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
  nano-ds prepare --sft chat.jsonl --tokenizer runs/demo/model/tokenizer.json --block-size 512 --out data/chat

Input: text files (UTF-8), folders (every .txt .md .rst .jsonl .py .c .h file in them, hidden ones passed over), .jsonl
files with {"text": "…"} on each line, or builtin:python-docs, the documentation that every Python carries.
Documents: a line of a .jsonl file; a text file up to 64 KiB; larger text files are cut at the last blank line before
64 KiB. Each is followed by <|eos|>. A hash of its text decides whether a document trains or validates, so equal
documents stay on one side, whatever their order and the number of workers; if that leaves nothing to validate, one
document is moved there.
With -c, a vocabulary that does not exist yet is built from the sets' text first.

Questions and answers (--sft, or `kind: sft` in data.sets): .jsonl files with {"question": "…", "answer": "…"} or
{"messages": [{"role": "system|user|assistant", "content": "…"}, …]} on each line, or builtin:python-qa. They are
written in the template of the tokenizer's model: Nano's for our vocabularies, its own (ChatML, Llama 3) for an imported
one; what is in them never becomes a special token. Only answers and their end tokens carry loss. Conversations are
packed whole into rows of --block-size tokens, where they do not see one another; the hash of the first question decides
whether one validates. One that is too long keeps its last exchanges that fit, or is left out when there is none; both
are counted, on the screen and in manifest.json.

On several machines (text only; every file of the set comes out as one machine would have written it):
  nano-ds prepare -c recipes/demo.yaml --hostfile hostfiles/two_nodes     all by itself, over ssh
  nano-ds prepare -c recipes/demo.yaml --part 1/3     or by hand: 1/3, 2/3 and 3/3, anywhere, in any order,
  nano-ds prepare -c recipes/demo.yaml --join 3       then, where the folders OUT.parts/part-… of all are, join them
Parts are counted from 1 to N, in the order of the input; each reads the same text and takes its share of the bytes.
--hostfile makes as many parts as the hostfile has slots; a node does one at a time with all its CPUs, then the next.
A part that fails is tried once more on another node; the same command again makes only those that are missing or not
of this text. Nodes need the project and the text at the same paths; the finished set lies on this machine alone where
disks are separate."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", metavar="RECIPE", help="recipe whose data section says what to prepare")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="recipe keys to change")
    parser.add_argument("--text", nargs="+", metavar="F", help="text files, folders, .jsonl files, builtin:python-docs")
    parser.add_argument("--sft", nargs="+", metavar="F", help="questions and answers: .jsonl files, builtin:python-qa")
    parser.add_argument(
        "--block-size",
        type=int,
        metavar="N",
        help="--sft: tokens of a row, at most the model's context (default: 512, or the context of the model directory "
        "that the tokenizer lies in where that is less)",
    )
    parser.add_argument("--tokenizer", metavar="T", help="tokenizer.json (from `nano-ds tokenizer trie` or `bpe`)")
    parser.add_argument("--out", metavar="DIR", help="folder of the set")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that encode (default: one per CPU)"
    )
    parser.add_argument("--val-fraction", type=float, metavar="F", help="share kept for validation (default 0.02)")
    parser.add_argument("--force", action="store_true", help="replace a set made from other text or settings")
    parser.add_argument("--part", metavar="I/N", help="encode only part I of N (1/N is the first, N/N the last)")
    parser.add_argument("--join", type=int, metavar="N", help="make the set from its N parts, and remove them")
    parser.add_argument("--hostfile", metavar="H", help="make the parts on the machines that this file names, and join")


def run(args: argparse.Namespace) -> int:
    from nano_ds.errors import UserError
    from nano_ds.prepare.parts import MOST_PARTS, Part

    if args.workers < 0:
        raise UserError(f"--workers: {args.workers} is below 1; leave it out for one per CPU")
    if sum(map(bool, (args.config, args.text, args.sft))) != 1:
        raise UserError("give either -c RECIPE, or --text F… or --sft F… with --tokenizer T and --out DIR")
    if args.block_size is not None and not args.sft:
        raise UserError(
            "--block-size: goes with --sft; with -c RECIPE it is data.block_size, and text is cut in training"
        )
    ways = [w for w in ("part", "join", "hostfile") if getattr(args, w) is not None]
    if len(ways) > 1:
        raise UserError(f"--{ways[0]} and --{ways[1]} do not go together; --hostfile makes all parts and joins them")
    if ways and args.sft:
        raise UserError(f"--{ways[0]}: goes with --text; questions and answers are prepared on one machine")
    if args.part is not None:
        Part.parse(args.part)
    if args.join is not None and not 1 <= args.join <= MOST_PARTS:
        raise UserError(f"--join: {args.join} is no number of parts; give the N of --part I/N")
    if args.config:
        return _from_recipe(args)
    return _from_sft(args) if args.sft else _from_text(args)


def _from_text(args: argparse.Namespace) -> int:
    from nano_ds.tokenizer import load_tokenizer

    _check_alone(args, "--text")
    fraction = 0.02 if args.val_fraction is None else args.val_fraction
    again = ["--text", *args.text, "--tokenizer", args.tokenizer, "--out", args.out]
    _make(args.text, load_tokenizer(args.tokenizer), args.out, fraction, args, again)
    if args.part is None:
        print("next: name this folder in data.sets of a recipe, then nano-ds train -c RECIPE")
    return 0


def _check_alone(args: argparse.Namespace, option: str) -> None:
    """Raises UserError unless what ``option`` needs beside it is there, and no more."""
    from nano_ds.errors import UserError

    if args.overrides:
        raise UserError(f"{args.overrides[0]}: key=value changes a recipe, and there is none; put it after -c RECIPE")
    if not args.tokenizer or not args.out:
        missing = "--tokenizer T (make one: nano-ds tokenizer trie)" if not args.tokenizer else "--out DIR"
        raise UserError(f"{option} also needs {missing}")


def _from_sft(args: argparse.Namespace) -> int:
    from nano_ds.model_dir import CONFIG, WEIGHTS, read_config
    from nano_ds.tokenizer import load_tokenizer

    _check_alone(args, "--sft")
    size = args.block_size
    if size is None:
        beside = Path(args.tokenizer).parent
        is_model = (beside / CONFIG).is_file() and (beside / WEIGHTS).is_file()
        size = min(512, read_config(beside / CONFIG).block_size) if is_model else 512
    fraction = 0.02 if args.val_fraction is None else args.val_fraction
    _make_sft(args.sft, load_tokenizer(args.tokenizer), args.out, fraction, size, args)
    print("next: name this folder in data.sets of a recipe (kind: sft), then nano-ds train -c RECIPE")
    return 0


def _from_recipe(args: argparse.Namespace) -> int:
    from nano_ds.config import load_config
    from nano_ds.errors import UserError
    from nano_ds.start_from import resolved
    from nano_ds.tokenizer import load_tokenizer

    if args.tokenizer or args.out:
        raise UserError(
            "--tokenizer and --out go with --text; with -c RECIPE use data.tokenizer=… and data.sets.0.dir=…"
        )
    config = load_config(args.config, args.overrides)
    config = resolved(config)
    data = config.data
    if not data.tokenizer:
        raise UserError(f"{args.config}: data.tokenizer is empty; name the tokenizer.json of the run")
    made = [s for s in data.sets if s.text]
    if not made:
        raise UserError(f"{args.config}: no set in data.sets has `text`, so there is nothing to prepare; add it")
    if not Path(data.tokenizer).exists():
        texts = list(dict.fromkeys(t for s in made for t in s.text if s.kind == "text"))
        if not texts:
            raise UserError(
                f"{data.tokenizer}: no such vocabulary; questions and answers are for a model that there is already: "
                "name it in train.init_from and leave data.tokenizer out"
            )
        if args.part is not None or args.join is not None:
            size = ["--vocab-size", str(data.tokenizer_vocab_size)]
            words = [data.tokenizer_kind, "--text", *texts, *size, "-o", data.tokenizer]
            raise UserError(
                f"{data.tokenizer}: no vocabulary yet, and all parts must share one; build it with "
                f"`nano-ds tokenizer {shlex.join(words)}` and copy it to every machine"
            )
        build_vocabulary(texts, data.tokenizer_vocab_size, data.tokenizer, data.tokenizer_kind)
    tokenizer = load_tokenizer(data.tokenizer)
    fraction = data.val_fraction if args.val_fraction is None else args.val_fraction
    again = ["-c", args.config, *args.overrides]
    for s in made:
        if s.kind == "text":
            _make(s.text, tokenizer, s.dir, fraction, args, again)
        elif args.part is not None:
            _note(f"{s.dir}: questions and answers are prepared on one machine, with --join or without --part")
        else:
            length = data.block_size or config.model.block_size
            _make_sft(s.text, tokenizer, s.dir, fraction, length, args)
    if args.part is None:
        print(f"next: nano-ds train {shlex.join(['-c', args.config, *args.overrides])}")
    return 0


def build_vocabulary(texts: Sequence[str], vocab_size: int, out: str, kind: str = "trie", pre: str = "gpt-2") -> None:
    """Builds a vocabulary (``kind`` trie or bpe), with progress on stderr and its facts on stdout."""
    from nano_ds.prepare import find_sources, read_documents
    from nano_ds.tokenizer.bpe_build import build_bpe, check_trainer
    from nano_ds.tokenizer.build import build_trie

    if kind == "bpe":
        check_trainer()
    sources = find_sources(texts)
    total = sum(s.size for s in sources)
    chars = 0
    doing = "merging" if kind == "bpe" else "sifting"
    with _bar(1.0, doing, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}") as sifting:

        def documents() -> Iterator[str]:
            nonlocal chars
            with _bar(total, "reading") as reading:
                for text in read_documents(sources, reading.update):
                    chars += len(text)
                    yield text
                _full(reading)

        if kind == "bpe":
            tokenizer: Tokenizer = build_bpe(documents(), vocab_size, pre, total)
            sifting.update(1.0)
        else:
            tokenizer = build_trie(documents(), vocab_size, total, sifting.update)
    tokenizer.save(out)
    if tokenizer.vocab_size < vocab_size:
        print(f"note: the text yields only {tokenizer.vocab_size:,} of {vocab_size:,} tokens", file=sys.stderr)
    print(f"vocabulary   {tokenizer.vocab_size:,} tokens from {chars / 1e6:.2f} M characters, {out}")


def _make(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    out: str,
    fraction: float,
    args: argparse.Namespace,
    again: Sequence[str],
) -> None:
    """Makes one set, or a part of it. ``again`` are the arguments that say which."""
    from nano_ds.nodes.hostfile import read_hostfile
    from nano_ds.prepare import find_sources, join_parts, prepare_on_nodes, prepare_set

    split = [] if args.val_fraction is None else ["--val-fraction", str(args.val_fraction)]
    command = "nano-ds prepare " + shlex.join([*again, *split])
    if args.part is not None:
        _make_part(texts, tokenizer, out, args, command)
        return
    total = sum(s.size for s in find_sources(texts))
    common: dict[str, Any] = {"val_fraction": fraction, "force": args.force}
    name = Path(out).name
    with _bar(total * (2 if args.join else 1), f"joining {name}" if args.join else name) as bar:
        if args.join is not None:
            result = join_parts(texts, tokenizer, out, args.join, progress=bar.update, again=command, **common)
        elif args.hostfile is not None:
            with _bar(2 * total, f"joining {name}") as joining:
                result = prepare_on_nodes(
                    texts,
                    tokenizer,
                    out,
                    read_hostfile(args.hostfile),
                    workers=args.workers,
                    progress=bar.update,
                    joining=joining.update,
                    note=_note,
                    again=command,
                    **common,
                )
                _end(joining, result.up_to_date)
        else:
            result = prepare_set(texts, tokenizer, out, workers=args.workers, progress=bar.update, **common)
        _end(bar, result.up_to_date)
    if result.up_to_date:
        print(f"{out}: up to date")
        return
    for note in result.notes:
        _note(note)
    train, val = result.manifest["total"]["train"], result.manifest["total"]["val"]
    size, tokens = train["text_bytes"] + val["text_bytes"], train["tokens"] + val["tokens"]
    facts = {
        "set": out,
        "documents": f"{train['documents']:,} train, {val['documents']:,} val",
        "tokens": f"{train['tokens']:,} train, {val['tokens']:,} val (vocabulary {tokenizer.vocab_size:,})",
        "text": f"{size / 1e6:.2f} MB, {size / tokens:.2f} bytes per token",
    }
    for label, fact in facts.items():
        print(f"{label:<12} {fact}")


def _make_sft(
    files: Sequence[str], tokenizer: Tokenizer, out: str, fraction: float, block_size: int, args: argparse.Namespace
) -> None:
    """Makes one set of questions and answers."""
    from nano_ds.prepare import prepare_sft
    from nano_ds.prepare.items import find_items

    with _bar(sum(s.size for s in find_items(files)), Path(out).name) as bar:
        result = prepare_sft(
            files,
            tokenizer,
            out,
            block_size=block_size,
            val_fraction=fraction,
            workers=args.workers,
            force=args.force,
            progress=bar.update,
        )
        _end(bar, result.up_to_date)
    if result.up_to_date:
        print(f"{out}: up to date")
        return
    for note in result.notes:
        _note(note)
    total, row = result.manifest["total"], block_size + 1
    train, val = total["train"], total["val"]
    tokens, answers, padding = (train[key] + val[key] for key in ("tokens", "answers", "padding"))
    facts = {
        "set": out,
        "items": f"{train['documents']:,} train, {val['documents']:,} val of {result.manifest['items']['items']:,}",
        "template": result.manifest["recipe"]["template"].split()[0],
        "rows": f"{train['tokens'] // row:,} train, {val['tokens'] // row:,} val of {block_size} tokens, "
        f"{padding / tokens:.1%} padding",
        "loss": f"on {answers:,} of {tokens:,} tokens",
    }
    for label, fact in facts.items():
        print(f"{label:<12} {fact}")


def _make_part(texts: Sequence[str], tokenizer: Tokenizer, out: str, args: argparse.Namespace, command: str) -> None:
    from nano_ds.prepare import Part, find_sources, prepare_part

    part = Part.parse(args.part)
    with _bar(sum(s.size for s in find_sources(texts)) / part.count, f"{Path(out).name} {part}") as bar:
        done = prepare_part(texts, tokenizer, out, part, workers=args.workers, force=args.force, progress=bar.update)
        _end(bar, done.up_to_date)
    folder = part.folder(Path(out))
    if done.note:
        _note(done.note)
    if done.up_to_date:
        print(f"{folder}: up to date")
    else:
        print(f"{folder}: {done.facts['documents']:,} documents, {done.facts['tokens']:,} tokens")
    print(f"next: when all {part.count} parts are in {folder.parent}: {command} --join {part.count}")


def _note(line: str) -> None:
    """A line on stderr, above the bars."""
    from tqdm import tqdm

    tqdm.write(f"note: {line}", file=sys.stderr)


def _bar(total: float, what: str, **how: Any) -> Any:
    """A progress bar on stderr; it first shows when it moves."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, file=sys.stderr, unit="B", unit_scale=True, delay=0.2, disable=None, **how)


def _end(bar: Any, up_to_date: bool) -> None:
    """Takes the bar away if there was nothing to do, else fills it."""
    if up_to_date:
        bar.leave = False
    else:
        _full(bar)


def _full(bar: Any) -> None:
    """Ends a bar whose total was an estimate."""
    bar.total = bar.n
    bar.refresh()
