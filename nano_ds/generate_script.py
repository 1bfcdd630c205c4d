"""What `inference/generate.py` and `inference/ds_generate.py` do with their options."""

from __future__ import annotations

import argparse
import json
import sys

from nano_ds.errors import UserError
from nano_ds.generate import Timing, position_wise, room, stream
from nano_ds.generate_args import SYSTEM, parser, set_up
from nano_ds.instruct import template_of
from nano_ds.tokenizer import StreamDecoder


def add_prompt(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    made.add_argument("-i", "--instruct", action="store_true", help="wrap the prompt in the model's chat template")
    made.add_argument("--system", metavar="TEXT", help=f"with -i: {SYSTEM}")
    made.add_argument("--special", action="store_true", help="let <|…|> in the prompt stand for special tokens")
    made.add_argument("--json", action="store_true", help="print one JSON object: text, ids, prompt_ids")
    made.add_argument("prompt", nargs="?", metavar="PROMPT", help="text to continue (default: standard input)")
    return made


def run(args: argparse.Namespace, deepspeed: bool) -> int:
    """Prints the continuation as it comes, then one newline; returns the exit code."""
    setup = set_up(args, deepspeed)
    tokenizer, model = setup.tokenizer, setup.model
    prompt = args.prompt
    if prompt is None:
        prompt = "" if sys.stdin.isatty() else sys.stdin.read().removesuffix("\n")
    if args.system is not None and not args.instruct:
        raise UserError("--system: only the chat template has a place for it; add -i")
    stop = setup.stop
    if args.instruct:
        template = template_of(tokenizer)
        ids = [*template.opening(args.system), *template.question(prompt)]
        stop = template.ends
    else:
        ids = [*tokenizer.bos_ids, *tokenizer.encode(prompt, allow_special=args.special)]
    ids = ids or [tokenizer.eos_id]  # an empty prompt begins a document, as after the end of another
    if not model.config.is_causal:
        print(tokenizer.decode(position_wise(model, ids)))
        return 0
    timing = Timing()
    decoder, made = StreamDecoder(tokenizer), []
    pieces = []
    max_new = room(len(ids), model.config.block_size, args.n, args.s)
    try:
        for token in stream(model, ids, setup.params, max_new, stop, timing):
            made.append(token)
            pieces.append(decoder.feed(token))
            if not args.json:
                print(pieces[-1], end="", flush=True)
    except KeyboardInterrupt:
        pass
    pieces.append(decoder.finish())
    if args.json:
        print(json.dumps({"text": "".join(pieces), "ids": made, "prompt_ids": ids}, ensure_ascii=False))
    else:
        print(pieces[-1])
    if args.profile:
        print(timing.summary(), file=sys.stderr)
    return 0


def main(description: str, deepspeed: bool = False) -> int:
    from nano_ds.cli import guard

    args = add_prompt(parser(description)).parse_args()
    return guard("generate", lambda: run(args, deepspeed), args.debug)
