"""Text to token shards: find the documents, encode them in several processes, write a set.

The main process cuts the input into documents and hands them out in batches of about a megabyte; workers check and
encode them; the main process writes what comes back, in order. So the result is the same for any number of workers, and
memory stays at a few batches however large the files are.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nano_ds import corpus
from nano_ds.errors import RunFailure, UserError
from nano_ds.files import atomic_dir, write_json
from nano_ds.shards import SPLITS, ShardWriter, new_manifest, read_manifest, token_dtype
from nano_ds.tokenizer import Tokenizer
from nano_ds.tokenizer.trie import to_bytes

DOCUMENT_BYTES = 1 << 16  # a longer text file is cut at blank lines
BATCH_BYTES = 1 << 20  # text that a worker gets at once
SHARD_TOKENS = 1 << 27  # tokens after which a new shard begins
SPAWN_ABOVE = 8 << 20  # less text than this is not worth starting processes for
SUFFIXES = (".txt", ".md", ".rst", ".jsonl", ".py", ".c", ".h")

Progress = Callable[[int], object]  # told how many bytes of input are done


@dataclass(frozen=True)
class Source:
    """One input: a text file, a .jsonl file, or the built-in corpus."""

    name: str  # as the user wrote it
    kind: str  # text, jsonl, builtin
    size: int
    stamp: int | str = ""  # time of the last change, or what the built-in corpus depends on

    @property
    def entry(self) -> dict[str, Any]:
        return {"path": self.name, "size": self.size, "stamp": self.stamp}


@dataclass
class Batch:
    """Documents on their way to a worker."""

    source: str
    kind: str
    documents: list[bytes] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # byte offset of each in its file, or its line number
    consumed: int = 0  # bytes of input that it stands for


@dataclass
class Encoded:
    """Documents on their way back. The hash of a document decides whether it trains or validates."""

    tokens: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    text_bytes: np.ndarray
    consumed: int


@dataclass(frozen=True)
class Result:
    """What ``prepare_set`` did."""

    manifest: dict[str, Any]
    up_to_date: bool
    notes: tuple[str, ...] = ()


# ── input ─────────────────────────────────────────────────────────────────────────────────────────


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """Every file behind ``inputs``, folders searched in sorted order; hidden and unknown kinds passed over."""
    if not inputs:
        raise UserError("no text to prepare; give --text FILE…, or `text:` in the recipe's data.sets")
    found: list[Source] = []
    for name in inputs:
        if name.startswith("builtin:"):
            if name != corpus.BUILTIN:
                raise UserError(f"{name}: no such built-in corpus; there is {corpus.BUILTIN}")
            found.append(Source(name, "builtin", 3_000_000, corpus.identity()))
        elif not name:
            raise UserError("an empty name of a text; change `text:` of the data set or --text")
        elif Path(name).is_dir():
            files = [_source(p) for p in _walk(Path(name))]
            if not files:
                raise UserError(f"{name}: no {', '.join(SUFFIXES)} file in this folder; name the files themselves")
            found += files
        elif not Path(name).exists():
            raise UserError(f"{name}: no such file or folder of text; change `text:` of the data set or --text")
        else:
            found.append(_source(Path(name)))
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif path.is_file() and path.suffix.lower() in SUFFIXES:
            yield path


def _source(path: Path) -> Source:
    facts = path.stat()
    kind = "jsonl" if path.suffix.lower() == ".jsonl" else "text"
    return Source(str(path), kind, facts.st_size, facts.st_mtime_ns)


def read_batches(sources: Iterable[Source]) -> Iterator[Batch]:
    """The documents of all sources, in order."""
    readers = {"text": _text_documents, "jsonl": _jsonl_documents, "builtin": _builtin_documents}
    for source in sources:
        batch, size = Batch(source.name, source.kind), 0
        for document, place in readers[source.kind](source):
            batch.documents.append(document)
            batch.places.append(place)
            size += len(document)
            if size >= BATCH_BYTES:
                batch.consumed = size
                yield batch
                batch, size = Batch(source.name, source.kind), 0
        batch.consumed = size
        if batch.documents:
            yield batch


def _text_documents(source: Source) -> Iterator[tuple[bytes, int]]:
    """A small file is one document; a larger one is cut at the last blank line before 64 KiB.

    Where there is none, at the last line end, else the last space, else between two characters.
    """
    offset, pending = 0, b""
    with _open(source) as f:
        start = f.read(3)
        offset, pending = (3, b"") if start == b"\xef\xbb\xbf" else (0, start)
        while chunk := f.read(BATCH_BYTES):
            pending += chunk
            at = 0
            while len(pending) - at > DOCUMENT_BYTES:
                end = _cut_at(pending, at, at + DOCUMENT_BYTES)
                yield from _trimmed(pending[at:end], offset + at)
                at = end
            offset, pending = offset + at, pending[at:]
    yield from _trimmed(pending, offset)


def _cut_at(data: bytes, start: int, limit: int) -> int:
    for mark in (b"\n\n", b"\n\r\n", b"\n", b" "):
        found = data.rfind(mark, start, limit)
        if found > start:
            return found + len(mark)
    while limit > start + 1 and data[limit] & 0xC0 == 0x80:
        limit -= 1
    return limit


def _trimmed(document: bytes, offset: int) -> Iterator[tuple[bytes, int]]:
    body = document.strip(b"\r\n")
    if body.strip():
        yield body, offset + len(document) - len(document.lstrip(b"\r\n"))


def _jsonl_documents(source: Source) -> Iterator[tuple[bytes, int]]:
    with _open(source) as f:
        for number, line in enumerate(f, start=1):
            if line.strip():
                yield line, number


def _builtin_documents(source: Source) -> Iterator[tuple[bytes, int]]:
    for number, text in enumerate(corpus.python_docs(), start=1):
        yield to_bytes(text), number


def _open(source: Source) -> Any:
    try:
        return open(source.name, "rb")
    except OSError as e:
        raise UserError(f"{source.name}: cannot read it: {e.strerror}") from None


def batch_texts(batch: Batch) -> list[str]:
    """The checked texts of a batch.

    Raises:
        UserError: not UTF-8, binary, or no valid JSONL line; names the file and the byte offset or line.
    """
    texts = []
    for document, place in zip(batch.documents, batch.places, strict=True):
        if batch.kind == "jsonl":
            text = _jsonl_text(document, f"{batch.source}:{place}")
            if text.strip():
                texts.append(text)
            continue
        zero = document.find(b"\0") if batch.kind == "text" else -1
        if zero >= 0:
            raise UserError(f"{batch.source}: binary (a NUL at byte {place + zero}); give text files only")
        try:
            texts.append(document.decode("utf-8"))
        except UnicodeDecodeError as e:
            where = place + e.start
            raise UserError(
                f"{batch.source}: not UTF-8 at byte {where} (0x{document[e.start]:02x}); convert it, for example "
                f"`iconv -f LATIN1 -t UTF-8` or `iconv -f GB18030 -t UTF-8`"
            ) from None
    return texts


def _jsonl_text(line: bytes, where: str) -> str:
    try:
        item = json.loads(line)
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not UTF-8 at byte {e.start} of the line; convert the file to UTF-8") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f'{where}: not JSON ({e}); every line must be an object like {{"text": "…"}}') from None
    text = item.get("text") if isinstance(item, dict) else None
    if not isinstance(text, str):
        found = (
            f"an object with {', '.join(map(repr, item)) or 'nothing'}" if isinstance(item, dict) else repr(item)[:40]
        )
        raise UserError(f'{where}: {found}; every line must be an object like {{"text": "…"}}')
    return text


def read_documents(sources: Iterable[Source], progress: Progress) -> Iterator[str]:
    """The texts themselves, one process, for building a vocabulary."""
    for batch in read_batches(sources):
        yield from batch_texts(batch)
        progress(batch.consumed)


# ── encoding ──────────────────────────────────────────────────────────────────────────────────────


def encode_batch(tokenizer: Tokenizer, batch: Batch) -> Encoded:
    """Each document's tokens with <|eos|> behind them, its hash and its length in bytes."""
    texts = batch_texts(batch)
    dtype = token_dtype(tokenizer.vocab_size)
    eos = np.array([tokenizer.eos_id], dtype)
    parts: list[np.ndarray] = []
    lengths, sizes, hashes = [], [], []
    for text in texts:
        data = to_bytes(text)
        ids = tokenizer.encode_array(data).astype(dtype)
        parts += [ids, eos]
        lengths.append(len(ids) + 1)
        sizes.append(len(data))
        hashes.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big"))
    return Encoded(
        np.concatenate(parts) if parts else np.zeros(0, dtype),
        np.array(lengths, np.int64),
        np.array(hashes, np.uint64),
        np.array(sizes, np.int64),
        batch.consumed,
    )


