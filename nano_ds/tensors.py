"""Safetensors files one tensor at a time, so that a model is never in memory twice, or even once.

The format: u64 length of a JSON header, the header (name: dtype, shape, data_offsets), the tensors without a gap
between them, everything little-endian. Files come from anywhere, so each number is checked before it is used.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from nano_ds.bf16 import from_bf16, to_bf16
from nano_ds.errors import UserError

# numpy has no bfloat16: its bits travel as uint16.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
# Others that may stand in a file: their size is checked, their values are not read.
OTHER_SIZES = {"I16": 2, "U16": 2, "U32": 4, "U64": 8, "I8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
FLOATS = ("F32", "F16", "BF16")
HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library
PIECE = 1 << 20  # numbers converted at once
Shape = tuple[int, ...]


class SafetensorsWriter:
    """Writes a safetensors file whose tensors arrive one after another, in the order they were declared.

    Used as a context manager; leaving the block early or with tensors missing raises, and the file is then no good:
    write it under a temporary name (``files.atomic_dir``, ``files.atomic_write``).
    """

    def __init__(self, path: str | Path, shapes: Mapping[str, Shape], dtypes: Mapping[str, str] | None = None):
        """``dtypes`` names those that are not F32."""
        self.names = list(shapes)
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._dtypes = {name: (dtypes or {}).get(name, "F32") for name in self.names}
        self._next = 0
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in self.names:
            size = np.dtype(DTYPES[self._dtypes[name]]).itemsize * math.prod(self._shapes[name])
            header[name] = {
                "dtype": self._dtypes[name],
                "shape": list(self._shapes[name]),
                "data_offsets": [at, at + size],
            }
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
        self._file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, tensor: Any) -> None:
        """The next tensor: a numpy array or a torch tensor of the declared shape; other float types are converted.

        Raises:
            ValueError: it is not the next one, or has another shape.
            UserError: it holds a number that its type has no room for.
        """
        self._expect(name)
        if hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu()
            tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        if np.shape(tensor) != self._shapes[name]:
            raise ValueError(f"{name} has shape {np.shape(tensor)}, declared was {self._shapes[name]}")
        self._file.write(self._stored(name, np.asarray(tensor)).data)
        self._next += 1

    def write_pieces(self, name: str, pieces: Iterable[np.ndarray]) -> None:
        """The next tensor, flattened and in pieces: for those that are too large to hold."""
        self._expect(name)
        count = 0
        for piece in pieces:
            self._file.write(self._stored(name, piece).data)
            count += piece.size
        if count != math.prod(self._shapes[name]):
            raise ValueError(f"{name} has {count} numbers, declared was {self._shapes[name]}")
        self._next += 1

    def _expect(self, name: str) -> None:
        expected = self.names[self._next] if self._next < len(self.names) else "nothing more"
        if name != expected:
            raise ValueError(f"{name} was written where {expected} was declared")

    def _stored(self, name: str, array: np.ndarray) -> np.ndarray:
        dtype = self._dtypes[name]
        if dtype == "BF16":
            return to_bf16(array)
        if dtype == "F16":
            with np.errstate(over="ignore"):
                narrow = np.ascontiguousarray(array, "<f2")
            if np.isinf(narrow).sum() > np.isinf(array).sum():
                raise UserError(f"{name}: holds {np.abs(array).max():g}, float16 ends at 65504; write bf16 or f32")
            return narrow
        return np.ascontiguousarray(array, np.dtype(DTYPES[dtype]))

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None and self._next < len(self.names):
            raise ValueError(f"{self._file.name}: ended before {self.names[self._next]} was written")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: ``begin`` counts bytes from the start of the file."""

    dtype: str
    shape: Shape
    begin: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, by name.

    Raises:
        OSError: it cannot be read.
        ValueError: saying what in the file contradicts the format.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        first = f.read(8)
        if len(first) < 8:
            raise ValueError(f"{size} bytes are too few")
        length = struct.unpack("<Q", first)[0]
        if length > min(HEADER_LIMIT, size - 8):
            raise ValueError(f"its header claims {length} bytes, the file has {size}")
        text = f.read(length)
    try:
        tree = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(tree, dict):
        raise ValueError("its header is no JSON object")
    tree.pop("__metadata__", None)
    start = 8 + length
    ends = {}
    entries = {}
    for name, item in tree.items():
        entries[name], ends[name] = _entry(name, item, start)
    at = start
    for name in sorted(entries, key=lambda n: (entries[n].begin, ends[n])):
        if entries[name].begin != at:
            raise ValueError(f"{name} begins at byte {entries[name].begin}, the tensor before it ends at {at}")
        at = ends[name]
    if at != size:
        raise ValueError(f"its tensors end at byte {at}, the file at {size}")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("its header names a tensor twice")
    return made


