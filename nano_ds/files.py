"""Files are written beside their place and renamed, so a reader sees the old one, the new one, or none."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from nano_ds.errors import UserError


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file object that becomes ``path`` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        with open(path, mode, encoding=None if "b" in mode else "utf-8") as f:  # a device or a pipe: no rename over it
            yield f
        return
    tmp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(tmp, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException as e:
        tmp.unlink(missing_ok=True)
        _name(e, tmp, path)
        raise
    sync_dir(path.parent)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """An empty folder that becomes ``path`` (replacing it) when the block ends well, and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    tmp.mkdir()
    old: Path | None = None
    try:
        yield tmp
        for file in tmp.rglob("*"):
            if file.is_file():
                sync_file(file)
        sync_dir(tmp)
        if path.exists():
            old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old.tmp")
            os.rename(path, old)
        os.rename(tmp, path)
    except BaseException as e:
        shutil.rmtree(tmp, ignore_errors=True)
        if old is not None and not path.exists():
            os.rename(old, path)
        _name(e, tmp, path)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    sync_dir(path.parent)


def _name(e: BaseException, tmp: Path, path: Path) -> None:
    """Makes an OSError speak of the file that was wanted, not of the temporary one (or of none)."""
    if isinstance(e, OSError) and (e.filename is None or str(e.filename).startswith(str(tmp))):
        e.filename, e.filename2 = str(path), None


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


sync_dir = sync_file


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


class HashedFile:
    """A new binary file whose SHA-256 is computed beside the writing, not after it; a context manager.

    After the block it is on the disk and ``entry`` holds its size in bytes and SHA-256 (hex).
    """

    CHUNK = 1 << 24

    def __init__(self, path: str | Path):
        self._file = open(path, "wb")  # noqa: SIM115 (closed by close)
        self._digest = hashlib.sha256()
        self._helper = ThreadPoolExecutor(1)
        self._size = 0

    def write(self, data: bytes | memoryview) -> int:
        whole = memoryview(data).cast("B")
        for start in range(0, len(whole), self.CHUNK):
            part = whole[start : start + self.CHUNK]
            if len(part) < 1 << 16:
                self._digest.update(part)
                self._file.write(part)
                continue
            hashed = self._helper.submit(self._digest.update, part)
            try:
                self._file.write(part)
            finally:
                hashed.result()
        self._size += len(whole)
        return len(whole)

    def flush(self) -> None:
        self._file.flush()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self._helper.shutdown()
        with self._file as f:
            if kind is None:
                f.flush()
                os.fsync(f.fileno())
        self.entry = (self._size, self._digest.hexdigest())


def write_json(path: str | Path, value: Any) -> None:
    with atomic_write(path, "w") as f:
        json.dump(value, f, indent=1, ensure_ascii=False)
        f.write("\n")


def read_json(path: str | Path, what: str) -> Any:
    """Parses a JSON file; raises UserError naming the file, the cause and ``what`` it should be."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {what}") from None
    except OSError as e:
        raise UserError(f"{path}: cannot read {what}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not JSON ({e}); expected {what}") from None
