"""PyTorch's `.pt` files without running code from them: they are pickles, which can name any function to call."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


class Inert:
    """Stands in for an object of a class that is not needed: holds what it is given, does nothing."""

    def __init__(self, *args: Any):
        self.args = args


class Refused(ValueError):
    """A file that is no such file, is damaged, or asks for more than tensors and plain data."""


def load_restricted(path: Path, inert: Iterable[str]) -> Any:
    """What a file of ``torch.save`` holds: tensors (memory-mapped), plain containers, ``Inert`` for the classes named.

    ``inert`` are full names such as ``model.ModelConfig``.

    Raises:
        Refused: saying why; nothing of the file was run.
        OSError: it cannot be read.
    """
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in inert]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, AttributeError) as e:
        asked = re.search(r"GLOBAL (\S+)", str(e))
        raise Refused(f"asks for {asked[1]}" if asked else str(e).partition("\n")[0] or type(e).__name__) from None


def foreign_globals(path: Path) -> list[str]:
    """Full names of everything in a `.pt` file that is neither tensor nor plain data; only its pickle is looked at.

    Raises Refused if it is no zip file of ``torch.save``.
    """
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise Refused(str(e).partition("\n")[0] or type(e).__name__) from None
