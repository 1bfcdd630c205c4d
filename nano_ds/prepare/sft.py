"""Questions and answers to a set of packed rows that carry loss on the answers only (the format is in shards.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nano_ds.errors import UserError
from nano_ds.files import atomic_dir, write_json
from nano_ds.instruct import Template, template_of
from nano_ds.prepare.documents import Progress, Source
from nano_ds.prepare.encoding import map_batches, worker_count
from nano_ds.prepare.items import Items, encode_items, find_items, item_batches
from nano_ds.prepare.packing import pack
from nano_ds.prepare.sets import SHARD_TOKENS, Result, Split, alone, existing, mend
from nano_ds.shards import SPLITS, ShardWriter, new_manifest, token_dtype
from nano_ds.tokenizer import Tokenizer

MUCH, FEW = 0.05, 20  # share of padding that is worth a note, from so many rows on
DATE = "26 Jul 2024"  # for templates that name the day: shards must not depend on when they are made


@dataclass(frozen=True, kw_only=True)
class SftPlan:
    """Everything that decides what a set of questions and answers holds, and where it goes."""

    out: Path
    tokenizer: Tokenizer
    template: Template
    sources: Sequence[Source]
    block_size: int
    val_fraction: float
    shard_tokens: int

    @property
    def recipe(self) -> dict[str, Any]:
        return {
            "kind": "sft",
            "sources": [s.entry for s in self.sources],
            "val_fraction": self.val_fraction,
            "shard_tokens": self.shard_tokens,
            "block_size": self.block_size,
            "template": f"{self.template.family} {hashlib.sha256(self.template.text.encode()).hexdigest()[:16]}",
        }


def prepare_sft(
    inputs: Sequence[str],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    block_size: int,
    val_fraction: float = 0.02,
    workers: int = 0,
    force: bool = False,
    progress: Progress = lambda n: None,
    shard_tokens: int = SHARD_TOKENS,
) -> Result:
    """Turns JSONL files of questions and answers into a set at ``out``, which appears at once when all is written.

    Conversations are packed into rows of ``block_size`` + 1 tokens in the template of the tokenizer's model. The hash
    of the first question decides which validate. The manifest counts under ``items`` what was too long.

    Raises:
        UserError: a bad line (named), a vocabulary without marks of a conversation, nothing that fits, or ``out`` holds
            another set and ``force`` is not given.
    """
    if not 0 <= val_fraction <= 0.5:
        raise UserError(f"--val-fraction: {val_fraction} is out of range, it must be from 0 to 0.5")
    if block_size < 2:
        raise UserError(f"--block-size: {block_size} is out of range, it must be at least 2")
    plan = SftPlan(
        out=Path(out),
        tokenizer=tokenizer,
        template=_template(tokenizer),
        sources=find_items(inputs),
        block_size=block_size,
        val_fraction=val_fraction,
        shard_tokens=shard_tokens,
    )
    with alone(plan.out):
        return existing(plan, force) or _write(plan, workers, progress)


def _template(tokenizer: Tokenizer) -> Template:
    try:
        found = template_of(tokenizer)
    except UserError as e:
        reason = str(e).split(";")[0]
        raise UserError(
            f"{reason}; take a vocabulary that `nano-ds tokenizer` built, or that of a chat model"
        ) from None
    return Template(found.tokenizer, found.family, found.text, DATE)


def _write(plan: SftPlan, workers: int, progress: Progress) -> Result:
    items = _encode(plan, workers, progress)
    counts, notes = items.counts, _notes(items.counts, plan.block_size)
    if not len(items.lengths):
        names = ", ".join(s.name for s in plan.sources[:3])
        if counts["left_out"]:
            raise UserError(f"{names}: none of {counts['items']} items fits; {notes[0]}")
        raise UserError(f"{names}: no questions and answers in it")
    split = Split(int(plan.val_fraction * 2**64))
    validates = split.validates(items.hashes)
    documents = [int((~validates).sum()), int(validates.sum())]
    mended = mend(split, documents, int(items.hashes.min()), int(items.hashes.max()), notes)
    if mended is not None:
        validates = mended.validates(items.hashes)
    with atomic_dir(plan.out) as folder:
        chosen = {"train": np.flatnonzero(~validates), "val": np.flatnonzero(validates)}
        shards = {name: _write_rows(folder, name, plan, items, chosen[name]) for name in SPLITS}
        tokens, padding = (sum(e[key] for name in SPLITS for e in shards[name]) for key in ("tokens", "padding"))
        if padding > MUCH * tokens and tokens > FEW * plan.block_size:
            notes.append(
                f"{padding / tokens:.1%} of the rows is padding, since many items are nearly as long as a row; a "
                "larger --block-size (data.block_size) leaves less"
            )
        plan.tokenizer.save(folder / "tokenizer.json")
        marks = plan.tokenizer.vocab_size, plan.tokenizer.fingerprint
        manifest = {**new_manifest(*marks, shards, plan.block_size), "recipe": plan.recipe, "items": counts}
        write_json(folder / "manifest.json", manifest)
    return Result(manifest, False, tuple(notes))


def _encode(plan: SftPlan, workers: int, progress: Progress) -> Items:
    """All conversations; they are held in memory, since packing looks at all of them."""
    count = worker_count(workers, sum(s.size for s in plan.sources))
    encode = partial(encode_items, plan.template, plan.block_size + 1)
    parts = []
    with closing(map_batches(encode, item_batches(plan.sources), count)) as encoded:
        for part in encoded:
            progress(part.consumed)
            parts.append(part)
    if not parts:
        raise UserError(f"{', '.join(s.name for s in plan.sources[:3])}: no questions and answers in it")
    counts = {key: (max if key == "longest" else sum)(p.counts[key] for p in parts) for key in parts[0].counts}
    return Items(
        tokens=np.concatenate([p.tokens for p in parts]),
        loss=np.concatenate([p.loss for p in parts]),
        lengths=np.concatenate([p.lengths for p in parts]),
        hashes=np.concatenate([p.hashes for p in parts]),
        text_bytes=np.concatenate([p.text_bytes for p in parts]),
        consumed=sum(p.consumed for p in parts),
        counts=counts,
    )


def _notes(counts: dict[str, int], block_size: int) -> list[str]:
    """What the user must know about items that are not there whole."""
    notes = []
    if counts["shortened"] or counts["left_out"]:
        told = []
        if counts["shortened"]:
            earlier = f"{counts['answers_left_out']:,} earlier answers left out"
            told.append(f"{counts['shortened']:,} keep only the last exchanges that fit ({earlier})")
        if counts["left_out"]:
            told.append(f"{counts['left_out']:,} are left out, since their last exchange alone is too long")
        total = counts["shortened"] + counts["left_out"]
        notes.append(
            f"{total:,} of {counts['items']:,} items are longer than {block_size} tokens: {' and '.join(told)}; the "
            f"longest has {counts['longest']:,} tokens, a larger --block-size (data.block_size) keeps more"
        )
    if counts["prepended"]:
        notes.append(
            f"{counts['prepended']:,} items have a system prompt, for which this template has no place: it stands "
            "before the first question"
        )
    return notes


def _write_rows(folder: Path, split: str, plan: SftPlan, items: Items, chosen: np.ndarray) -> list[dict[str, Any]]:
    """Packs and writes the ``chosen`` items; returns the manifest entries."""
    row = plan.block_size + 1
    ends = np.cumsum(items.lengths)
    filler = np.full(row, plan.tokenizer.eos_id, token_dtype(plan.tokenizer.vocab_size))
    entries: list[dict[str, Any]] = []
    writer: ShardWriter | None = None
    try:
        for members in pack(items.lengths[chosen], row):
            numbers = chosen[members]
            lengths = items.lengths[numbers]
            padding = row - int(lengths.sum())
            spans = [slice(ends[i] - items.lengths[i], ends[i]) for i in numbers]
            tokens = np.concatenate([*(items.tokens[s] for s in spans), filler[:padding]])
            loss = np.concatenate([*(items.loss[s] for s in spans), np.zeros(padding, bool)])
            lengths[-1] += padding
            if writer is None:
                path = folder / f"{split}-{len(entries):05d}.bin"
                writer = ShardWriter(path, plan.tokenizer.vocab_size, plan.tokenizer.fingerprint, row)
            writer.add_row(tokens, lengths, loss, int(items.text_bytes[numbers].sum()), padding)
            if writer.tokens >= plan.shard_tokens:
                entries.append(writer.close())
                writer = None
        if writer is not None:
            entries.append(writer.close())
            writer = None
    finally:
        if writer is not None:
            writer.abandon()
    return entries
