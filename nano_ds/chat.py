"""A conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from nano_ds.errors import UserError
from nano_ds.generate_args import Setup, parser, set_up
from nano_ds.generate_base import Timing
from nano_ds.instruct import fit, turn
from nano_ds.tokenizer import StreamDecoder


def answer(setup: Setup, history: list[list[int]], args: argparse.Namespace, number: int) -> list[int]:
    """Streams the answer to the newest turn in ``history``; returns its ids."""
    limit = min(args.s or setup.engine.block_size, setup.engine.block_size)
    wanted = min(args.n or limit // 2, limit // 2)
    ids = fit(history, limit - wanted)
    if len(ids) >= limit:
        raise UserError(f"your message has {len(ids)} tokens and the context {limit}; write a shorter one")
    timing, decoder, made = Timing(), StreamDecoder(setup.tokenizer), []
    params = replace(setup.params, seed=setup.params.seed + number)
    try:
        for token in setup.engine.stream(ids, params, min(wanted, limit - len(ids)), timing):
            made.append(token)
            print(decoder.feed(token), end="", flush=True)
    except KeyboardInterrupt:
        pass
    print(decoder.finish())
    if args.profile:
        print(f"{timing.summary()}; {setup.engine.about}", file=sys.stderr)
    return made


def talk(args: argparse.Namespace) -> int:
    setup = set_up(args)
    history: list[list[int]] = []
    asking = sys.stdin.isatty()
    while True:
        try:
            question = input("> " if asking else "")
        except (EOFError, KeyboardInterrupt):
            break
        if not question.strip():
            break
        try:
            made = answer(setup, [*history, turn(setup.tokenizer, question)], args, len(history))
        except UserError as e:
            if not asking:
                raise
            print(e, file=sys.stderr)
            continue
        history.append([*turn(setup.tokenizer, question), *made, setup.tokenizer.eos_id])
    return 0


def main(description: str) -> int:
    from nano_ds.cli import guard

    args = parser(description).parse_args()
    return guard("chat", lambda: talk(args), args.debug)
