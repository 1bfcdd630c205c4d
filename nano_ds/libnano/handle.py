"""Who closes what, and when: one owner for each pointer that the library hands out."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

from nano_ds.errors import UserError


class Handle:
    """Owns a pointer of the library; closes it when the last reference is gone.

    ``needs`` are kept alive until after that: a session's handle names those of its model and adapter, so no order in
    which a program (or the garbage collector) drops things can close a model under its session.
    """

    def __init__(self, pointer: int, close: Callable[[int], None], *needs: object):
        self.pointer, self.pid, self.needs = pointer, os.getpid(), list(needs)
        finalizer = weakref.finalize(self, _close, close, pointer, self.pid, self.needs)
        # At the interpreter's end another thread may still compute with it, and the memory goes anyway.
        finalizer.atexit = False


def _close(close: Callable[[int], None], pointer: int, pid: int, needs: list[object]) -> None:
    if os.getpid() == pid:  # the worker threads that a close waits for are not there after a fork
        close(pointer)


class Closing:
    """Something with a handle: ``close()``, and an end of a ``with`` block that calls it."""

    _handle: Handle | None

    def close(self) -> None:
        """Gives the memory back as soon as nothing else needs it; harmless when called twice."""
        self._handle = None

    @property
    def closed(self) -> bool:
        return self._handle is None

    def _owner(self) -> Handle:
        """The handle, which the caller must hold for as long as it uses the pointer."""
        handle = self._handle
        if handle is None:
            raise ValueError(f"this {type(self).__name__} is closed")
        return handle

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def u32(value: int, what: str) -> int:
    """``value``, if it fits into the library's unsigned numbers; ctypes would cut it."""
    if not 0 <= value < 1 << 32:
        raise UserError(f"{what}: {value} is out of range, it must be from 0 to {(1 << 32) - 1}")
    return value
