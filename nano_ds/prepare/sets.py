"""Encoded documents to a set: which documents validate, where a shard ends, what the manifest says."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nano_ds.errors import UserError
from nano_ds.files import atomic_dir, write_json
from nano_ds.prepare.documents import Progress, Source, find_sources, read_batches
from nano_ds.prepare.encoding import Encoded, encode_all, worker_count
from nano_ds.shards import SPLITS, ShardWriter, new_manifest, read_manifest
from nano_ds.tokenizer import Tokenizer

SHARD_TOKENS = 1 << 27  # tokens after which a new shard begins

# How the parts of a recipe are called towards the user.
WHAT = {"sources": "inputs", "shard_tokens": "shard size", "block_size": "block size", "kind": "kind of data"}

Stream = Callable[[], Generator[Encoded, None, None]]  # begins the whole input anew, encoded, in order


@dataclass(frozen=True)
class Result:
    """What ``prepare_set`` did."""

    manifest: dict[str, Any]
    up_to_date: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Which documents validate: those whose hash is below ``limit``, and ``always``; never ``never``."""

    limit: int
    always: int | None = None
    never: int | None = None

    def validates(self, hashes: np.ndarray) -> np.ndarray:
        chosen = hashes < np.uint64(self.limit)
        if self.always is not None:
            chosen |= hashes == np.uint64(self.always)
        if self.never is not None:
            chosen &= hashes != np.uint64(self.never)
        return chosen


class Plan(Protocol):
    """Everything that decides what a set holds, and where it goes."""

    @property
    def out(self) -> Path: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def recipe(self) -> dict[str, Any]:
        """What the manifest remembers, to know whether the set is up to date."""


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """A set of text."""

    out: Path
    tokenizer: Tokenizer
    sources: Sequence[Source]
    val_fraction: float
    shard_tokens: int

    @classmethod
    def of(
        cls, inputs: Sequence[str], tokenizer: Tokenizer, out: str | Path, val_fraction: float, shard_tokens: int
    ) -> SetPlan:
        """Raises UserError for inputs that are not there and a fraction that cannot be."""
        if not 0 <= val_fraction <= 0.5:
            raise UserError(f"--val-fraction: {val_fraction} is out of range, it must be from 0 to 0.5")
        return cls(
            out=Path(out),
            tokenizer=tokenizer,
            sources=find_sources(inputs),
            val_fraction=val_fraction,
            shard_tokens=shard_tokens,
        )

    @property
    def recipe(self) -> dict[str, Any]:
        return {
            "sources": [s.entry for s in self.sources],
            "val_fraction": self.val_fraction,
            "shard_tokens": self.shard_tokens,
        }


def prepare_set(
    inputs: Sequence[str],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    val_fraction: float = 0.02,
    workers: int = 0,
    force: bool = False,
    progress: Progress = lambda n: None,
    shard_tokens: int = SHARD_TOKENS,
) -> Result:
    """Turns ``inputs`` into a set of token shards at ``out``.

    Every document is followed by <|eos|>. A document validates if the hash of its text says so, so equal documents stay
    on one side. ``out`` appears at once when all is written; an interrupted run leaves it as it was.

    Raises:
        UserError: unreadable or empty input, or ``out`` holds another set and ``force`` is not given.
    """
    plan = SetPlan.of(inputs, tokenizer, out, val_fraction, shard_tokens)
    count = worker_count(workers, sum(s.size for s in plan.sources))
    with alone(plan.out):
        return existing(plan, force) or write_set(
            plan, lambda: encode_all(tokenizer, read_batches(plan.sources), count), progress
        )


def write_set(plan: SetPlan, stream: Stream, progress: Progress) -> Result:
    """Writes the set from its encoded documents; the only way in which a set comes to be.

    ``stream`` is called once more where the hashes leave a side of a small set empty and a document must be moved.
    """
    split = Split(int(plan.val_fraction * 2**64))
    with atomic_dir(plan.out) as folder:
        shards, lowest, highest = _write_shards(folder, plan, stream, split, progress)
        documents = [sum(s["documents"] for s in shards[name]) for name in SPLITS]
        notes: list[str] = []
        if not sum(documents):
            names = ", ".join(s.name for s in plan.sources[:3]) + (" …" if len(plan.sources) > 3 else "")
            raise UserError(f"{names}: no text in it (empty or only white space); give text")
        mended = mend(split, documents, lowest, highest, notes)
        if mended is not None:
            for file in folder.iterdir():
                file.unlink()
            shards, _, _ = _write_shards(folder, plan, stream, mended, lambda n: None)
        marks = plan.tokenizer.vocab_size, plan.tokenizer.fingerprint
        plan.tokenizer.save(folder / "tokenizer.json")
        manifest = {**new_manifest(*marks, shards), "recipe": plan.recipe}
        write_json(folder / "manifest.json", manifest)
    return Result(manifest, False, tuple(notes))


