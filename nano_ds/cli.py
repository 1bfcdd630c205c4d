"""The `nano-ds` program: finds the sub-command, runs it, turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence

from nano_ds import __version__
from nano_ds.errors import RunFailure, UserError

# In the order of the way from text to a model file.
COMMANDS = {
    "tokenizer": "build a vocabulary from text, or look at one",
    "prepare": "text, folders and JSONL into token shards",
    "estimate": "parameters, FLOPs, memory and time of a recipe, before you run it",
    "doctor": "what this machine or each node can do, what is wrong and how to fix it",
    "train": "train with DeepSpeed",
    "checkpoints": "list the checkpoints of a run, verify them",
    "plot": "loss curves of runs as a PNG",
    "eval": "loss and bits per byte of a model on prepared shards",
    "consolidate": "ZeRO checkpoint into one model directory (fp32 safetensors)",
    "import": "another program's model (Nano, GGUF, Hugging Face) into a model directory",
    "export": "model directory into a .bin or .gguf file, or a Hugging Face directory",
}
MODULES = {"import": "import_model"}  # `import` is no name for a Python module
FIXES = {
    errno.ENOSPC: "free some space and run it again",
    errno.EROFS: "name a place that can be written to",
    errno.EACCES: "name a place that you may write to, or change its permissions",
    errno.EISDIR: "a folder is in the way; name a file",
    errno.ENOTDIR: "a file is in the way; name a folder",
    errno.EEXIST: "a file is in the way; name another place",
}
DEBUG_HELP = "show the Python traceback when something fails"

EPILOG = """\
the usual way:
  nano-ds prepare     -c recipes/demo.yaml                  text to token shards (and a vocabulary, if there is none)
  nano-ds train       -c recipes/demo.yaml                  train; Ctrl-C saves, running it again goes on
  nano-ds consolidate runs/demo -o runs/demo/model          checkpoint to model directory
  nano-ds export      runs/demo/model -o runs/demo/model.bin
  runtime_c/build/nano-infer run runs/demo/model.bin -i "The"

`nano-ds COMMAND --help` explains each one. Exit codes: 0 done, 1 failed, 2 wrong usage or input."""


class Parser(argparse.ArgumentParser):
    """argparse, but an unknown sub-command or option ends in one line that names the nearest one."""

    def error(self, message: str) -> None:  # type: ignore[override]
        unknown = re.match(r"argument COMMAND: invalid choice: '([^']*)'", message)
        if unknown:
            near = difflib.get_close_matches(unknown[1], COMMANDS, 1, 0.4)
            message = f"no command {unknown[1]!r}" + (f"; did you mean {near[0]}?" if near else "")
        sys.stderr.write(f"{self.prog}: {message} (see `{self.prog} --help`)\n")
        sys.exit(2)


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only the named sub-command's module is loaded."""
    parser = Parser(
        prog="nano-ds",
        description="Train a small language model on the machines you have; run the same file in C.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nano-ds {__version__}")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    wanted = next((a for a in argv if not a.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name != wanted:
            sub.add_parser(name, help=summary, add_help=False)
            continue
        module = importlib.import_module(f"nano_ds.commands.{MODULES.get(name, name)}")
        child = sub.add_parser(
            name, help=summary, description=module.HELP, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(child)
        child.add_argument("--debug", action="store_true", help=DEBUG_HELP)
        child.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(argv)
    args, rest = parser.parse_known_args(argv)
    take_overrides(parser, args, rest)
    return guard(f"nano-ds {args.command}", lambda: args.run(args), debug=args.debug)


def take_overrides(parser: argparse.ArgumentParser, args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Adds recipe keys that stand behind a later option, which argparse leaves over; anything else left is an error."""
    for word in rest:
        if not hasattr(args, "overrides") or word.startswith("-") or "=" not in word:
            parser.error(f"unrecognized argument {word!r}")
        args.overrides.append(word)


def guard(prog: str, work: Callable[[], int | None], debug: bool = False) -> int:
    """Runs ``work``; an error becomes one line on stderr and an exit code: 2 the user's, 1 ours or the machine's."""
    try:
        return work() or 0
    except KeyboardInterrupt:
        print(f"\n{prog}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, RunFailure, OSError, MemoryError, ImportError) as e:
        if debug:
            raise
        print(f"{prog}: {one_line(e)}", file=sys.stderr)
        place = isinstance(e, OSError) and e.errno in FIXES and e.errno != errno.ENOSPC
        return 2 if place or isinstance(e, UserError) else 1
    except Exception as e:
        if debug:
            raise
        print(f"{prog}: {type(e).__name__}: {one_line(e)} (a bug? --debug shows where)", file=sys.stderr)
        return 1


def one_line(e: BaseException) -> str:
    if isinstance(e, OSError) and e.strerror:
        where = f"{e.filename}: " if e.filename else ""
        fix = FIXES.get(e.errno or 0, "")
        return f"{where}{e.strerror}{'; ' if fix else ''}{fix}"
    return str(e) or type(e).__name__
