"""The input of ``prepare``: which files, which documents in them, in which batches they travel."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nano_ds import corpus
from nano_ds.errors import UserError
from nano_ds.tokenizer.trie import to_bytes

DOCUMENT_BYTES = 1 << 16  # a longer text file is cut at blank lines
BATCH_BYTES = 1 << 20  # text that a worker gets at once
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
    for source in sources:
        yield from _source_batches(source)


def _source_batches(source: Source) -> Iterator[Batch]:
    readers = {"text": _text_documents, "jsonl": _jsonl_documents, "builtin": _builtin_documents}
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


def share_batches(sources: Sequence[Source], parts: int, wanted: Collection[int]) -> Iterator[tuple[int, Batch]]:
    """The batches of the ``wanted`` parts (counted from 1) of ``parts``, each with the number of its part.

    All parts one after another are exactly ``read_batches``: a batch belongs to the part in whose share of the input's
    bytes it begins. Files outside the wanted shares are not opened; one that reaches into them is read from its
    beginning, since where a document is cut depends on the cuts before it. That is cheap beside encoding.
    """
    total = max(1, sum(s.size for s in sources))

    def part_at(place: int) -> int:
        return min(parts, 1 + place * parts // total)

    begin = 0
    for source in sources:
        last = max(0, source.size - 1)
        if not wanted or part_at(begin) > max(wanted):
            return
        if source.size and any(part_at(begin) <= w <= part_at(begin + last) for w in wanted):
            done = 0
            for batch in _source_batches(source):
                part = part_at(begin + min(done, last))  # the size of the built-in corpus is an estimate
                if part > max(wanted):
                    return
                if part in wanted:
                    yield part, batch
                done += batch.consumed
        begin += source.size


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
        hint = ""
        if isinstance(item, dict) and ({"question", "answer"} <= set(item) or "messages" in item):
            hint = "; questions and answers go with --sft, or `kind: sft` of the data set"
        raise UserError(f'{where}: {found}; every line must be an object like {{"text": "…"}}{hint}')
    return text


def read_documents(sources: Iterable[Source], progress: Progress) -> Iterator[str]:
    """The texts themselves, one process, for building a vocabulary."""
    for batch in read_batches(sources):
        yield from batch_texts(batch)
        progress(batch.consumed)