def mend(split: Split, documents: list[int], lowest: int, highest: int, notes: list[str]) -> Split | None:
    """Another split when the hashes left one side of a small set empty."""
    train, val = documents
    if (train and val) or (train and not split.limit):
        return None
    if lowest == highest:
        notes.append("there is only one document, so nothing is left for validation")
        return None if train else Split(0)
    if val:
        notes.append("every document fell to validation by its hash; one was moved to training")
        return Split(split.limit, never=highest)
    notes.append("no document fell to validation by its hash; one was moved there")
    return Split(split.limit, always=lowest)


def _write_shards(
    folder: Path, plan: SetPlan, stream: Stream, split: Split, progress: Progress
) -> tuple[dict[str, list[dict[str, Any]]], int, int]:
    """Writes the shards; returns their manifest entries, the lowest and the highest hash of a document."""
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    writers: dict[str, ShardWriter] = {}
    lowest, highest = 1 << 64, -1
    try:
        with closing(stream()) as encoded:
            for batch in encoded:
                progress(batch.consumed)
                if not len(batch.hashes):
                    continue
                lowest, highest = min(lowest, int(batch.hashes.min())), max(highest, int(batch.hashes.max()))
                validates = split.validates(batch.hashes)
                for name, chosen in (("train", ~validates), ("val", validates)):
                    if not chosen.any():
                        continue
                    if name not in writers:
                        path = folder / f"{name}-{len(entries[name]):05d}.bin"
                        writers[name] = ShardWriter(path, plan.tokenizer.vocab_size, plan.tokenizer.fingerprint)
                    tokens = batch.tokens[np.repeat(chosen, batch.lengths)]
                    writers[name].add(tokens, batch.lengths[chosen], int(batch.text_bytes[chosen].sum()))
                    if writers[name].tokens >= plan.shard_tokens:
                        entries[name].append(writers.pop(name).close())
        for name in list(writers):
            entries[name].append(writers[name].close())
            del writers[name]
    finally:
        for writer in writers.values():
            writer.abandon()
    return entries, lowest, highest


def existing(plan: Plan, force: bool) -> Result | None:
    """The set that is there, if it is the one asked for; None where there is none or it may be replaced."""
    out = plan.out
    if not out.exists():
        return None
    if force:
        if not out.is_dir():
            raise UserError(f"{out}: a file, not a folder; choose another --out")
        if any(out.iterdir()) and not (out / "manifest.json").exists():
            raise UserError(f"{out}: not a set of token shards, --force will not replace it; choose another --out")
        return None
    fix = "--force replaces it, another --out keeps both"
    if not out.is_dir() or not (out / "manifest.json").exists():
        raise UserError(f"{out}: exists and is not a set of token shards; choose another --out")
    manifest = read_manifest(out)
    old, recipe = manifest.get("recipe", {}), plan.recipe
    differs = []
    if manifest["tokenizer"]["fingerprint"] != plan.tokenizer.fingerprint:
        differs.append("tokenizer")
    differs += [WHAT.get(key, key) for key in old.keys() | recipe.keys() if old.get(key) != recipe.get(key)]
    if differs:
        raise UserError(f"{out}: already holds a set made with other {' and '.join(sorted(differs))}; {fix}")
    for shard in (s for name in SPLITS for s in manifest["shards"][name]):
        if not (out / shard["file"]).is_file():
            raise UserError(f"{out}/{shard['file']}: missing from the set that is there; --force makes it again")
    return Result(manifest, True)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keeps a second `prepare` away from ``out``, and clears what a killed one left beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = out.parent / f".{out.name}.lock"
    with open(lock, "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{out}: another `nano-ds prepare` is writing it; wait for it, or stop it") from None
        try:
            for stale in out.parent.glob(f".{out.name}.*.tmp"):
                shutil.rmtree(stale, ignore_errors=True)
            yield
        finally:
            lock.unlink(missing_ok=True)
