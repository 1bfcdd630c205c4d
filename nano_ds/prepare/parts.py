"""One n-th of the input, encoded and kept beside the set to be; all n parts joined are the set that one machine makes.

    OUT.parts/part-00003-of-00008/batches.bin   a record per batch of documents, in the order of the input
    OUT.parts/part-00003-of-00008/part.json     from which text, with which tokenizer; size and checksum of the former

A record, little-endian: how many documents (u64), tokens (u64), bytes of input (u64), BLAKE2b of the documents (32
bytes); then of each document its number of tokens (i64), its hash (u64), its bytes of text (i64); then the tokens.

Whether a part belongs to this text is decided by content: the names and sizes of all inputs, and the BLAKE2b of every
batch of documents. Times of change do not matter, as each machine may have a copy of its own; the manifest names those
of the machine that joins. Which documents validate and where shards end is decided when the parts are joined, by the
code that every set comes from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import struct
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from nano_ds.errors import UserError
from nano_ds.files import atomic_dir, sha256_file
from nano_ds.prepare import documents
from nano_ds.prepare.documents import Batch, Progress, Source, find_sources, share_batches
from nano_ds.prepare.encoding import Encoded, encode_all, worker_count
from nano_ds.prepare.sets import SHARD_TOKENS, Result, SetPlan, alone, existing, write_set
from nano_ds.shards import token_dtype
from nano_ds.tokenizer import Tokenizer

FORMAT, VERSION = "nano_ds.part", 1
MOST_PARTS = 99_999
RECORD = struct.Struct("<QQQ32s")
DATA, FACTS = "batches.bin", "part.json"


@dataclass(frozen=True)
class Part:
    """Part ``number`` (from 1) of ``count``."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Reads "3/8". Raises UserError for anything that is no part."""
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text, re.ASCII)
        if found:
            number, count = int(found[1][:9]), int(found[2][:9])
            if 1 <= number <= count <= MOST_PARTS:
                return cls(number, count)
        raise UserError(f"--part: {text!r} is no part; write I/N with I from 1 to N, such as 1/3, 2/3 and 3/3")

    def folder(self, out: Path) -> Path:
        return parts_folder(out) / f"part-{self.number:05d}-of-{self.count:05d}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class PartResult:
    """What ``prepare_part`` did: the facts in part.json, and whether the part was there already."""

    facts: dict[str, Any]
    up_to_date: bool
    note: str = ""  # why a part that was there was made again


def parts_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def prepare_part(
    inputs: Sequence[str],
    tokenizer: Tokenizer,
    out: str | Path,
    part: Part,
    *,
    workers: int = 0,
    force: bool = False,
    progress: Progress = lambda n: None,
) -> PartResult:
    """Encodes one part of ``inputs`` for the set at ``out``; a valid part that is there already is left as it is.

    The part appears at once when all of it is written. ``force`` makes it again in any case.

    Raises:
        UserError: unreadable input, or another process is making this very part.
    """
    out, sources = Path(out), find_sources(inputs)
    folder = part.folder(out)
    try:
        with alone(folder):
            note = ""
            if folder.exists() and not force:
                wrong = check_parts(sources, tokenizer, out, part.count, [part.number])
                if not wrong:
                    return PartResult(_read_facts(folder), True)
                note = f"part {part} was {wrong[part.number]}; made again"
            return PartResult(_write_part(folder, part, sources, tokenizer, workers, progress), False, note)
    finally:
        with contextlib.suppress(OSError):
            parts_folder(out).rmdir()  # empty if nothing could be written


