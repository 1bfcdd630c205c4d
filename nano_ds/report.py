"""What a command says at its end."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def facts(lines: Mapping[str, str]) -> None:
    """Prints an aligned block of names and facts to stderr (stdout is for program text)."""
    width = max(map(len, lines))
    for name, fact in lines.items():
        print(f"{name:<{width}}  {fact}", file=sys.stderr)
