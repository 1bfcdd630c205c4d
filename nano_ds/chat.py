"""A conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from nano_ds.errors import UserError
from nano_ds.generate import Timing, stream
from nano_ds.generate_args import SYSTEM, Setup, parser, set_up
from nano_ds.instruct import Template, fit, template_of
from nano_ds.tokenizer import StreamDecoder


def answer(
    setup: Setup, template: Template, opening: list[int], history: list[list[int]], args: argparse.Namespace
) -> list[int]:
    """Streams the answer to the newest turn in ``history``; returns its ids."""
    limit = min(args.s or setup.model.config.block_size, setup.model.config.block_size)
    wanted = min(args.n or limit // 2, limit // 2)
    ids = [*opening, *fit(history, limit - wanted - len(opening))]
    if len(ids) >= limit:
        raise UserError(f"your message has {len(ids)} tokens and the context {limit}; write a shorter one")
    timing, decoder, made = Timing(), StreamDecoder(setup.tokenizer), []
    params = replace(setup.params, seed=setup.params.seed + len(history) - 1)
    try:
        for token in stream(setup.model, ids, params, min(wanted, limit - len(ids)), template.ends, timing):
            made.append(token)
            print(decoder.feed(token), end="", flush=True)
    except KeyboardInterrupt:
        pass
    print(decoder.finish())
    if args.profile:
        print(timing.summary(), file=sys.stderr)
    return made


def talk(args: argparse.Namespace) -> int:
    setup = set_up(args)
    template = template_of(setup.tokenizer)
    opening = template.opening(args.system)
    history: list[list[int]] = []
    asking = sys.stdin.isatty()
    while True:
        try:
            text = input("> " if asking else "")
        except (EOFError, KeyboardInterrupt):
            break
        if not text.strip():
            break
        question = template.question(text)
        try:
            made = answer(setup, template, opening, [*history, question], args)
        except UserError as e:
            if not asking:
                raise
            print(e, file=sys.stderr)
            continue
        history.append([*question, *template.answer(made)])
    return 0


def main(description: str) -> int:
    from nano_ds.cli import guard

    made = parser(description)
    made.add_argument("--system", metavar="TEXT", help=SYSTEM)
    args = made.parse_args()
    return guard("chat", lambda: talk(args), args.debug)