def _write_part(
    folder: Path, part: Part, sources: Sequence[Source], tokenizer: Tokenizer, workers: int, progress: Progress
) -> dict[str, Any]:
    count = worker_count(workers, sum(s.size for s in sources) // part.count)
    digests: deque[bytes] = deque()

    def batches() -> Iterator[Batch]:
        for _, batch in share_batches(sources, part.count, [part.number]):
            digests.append(_digest(batch))
            yield batch

    whole = hashlib.sha256()
    total = dict.fromkeys(("batches", "documents", "tokens", "consumed", "size"), 0)
    with atomic_dir(folder) as tmp:
        with open(tmp / DATA, "wb") as f, closing(encode_all(tokenizer, batches(), count)) as encoded:
            for batch in encoded:
                record = _record(batch, digests.popleft())
                for piece in record:
                    f.write(piece)
                    whole.update(piece)
                progress(batch.consumed)
                total["batches"] += 1
                total["documents"] += len(batch.lengths)
                total["tokens"] += len(batch.tokens)
                total["consumed"] += batch.consumed
                total["size"] += sum(map(len, record))
        facts = {
            **_identity(sources, tokenizer, part),
            **total,
            "sha256": whole.hexdigest(),
        }
        facts["check"] = _check_of(facts)
        (tmp / FACTS).write_bytes(_dump(facts))
    return facts


def _record(batch: Encoded, digest: bytes) -> list[bytes]:
    head = RECORD.pack(len(batch.lengths), len(batch.tokens), batch.consumed, digest)
    columns = batch.lengths.astype("<i8"), batch.hashes.astype("<u8"), batch.text_bytes.astype("<i8"), batch.tokens
    return [head, *(c.tobytes() for c in columns)]


def _digest(batch: Batch) -> bytes:
    """Identifies the documents of a batch, whatever file they come from and wherever they stand in it."""
    digest = hashlib.blake2b(batch.kind.encode() + b"\n", digest_size=32)
    for document in batch.documents:
        digest.update(struct.pack("<Q", len(document)))
        digest.update(document)
    return digest.digest()


def _identity(sources: Sequence[Source], tokenizer: Tokenizer, part: Part) -> dict[str, Any]:
    """What must be equal in a part that is used, apart from the text itself."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "part": part.number,
        "parts": part.count,
        "cut": [documents.DOCUMENT_BYTES, documents.BATCH_BYTES],
        "tokenizer": tokenizer.fingerprint,
        "sources": [[s.name, s.kind, s.size] for s in sources],
    }


# ── checking ──────────────────────────────────────────────────────────────────────────────────────


def check_parts(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    out: Path,
    count: int,
    wanted: Iterable[int],
    progress: Progress = lambda n: None,
) -> dict[int, str]:
    """Reads all of the wanted parts, and the text that they stand for; returns what is wrong, by number of the part.

    A part that is not in the answer is valid for these sources and this tokenizer, to the last byte.
    """
    wrong: dict[int, str] = {}
    good: dict[int, Iterator[bytes]] = {}
    for number in wanted:
        part = Part(number, count)
        reason = part_fault(part, sources, tokenizer, out)
        if reason:
            wrong[number] = reason
        else:
            good[number] = _digests(part.folder(out), tokenizer.vocab_size)
    for number, batch in share_batches(sources, count, list(good)):
        if number not in wrong and next(good[number], None) != _digest(batch):
            wrong[number] = f"made from other text (of {batch.source})"
        progress(batch.consumed)
    for number, rest in good.items():
        if number not in wrong and next(rest, None) is not None:
            wrong[number] = "made from more text"
    return dict(sorted(wrong.items()))


def part_fault(part: Part, sources: Sequence[Source], tokenizer: Tokenizer, out: Path) -> str:
    """Why what lies in the place of a part is of no use, or nothing. Reads all of the part, none of the text."""
    folder, identity = part.folder(out), _identity(sources, tokenizer, part)
    if not folder.is_dir():
        return "missing"
    try:
        facts = _read_facts(folder)
        data = folder / DATA
        if facts["format"] != FORMAT or facts["version"] != VERSION or facts["cut"] != identity["cut"]:
            return "made by another version of nano_ds"
        if facts["tokenizer"] != identity["tokenizer"]:
            return "made with another tokenizer"
        if facts["sources"] != identity["sources"]:
            return f"made from other text ({_difference(facts['sources'], identity['sources'])})"
        if any(facts[key] != value for key, value in identity.items()):
            return "another part"
        if data.stat().st_size != facts["size"] or sha256_file(data) != facts["sha256"]:
            return f"damaged ({DATA})"
    except FileNotFoundError as e:
        return f"damaged (no {Path(e.filename).name})"
    except (OSError, ValueError, KeyError, TypeError):
        return f"damaged ({FACTS})"
    return ""


def _difference(there: list[list[Any]], here: list[list[Any]]) -> str:
    """The first input in which two lists of [name, kind, size] differ."""
    for (name, _, size), (own_name, _, own_size) in zip(there, here, strict=False):
        if name != own_name:
            return f"{name} where here it is {own_name}"
        if size != own_size:
            return f"{name} has {size:,} bytes there and {own_size:,} here"
    longer, place = (there, "there") if len(there) > len(here) else (here, "here")
    return f"{longer[min(len(there), len(here))][0]} is only {place}"


def _read_facts(folder: Path) -> dict[str, Any]:
    """part.json; raises ValueError if a single byte of it is not as it was written."""
    data = (folder / FACTS).read_bytes()
    facts = json.loads(data)
    if not isinstance(facts, dict) or _dump(facts) != data:
        raise ValueError(folder)
    if facts.get("check") != _check_of(facts):
        raise ValueError(folder)
    return facts


def _dump(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=1) + "\n").encode()


def _check_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(_dump({key: value for key, value in facts.items() if key != "check"})).hexdigest()


# ── joining ───────────────────────────────────────────────────────────────────────────────────────


def join_parts(
    inputs: Sequence[str],
    tokenizer: Tokenizer,
    out: str | Path,
    count: int,
    *,
    val_fraction: float = 0.02,
    force: bool = False,
    progress: Progress = lambda n: None,
    shard_tokens: int = SHARD_TOKENS,
    again: str = "nano-ds prepare …",
) -> Result:
    """Makes the set at ``out`` from its ``count`` parts and removes them: the same bytes that ``prepare_set`` writes.

    ``progress`` is told of the input twice, while it is checked and while it is written; ``again`` is the command line
    that, with --part I/N behind it, makes a part.

    Raises:
        UserError: parts are missing, damaged, or made from other text or with another tokenizer; names each of them.
    """
    plan = SetPlan.of(inputs, tokenizer, out, val_fraction, shard_tokens)
    with alone(plan.out):
        ready = existing(plan, force)
        if ready:
            remove_parts(plan.out)
        return ready or join_checked(plan, count, progress, again)


def join_checked(plan: SetPlan, count: int, progress: Progress, again: str) -> Result:
    """``join_parts`` for who holds the lock of the set and wants it made."""
    wrong = check_parts(plan.sources, plan.tokenizer, plan.out, count, range(1, count + 1), progress)
    if wrong:
        listed = ", ".join(f"part {number} is {reason}" for number, reason in list(wrong.items())[:5])
        listed += f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        command = f"`{again} --part {next(iter(wrong))}/{count}`" + (" and so on" if len(wrong) > 1 else "")
        fix = f"make {'them' if len(wrong) > 1 else 'it'} again: {command}"
        raise UserError(f"{parts_folder(plan.out)}: of {count} parts, {listed}; {fix}")
    folders = [Part(number, count).folder(plan.out) for number in range(1, count + 1)]
    result = write_set(plan, lambda: _encoded(folders, plan.tokenizer.vocab_size), progress)
    remove_parts(plan.out)
    return result


def remove_parts(out: Path) -> None:
    """Removes every part of the set and what killed runs left of one; anything else in the folder stays."""
    for pattern in ("part-*-of-*", ".part-*-of-*.tmp"):
        for folder in parts_folder(out).glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
    for lock in parts_folder(out).glob(".part-*-of-*.lock"):
        lock.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        parts_folder(out).rmdir()


def _encoded(folders: Sequence[Path], vocab_size: int) -> Generator[Encoded, None, None]:
    """What ``encode_all`` would give for the whole input, read back from checked parts."""
    dtype = token_dtype(vocab_size)
    for folder in folders:
        with open(folder / DATA, "rb") as f:
            for count, tokens, consumed, _ in _heads(f):
                lengths, hashes, sizes = (np.frombuffer(f.read(8 * count), kind) for kind in ("<i8", "<u8", "<i8"))
                yield Encoded(np.frombuffer(f.read(tokens * dtype.itemsize), dtype), lengths, hashes, sizes, consumed)


def _digests(folder: Path, vocab_size: int) -> Iterator[bytes]:
    """The digest of each batch of a part."""
    width = token_dtype(vocab_size).itemsize
    with open(folder / DATA, "rb") as f:
        for count, tokens, _, digest in _heads(f):
            f.seek(24 * count + width * tokens, 1)
            yield digest


def _heads(f: IO[bytes]) -> Iterator[tuple[int, int, int, bytes]]:
    """The heads of the records; whoever takes one must move ``f`` behind its record before the next."""
    while head := f.read(RECORD.size):
        yield RECORD.unpack(head)