def _entry(name: str, item: Any, start: int) -> tuple[Entry, int]:
    """One tensor of the header, and the byte behind it."""
    try:
        dtype, shape, (begin, end) = item["dtype"], item["shape"], item["data_offsets"]
        width = OTHER_SIZES.get(dtype) or np.dtype(DTYPES[dtype]).itemsize
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"its header describes {name[:80]} as {str(item)[:120]}") from None
    if end - begin != width * math.prod(shape):
        raise ValueError(f"{name} of shape {shape} and type {dtype} has {end - begin} bytes")
    return Entry(dtype, tuple(shape), start + begin), start + end


class TensorFile(Mapping[str, np.ndarray]):
    """A safetensors file as a mapping that reads a tensor when asked for it (bfloat16 as float32)."""

    def __init__(self, path: str | Path, what: str = "the weights"):
        """Raises UserError if the file is missing or no safetensors file."""
        self.path = Path(path)
        try:
            self._entries = read_header(self.path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; expected {what}") from None
        except (OSError, ValueError) as e:
            raise UserError(f"{path}: no readable safetensors file ({e}); write {what} again") from None
        self.shapes: dict[str, Shape] = {name: e.shape for name, e in self._entries.items()}
        self.dtypes: dict[str, str] = {name: e.dtype for name, e in self._entries.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name, 0, math.prod(self._entries[name].shape)).reshape(self._entries[name].shape)

    def pieces(self, name: str, count: int = PIECE) -> Iterator[np.ndarray]:
        """The numbers of a tensor in order, at most ``count`` at once."""
        total = math.prod(self._entries[name].shape)
        for at in range(0, total, count):
            yield self._read(name, at, min(count, total - at))

    def _read(self, name: str, at: int, count: int) -> np.ndarray:
        entry = self._entries[name]
        if entry.dtype not in DTYPES:
            raise UserError(f"{self.path}: {name} is of type {entry.dtype}, which nano_ds cannot read")
        dtype = np.dtype(DTYPES[entry.dtype])
        array = np.fromfile(self.path, dtype, count, offset=entry.begin + at * dtype.itemsize)
        if array.size != count:
            raise UserError(f"{self.path}: became shorter while it was read; write it again")
        return from_bf16(array) if entry.dtype == "BF16" else array

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def check(self, expected: Mapping[str, Shape], source: str, dtypes: Collection[str] = ("F32",)) -> None:
        """Raises UserError with everything that differs from ``expected``, which ``source`` asks for."""
        check_tensors(self.path, self.shapes, self.dtypes, expected, source, dtypes)


def check_tensors(
    path: Path,
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, str],
    expected: Mapping[str, Shape],
    source: str,
    allowed: Collection[str],
) -> None:
    """Raises UserError with every tensor of ``path`` that is missing, unexpected, misshaped or of another type."""
    problems = [f"{n}: missing" for n in expected if n not in shapes]
    problems += [f"{n}: unexpected" for n in shapes if n not in expected]
    for name, shape in expected.items():
        if name not in shapes:
            continue
        if shapes[name] != shape:
            problems.append(f"{name}: shape {list(shapes[name])}, expected {list(shape)}")
        elif dtypes[name] not in allowed:
            problems.append(f"{name}: {dtypes[name]}, expected {' or '.join(allowed)}")
    if problems:
        shown = "".join(f"\n  - {p}" for p in problems[:12])
        more = f"\n  and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise UserError(f"{path}: its tensors are not those that {source} asks for:{shown}{more}")
