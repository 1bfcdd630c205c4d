"""Questions and answers: which files hold them, what a line must look like, and how one becomes tokens.

{"question": "…", "answer": "…"}
{"messages": [{"role": "system", "content": "…"}, {"role": "user", …}, {"role": "assistant", …}, …]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nano_ds import corpus
from nano_ds.errors import UserError
from nano_ds.instruct import Template
from nano_ds.prepare.documents import BATCH_BYTES, Batch, Source, find_sources, read_batches
from nano_ds.shards import token_dtype
from nano_ds.tokenizer.trie import to_bytes

SHAPES = '{"question": "…", "answer": "…"} or {"messages": [{"role": "user", "content": "…"}, …]}'


@dataclass(frozen=True)
class Item:
    """A conversation."""

    system: str | None
    turns: list[tuple[str, str]]  # question and answer

    @property
    def hash(self) -> int:
        """Of what is asked first: whatever answers the same question trains, or validates, together."""
        asked = json.dumps([self.system, self.turns[0][0]]).encode()
        return int.from_bytes(hashlib.blake2b(asked, digest_size=8).digest(), "big")


@dataclass
class Items:
    """Encoded conversations of a batch, end to end, and what became of those that are too long."""

    tokens: np.ndarray
    loss: np.ndarray  # bool, of each token
    lengths: np.ndarray
    hashes: np.ndarray
    text_bytes: np.ndarray  # of the answers
    consumed: int  # bytes of input
    counts: dict[str, int] = field(default_factory=dict)


def find_items(inputs: Sequence[str]) -> list[Source]:
    """Every .jsonl file behind ``inputs``; folders are searched in sorted order."""
    if not inputs:
        raise UserError("no questions and answers to prepare; give --sft F.jsonl…, or `text:` of a set of kind sft")
    found: list[Source] = []
    for name in inputs:
        if name == corpus.QUESTIONS:
            found.append(Source(name, "builtin", 1_000_000, corpus.identity()))
        elif name.startswith("builtin:"):
            raise UserError(f"{name}: no such built-in set of questions; there is {corpus.QUESTIONS}")
        elif not name or not Path(name).exists():
            raise UserError(f"{name or 'an empty name'}: no such file or folder of questions and answers")
        else:
            here = [s for s in find_sources([name]) if s.kind == "jsonl"]
            if not here:
                raise UserError(f"{name}: no .jsonl file; every line must be {SHAPES}")
            found += here
    return found


def item_batches(sources: Sequence[Source]) -> Iterator[Batch]:
    """The lines of all sources, in order."""
    for source in sources:
        if source.kind == "builtin":
            yield from _builtin(source)
        else:
            yield from read_batches([source])


def _builtin(source: Source) -> Iterator[Batch]:
    batch = Batch(source.name, source.kind)
    for number, (question, answer) in enumerate(corpus.python_questions(), start=1):
        batch.documents.append(json.dumps({"question": question, "answer": answer}).encode())
        batch.places.append(number)
        batch.consumed += len(batch.documents[-1])
        if batch.consumed >= BATCH_BYTES:
            yield batch
            batch = Batch(source.name, source.kind)
    yield batch


def read_item(line: bytes, where: str) -> Item:
    """One line; raises UserError saying what is wrong with it and ``where``."""
    try:
        tree = json.loads(line)
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not UTF-8 at byte {e.start} of the line; convert the file to UTF-8") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not JSON ({e}); every line must be {SHAPES}") from None
    keys = tree.keys() if isinstance(tree, dict) else ()
    if "messages" in keys and not {"question", "answer"} & set(keys):
        return _conversation(tree["messages"], where)
    if "messages" in keys or not {"question", "answer"} <= set(keys):
        found = f"an object with {', '.join(map(repr, keys)) or 'nothing'}" if keys else repr(tree)[:40]
        raise UserError(f"{where}: {found}; every line must be {SHAPES}")
    return Item(None, [(_text(tree["question"], "question", where), _text(tree["answer"], "answer", where))])


def _conversation(messages: Any, where: str) -> Item:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UserError(f"{where}: messages is no list of objects; every line must be {SHAPES}")
    said = []
    for i, m in enumerate(messages):
        role, name = m.get("role"), f"messages[{i}]"
        if role not in ("system", "user", "assistant"):
            raise UserError(f"{where}: {name} has the role {role!r}; there are system, user and assistant")
        said.append((role, _text(m.get("content"), f"{name}.content", where)))
    system = said.pop(0)[1] if said and said[0][0] == "system" else None
    wanted = ["user", "assistant"] * (len(said) // 2)
    if not said or [role for role, _ in said] != wanted:
        raise UserError(
            f"{where}: the roles are {', '.join(str(m.get('role')) for m in messages) or 'none'}; after at most one "
            "system, user and assistant must take turns, and an assistant must have the last word"
        )
    texts = [text for _, text in said]
    return Item(system, list(zip(texts[::2], texts[1::2], strict=True)))


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {'missing' if value is None else repr(value)[:40]}; it must be text")
    if not value.strip():
        raise UserError(f"{where}: {name} is empty; fill it in or remove the line")
    return value


def encode_items(template: Template, row: int, batch: Batch) -> Items:
    """The conversations of a batch as tokens.

    One that is longer than ``row`` tokens keeps its newest exchanges, as many as fit whole; one whose last exchange
    alone is too long is left out. ``counts`` says how many, so that the user learns of it.
    """
    tokens: list[int] = []
    loss: list[bool] = []
    lengths, hashes, sizes = [], [], []
    counts = dict.fromkeys(("items", "shortened", "answers_left_out", "left_out", "prepended", "longest"), 0)
    for line, place in zip(batch.documents, batch.places, strict=True):
        item = read_item(line, f"{batch.source}:{place}")
        counts["items"] += 1
        ids, marks, first, whole = _encode(template, item, row)
        counts["longest"] = max(counts["longest"], whole)
        counts["prepended"] += template.family == "nano" and item.system is not None
        if first == len(item.turns):
            counts["left_out"] += 1
            continue
        counts["shortened"] += first > 0
        counts["answers_left_out"] += first
        tokens += ids
        loss += marks
        lengths.append(len(ids))
        hashes.append(item.hash)
        sizes.append(sum(len(to_bytes(answer)) for _, answer in item.turns[first:]))
    return Items(
        np.array(tokens, token_dtype(template.tokenizer.vocab_size)),
        np.array(loss, bool),
        np.array(lengths, np.int64),
        np.array(hashes, np.uint64),
        np.array(sizes, np.int64),
        batch.consumed,
        counts,
    )


def _encode(template: Template, item: Item, row: int) -> tuple[list[int], list[bool], int, int]:
    """Tokens and loss marks of the newest exchanges that fit; the first of them; how long all would have been."""
    in_question = template.family == "nano" and item.system is not None  # this template has no place for it
    opening = template.opening(None if in_question else item.system)
    last = len(item.turns) - 1

    def exchange(i: int, begins: bool) -> tuple[list[int], list[bool]]:
        question, answer = item.turns[i]
        asked = f"{item.system}\n\n{question}" if in_question and begins else question
        return template.exchange(asked, answer, i == last)

    kept: tuple[list[int], list[bool]] = ([], [])
    ids: list[int] = []
    marks: list[bool] = []
    first = len(item.turns)
    for i in range(last, -1, -1):
        begun = exchange(i, True)
        length = len(opening) + len(begun[0]) + len(kept[0])
        if length <= row and first == i + 1:
            first = i
            ids = [*opening, *begun[0], *kept[0]]
            marks = [False] * len(opening) + begun[1] + kept[1]
        later = exchange(i, False) if in_question else begun
        kept = ([*later[0], *kept[0]], later[1] + kept[1])
    return ids, marks, first, length
