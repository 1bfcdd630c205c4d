"""The GGUF container, versions 2 and 3: a bounds-checked reader and a writer that streams.

Nothing in a file is believed before it is checked against the bytes that are there: counts, lengths, types, dimensions,
offsets, alignment. A damaged file ends in UserError; nothing is allocated for what it only claims.
`docs/model_file.md` describes the container.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from nano_ds.errors import UserError
from nano_ds.files import atomic_write
from nano_ds.interop.block_search import quantize
from nano_ds.interop.blocks import BY_CODE, OTHERS, TYPES, BlockType, dequantize
from nano_ds.report import byte_bar

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
MAX_DIMS = 4
ROWS_AT_ONCE = 1 << 20  # weights turned into another type at once

# Value types by number; the numbers among them as numpy types.
BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
CODES = {np.dtype(name): code for code, name in NUMBERS.items()}
SMALLEST_VALUE = 8 + 1 + 4 + 1  # bytes of a key of one letter with its value
SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8  # bytes of the description of a tensor

Shape = tuple[int, ...]
Value = Any  # bool, int, float, str, list[bool], list[str] or a numpy array of numbers


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a file describes it; ``shape`` counts rows first, as numpy does (the file counts the other way)."""

    name: str
    shape: Shape
    type: BlockType
    offset: int  # from the start of the data

    @property
    def row_bytes(self) -> int:
        return self.type.row_bytes(self.shape[-1])

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def size(self) -> int:
        return self.rows * self.row_bytes


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does."""
    with open(path, "rb") as f:
        return f.read(4) == MAGIC


def single(metadata: Mapping[str, Value], key: str, default: Value = None) -> Any:
    """The value of a key that should have one; of an array only how long it is, in words, which is no valid value."""
    value = metadata.get(key, default)
    return f"an array of {len(value)}" if isinstance(value, (list, np.ndarray)) else value


class _Cursor:
    """Reads values one after another from the head of a file and never past its end."""

    def __init__(self, data: np.ndarray, path: Path):
        self.data, self.path, self.at = data, path, 0

    def fail(self, problem: str) -> UserError:
        return UserError(f"{self.path}: {problem}")

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise self.fail(f"cut off: {what} at byte {self.at} needs {size} bytes, {self.left} are left")
        raw = self.data[self.at : self.at + size].tobytes()
        self.at += size
        return raw

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code), what))[0]

    def string(self, what: str) -> str:
        """Text; bytes that are no UTF-8 become lone surrogates (PEP 383)."""
        return self.take(self.number("<Q", f"the length of {what}"), what).decode("utf-8", "surrogateescape")

    def value(self, type: int, what: str) -> Value:
        if type in NUMBERS:
            dtype = np.dtype(NUMBERS[type])
            return np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()
        if type == BOOL:
            return bool(self._bools(1, what)[0])
        if type == STRING:
            return self.string(what)
        if type == ARRAY:
            return self._array(what)
        raise self.fail(f"{what}: value type {type} at byte {self.at}; there are 0 to 12")

    def _array(self, what: str) -> Value:
        type, count = self.number("<I", what), self.number("<Q", what)
        if type in NUMBERS:
            dtype = np.dtype(NUMBERS[type])
            return np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        if type == BOOL:
            return self._bools(count, what)
        if type != STRING:
            kind = "arrays" if type == ARRAY else f"value type {type}"
            raise self.fail(f"{what}: an array of {kind}; only numbers, booleans and texts are known")
        if count > self.left // 8:
            raise self.fail(f"{what}: {count} texts cannot be in the {self.left} bytes that are left")
        return [self.string(what) for _ in range(count)]

    def _bools(self, count: int, what: str) -> list[bool]:
        raw = self.take(count, what)
        if count and max(raw) > 1:
            raise self.fail(f"{what}: a boolean of {max(raw)}; it must be 0 or 1")
        return [b == 1 for b in raw]


class GGUFFile(Mapping[str, np.ndarray]):
    """An open GGUF file: ``metadata`` by key, tensors by name (float32, dequantised when asked for)."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._map = _open(self.path)
        cursor = _Cursor(self._map, self.path)
        tensors, values = self._head(cursor)
        self.metadata: dict[str, Value] = {}
        for i in range(values):
            key = cursor.string(f"key {i} of {values}")
            if not key or key in self.metadata:
                raise cursor.fail(f"key {i} is {'there twice: ' + key if key else 'empty'}")
            self.metadata[key] = cursor.value(cursor.number("<I", key), key)
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise cursor.fail(f"general.alignment: {alignment!r}; it must be a power of two up to {MAX_ALIGNMENT}")
        self.infos: dict[str, TensorInfo] = {}
        for i in range(tensors):
            info = self._info(cursor, f"tensor {i} of {tensors}", alignment)
            if info.name in self.infos:
                raise cursor.fail(f"tensor {info.name} is there twice")
            self.infos[info.name] = info
        self._start = -(-cursor.at // alignment) * alignment
        self._check_places(cursor)

    def _head(self, cursor: _Cursor) -> tuple[int, int]:
        """The counts of tensors and of values, both possible in a file of this size."""
        magic = cursor.take(4, "the magic")
        if magic != MAGIC:
            raise cursor.fail(f"no GGUF file: it begins with {magic!r}")
        version = cursor.number("<I", "the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            why = "; it is written for big-endian machines" if swapped in VERSIONS else ""
            raise cursor.fail(f"GGUF version {version}; this program reads 2 and 3 (little-endian){why}")
        tensors, values = cursor.number("<Q", "the number of tensors"), cursor.number("<Q", "the number of keys")
        if tensors > cursor.left // SMALLEST_TENSOR or values > cursor.left // SMALLEST_VALUE:
            raise cursor.fail(f"claims {tensors} tensors and {values} keys; they cannot be in {cursor.left} bytes")
        return tensors, values

    def _info(self, cursor: _Cursor, what: str, alignment: int) -> TensorInfo:
        name = cursor.string(f"the name of {what}")
        if not name:
            raise cursor.fail(f"{what} has no name")
        count = cursor.number("<I", name)
        if not 1 <= count <= MAX_DIMS:
            raise cursor.fail(f"{name}: {count} dimensions; there may be 1 to {MAX_DIMS}")
        dims = struct.unpack(f"<{count}Q", cursor.take(8 * count, name))
        code, offset = cursor.number("<I", name), cursor.number("<Q", name)
        kind = BY_CODE.get(code)
        if kind is None:
            known = ", ".join(t.name.upper() for t in TYPES.values())
            raise cursor.fail(f"{name}: tensor type {OTHERS.get(code, code)}; this program reads {known}")
        total = math.prod(dims)  # Python's whole numbers do not overflow
        if total < 1 or total >= 1 << 62:
            raise cursor.fail(f"{name}: dimensions {list(dims)} are impossible")
        if dims[0] % kind.weights:
            raise cursor.fail(f"{name}: rows of {dims[0]} do not fill blocks of {kind.weights} ({kind.name})")
        if offset % alignment:
            raise cursor.fail(f"{name}: begins at {offset} of the data, no multiple of the alignment {alignment}")
        return TensorInfo(name, tuple(reversed(dims)), kind, offset)

    def _check_places(self, cursor: _Cursor) -> None:
        """Every tensor lies inside the file and on no other."""
        space = len(self._map) - self._start
        end = 0
        for info in sorted(self.infos.values(), key=lambda i: i.offset):
            if info.offset < end:
                raise cursor.fail(f"{info.name}: begins at {info.offset} of the data, inside the tensor before it")
            end = info.offset + info.size
            if end > space:
                raise cursor.fail(
                    f"cut off: {info.name} needs {info.size} bytes at {info.offset} of the data, "
                    f"which has {max(space, 0)}"
                )

    def raw(self, name: str) -> np.ndarray:
        """The bytes of a tensor, a read-only view of the file."""
        info = self.infos[name]
        at = self._start + info.offset
        return self._map[at : at + info.size]

    def __getitem__(self, name: str) -> np.ndarray:
        """float32 weights in the tensor's shape."""
        info = self.infos[name]
        out = np.empty((info.rows, info.shape[-1]), np.float32)
        raw = self.raw(name).reshape(info.rows, info.row_bytes)
        step = max(1, ROWS_AT_ONCE // info.shape[-1])
        for start in range(0, info.rows, step):
            part = raw[start : start + step]
            out[start : start + step] = dequantize(info.type.name, part.reshape(-1)).reshape(len(part), -1)
        return out.reshape(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)


def _open(path: Path) -> np.ndarray:
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; expected a GGUF file")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: is empty; expected a GGUF file")
        return np.asarray(np.memmap(path, np.uint8, "r"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a GGUF file") from None
    except OSError as e:
        raise UserError(f"{path}: cannot read it: {e.strerror}") from None


class GGUFWriter:
    """Writes a GGUF file whose tensors arrive one after another, in the order they were declared.

    The file gets its name when the block ends well; until then nothing, or the old file, is there. Metadata take their
    types from Python's: bool, str, int (u32, or u64 where it must), float (f32), np.float64, list of str, numpy array.

        with GGUFWriter(path, {"general.architecture": "llama"}, [("output_norm.weight", (64,), "f32")]) as writer:
            writer.write("output_norm.weight", weights)
    """

    def __init__(self, path: str | Path, metadata: Mapping[str, Value], tensors: Sequence[tuple[str, Shape, str]]):
        self.path = Path(path)
        self._infos: list[TensorInfo] = []
        at = 0
        for name, shape, kind in tensors:
            self._infos.append(TensorInfo(name, shape, TYPES[kind], at))
            at += -(-self._infos[-1].size // ALIGNMENT) * ALIGNMENT
        self._head = _head_bytes(metadata, self._infos)
        self.size = len(self._head) + at
        self._next = 0

    def __enter__(self) -> GGUFWriter:
        self._atomic = atomic_write(self.path)
        self._file = self._atomic.__enter__()
        self._bar = byte_bar(self.path.name, self.size)
        self._put(self._head)
        return self

    def write(self, name: str, weights: np.ndarray, importance: np.ndarray | None = None) -> None:
        """The next tensor, float32 in its declared shape; ``importance`` [columns] steers the quantisation.

        Raises:
            UserError: weights that are not finite, or too large for the type.
        """
        info = self._infos[self._next]
        assert (name, weights.shape) == (info.name, info.shape), (name, weights.shape, info)
        rows = weights.reshape(info.rows, info.shape[-1])
        step = max(1, ROWS_AT_ONCE // info.shape[-1])
        for start in range(0, info.rows, step):
            part = rows[start : start + step]
            if not np.isfinite(part).all():
                raise UserError(f"{name}: holds numbers that are not finite; the training diverged before this step")
            try:
                self._put(quantize(info.type.name, part, importance).data)
            except UserError as e:
                raise UserError(f"{name}: {e}") from None
        self._put(b"\0" * (-info.size % ALIGNMENT))
        self._next += 1

    def _put(self, data: bytes | memoryview) -> None:
        self._bar.update(self._file.write(data))

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if kind is None:
            assert self._next == len(self._infos), f"{self._infos[self._next].name} was not written"
            assert self._file.tell() == self.size, (self._file.tell(), self.size)
        self._atomic.__exit__(kind, e, trace)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value_bytes(key: str, value: Value) -> bytes:
    """Type and value."""
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        assert 0 <= value < 1 << 64, (key, value)
        return struct.pack("<II", 4, value) if value < 1 << 32 else struct.pack("<IQ", 10, value)
    if isinstance(value, np.float64):
        return struct.pack("<Id", 12, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))
    assert isinstance(value, np.ndarray), (key, type(value))
    return struct.pack("<IIQ", ARRAY, CODES[value.dtype], value.size) + value.tobytes()


def _head_bytes(metadata: Mapping[str, Value], infos: Sequence[TensorInfo]) -> bytes:
    """Everything before the data, padded to the alignment."""
    parts = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(infos), len(metadata))]
    parts += [_text(key) + _value_bytes(key, value) for key, value in metadata.items()]
    for i in infos:
        dims = struct.pack(f"<I{len(i.shape)}Q", len(i.shape), *reversed(i.shape))
        parts.append(_text(i.name) + dims + struct.pack("<IQ", i.type.code, i.offset))
    head = b"".join(parts)
    return head + b"\0" * (-len(head) % ALIGNMENT)
