"""Safetensors files one tensor at a time, so that a model is never in memory twice, or even once."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from nano_ds.errors import UserError

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
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
        """
        expected = self.names[self._next] if self._next < len(self.names) else "nothing more"
        if name != expected:
            raise ValueError(f"{name} was written where {expected} was declared")
        if hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu()
            tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        array = np.ascontiguousarray(tensor, np.dtype(DTYPES[self._dtypes[name]]))
        if np.shape(tensor) != self._shapes[name]:
            raise ValueError(f"{name} has shape {np.shape(tensor)}, declared was {self._shapes[name]}")
        self._file.write(array.data)
        self._next += 1

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None and self._next < len(self.names):
            raise ValueError(f"{self._file.name}: ended before {self.names[self._next]} was written")


class TensorFile(Mapping[str, np.ndarray]):
    """A safetensors file as a mapping that reads a tensor when asked for it."""

    def __init__(self, path: str | Path, what: str = "the weights"):
        """Raises UserError if the file is missing or no safetensors file."""
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        try:
            self._file = safe_open(str(path), framework="numpy")
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; expected {what}") from None
        except (OSError, SafetensorError) as e:
            raise UserError(f"{path}: no readable safetensors file ({e}); write {what} again") from None
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 (no mapping)
        self.shapes: dict[str, Shape] = {name: tuple(s.get_shape()) for name, s in slices.items()}
        self.dtypes: dict[str, str] = {name: s.get_dtype() for name, s in slices.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        array: np.ndarray = self._file.get_tensor(name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def check(self, expected: Mapping[str, Shape], source: str) -> None:
        """Raises UserError with everything that differs from ``expected`` (all float32), which ``source`` asks for."""
        problems = [f"{n}: missing" for n in expected if n not in self.shapes]
        problems += [f"{n}: unexpected" for n in self.shapes if n not in expected]
        for name, shape in expected.items():
            if name not in self.shapes:
                continue
            if self.shapes[name] != shape:
                problems.append(f"{name}: shape {list(self.shapes[name])}, expected {list(shape)}")
            elif self.dtypes[name] != "F32":
                problems.append(f"{name}: {self.dtypes[name]}, expected F32")
        if problems:
            shown = "".join(f"\n  - {p}" for p in problems[:12])
            more = f"\n  and {len(problems) - 12} more" if len(problems) > 12 else ""
            raise UserError(f"{self.path}: its tensors are not those that {source} asks for:{shown}{more}")