_worker_tokenizer: Tokenizer


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # the main process was killed: nobody waits for us

    threading.Thread(target=follow, daemon=True).start()


def _work(batch: Batch) -> Encoded:
    return encode_batch(_worker_tokenizer, batch)


def encode_all(tokenizer: Tokenizer, batches: Iterable[Batch], workers: int) -> Iterator[Encoded]:
    """Encodes batches in ``workers`` processes; results come in the order of the batches."""
    if workers <= 1:
        for batch in batches:
            yield encode_batch(tokenizer, batch)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (tokenizer,))
    try:
        waiting: deque[Future[Encoded]] = deque()
        for batch in batches:
            waiting.append(pool.submit(_work, batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RunFailure(
            "a worker process died (out of memory?); use fewer with --workers, then run it again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ── the set ───────────────────────────────────────────────────────────────────────────────────────


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
    if not 0 <= val_fraction <= 0.5:
        raise UserError(f"--val-fraction: {val_fraction} is out of range, it must be from 0 to 0.5")
    out = Path(out)
    sources = find_sources(inputs)
    recipe = {
        "sources": [s.entry for s in sources],
        "val_fraction": val_fraction,
        "shard_tokens": shard_tokens,
    }
    with _alone(out):
        if out.exists() and not force:
            return _existing(out, recipe, tokenizer)
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: a file, not a folder; choose another --out")
        if force and out.is_dir() and any(out.iterdir()) and not (out / "manifest.json").exists():
            raise UserError(f"{out}: not a set of token shards, --force will not replace it; choose another --out")
        total = sum(s.size for s in sources)
        workers = workers or len(os.sched_getaffinity(0))
        workers = 1 if total < SPAWN_ABOVE else workers
        split = Split(int(val_fraction * 2**64))
        with atomic_dir(out) as folder:
            shards, lowest, highest = _write(folder, sources, tokenizer, split, workers, progress, shard_tokens)
            documents = [sum(s["documents"] for s in shards[name]) for name in SPLITS]
            notes: list[str] = []
            if not sum(documents):
                raise UserError(f"{', '.join(inputs)}: no text in it (empty or only white space); give text")
            mended = _mend(split, documents, lowest, highest, notes)
            if mended is not None:
                for file in folder.iterdir():
                    file.unlink()
                shards, _, _ = _write(folder, sources, tokenizer, mended, workers, lambda n: None, shard_tokens)
            manifest = {**new_manifest(tokenizer.vocab_size, tokenizer.fingerprint, shards), "recipe": recipe}
            tokenizer.save(folder / "tokenizer.json")
            write_json(folder / "manifest.json", manifest)
    return Result(manifest, False, tuple(notes))


def _mend(split: Split, documents: list[int], lowest: int, highest: int, notes: list[str]) -> Split | None:
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


def _write(
    folder: Path,
    sources: list[Source],
    tokenizer: Tokenizer,
    split: Split,
    workers: int,
    progress: Progress,
    shard_tokens: int,
) -> tuple[dict[str, list[dict[str, Any]]], int, int]:
    """Writes the shards; returns their manifest entries, the lowest and the highest hash of a document."""
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    writers: dict[str, ShardWriter] = {}
    lowest, highest = 1 << 64, -1
    encoded = encode_all(tokenizer, read_batches(sources), workers)
    try:
        for part in encoded:
            progress(part.consumed)
            if not len(part.hashes):
                continue
            lowest, highest = min(lowest, int(part.hashes.min())), max(highest, int(part.hashes.max()))
            validates = split.validates(part.hashes)
            for name, chosen in (("train", ~validates), ("val", validates)):
                if not chosen.any():
                    continue
                if name not in writers:
                    path = folder / f"{name}-{len(entries[name]):05d}.bin"
                    writers[name] = ShardWriter(path, tokenizer.vocab_size, tokenizer.fingerprint)
                tokens = part.tokens[np.repeat(chosen, part.lengths)]
                writers[name].add(tokens, part.lengths[chosen], int(part.text_bytes[chosen].sum()))
                if writers[name].tokens >= shard_tokens:
                    entries[name].append(writers.pop(name).close())
        for name in list(writers):
            entries[name].append(writers[name].close())
            del writers[name]
    finally:
        for writer in writers.values():
            writer.abandon()
        encoded.close()  # type: ignore[attr-defined]
    return entries, lowest, highest


def _existing(out: Path, recipe: dict[str, Any], tokenizer: Tokenizer) -> Result:
    """The set that is there, if it is the one asked for."""
    fix = "--force replaces it, another --out keeps both"
    if not out.is_dir() or not (out / "manifest.json").exists():
        raise UserError(f"{out}: exists and is not a set of token shards; choose another --out")
    manifest = read_manifest(out)
    old = manifest.get("recipe", {})
    differs = []
    if manifest["tokenizer"]["fingerprint"] != tokenizer.fingerprint:
        differs.append("tokenizer")
    differs += [
        what for what, key in (("inputs", "sources"), ("val_fraction", "val_fraction")) if old.get(key) != recipe[key]
    ]
    differs += ["shard size"] if old.get("shard_tokens") != recipe["shard_tokens"] else []
    if differs:
        raise UserError(f"{out}: already holds a set made with other {' and '.join(differs)}; {fix}")
    for shard in (s for name in SPLITS for s in manifest["shards"][name]):
        if not (out / shard["file"]).is_file():
            raise UserError(f"{out}/{shard['file']}: missing from the set that is there; --force makes it again")
    return Result(manifest, True)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
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
