"""The instruct template: `<|instruct_mark|>` question `<|response_mark|>` answer `<|eos|>`, turn after turn."""

from __future__ import annotations

from collections.abc import Sequence

from nano_ds.errors import UserError
from nano_ds.tokenizer import Codec


def turn(tokenizer: Codec, question: str) -> list[int]:
    """The ids that ask ``question``; what the user writes never becomes a special token.

    Raises:
        UserError: the vocabulary lacks the marks.
    """
    try:
        ask, answer = tokenizer.special["<|instruct_mark|>"], tokenizer.special["<|response_mark|>"]
    except KeyError as e:
        raise UserError(
            f"this model's vocabulary has no {e}: it was not made for instructions; generate without -i"
        ) from None
    return [ask, *tokenizer.encode(question), answer]


def fit(history: Sequence[list[int]], room: int) -> list[int]:
    """The newest turns that fit into ``room`` tokens, oldest first; the last turn is always there."""
    kept: list[int] = list(history[-1])
    for old in reversed(history[:-1]):
        if len(old) + len(kept) > room:
            break
        kept = [*old, *kept]
    return kept
