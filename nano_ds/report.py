"""What a command says at its end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

BAR_FROM = 64 << 20  # bytes of a file worth a progress bar


def facts(lines: Mapping[str, str]) -> None:
    """Prints an aligned block of names and facts to stderr (stdout is for program text)."""
    width = max(map(len, lines))
    for name, fact in lines.items():
        print(f"{name:<{width}}  {fact}", file=sys.stderr)


def byte_bar(name: str, size: int) -> Any:
    """A progress bar over ``size`` bytes (a context manager with ``update``), on a terminal, for large files."""
    from tqdm import tqdm

    show = size >= BAR_FROM and sys.stderr.isatty()
    return tqdm(total=size, unit="B", unit_scale=True, desc=name, disable=not show, leave=False)
