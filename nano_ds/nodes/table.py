"""The doctor's table as text."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from nano_ds.nodes.checks import Row


def text(rows: Sequence[Row], hosts: Sequence[str]) -> str:
    """Marks, names and cells in columns; below each row that is not ok, what to do."""
    room = max(12, (shutil.get_terminal_size((120, 24)).columns - 30) // max(1, len(hosts)) - 2)
    cells = [[_cut(c, room) for c in r.cells] for r in rows]
    name = max([len(r.name) for r in rows] + [0])
    widths = [max([len(_cut(h, room))] + [len(c[i]) for c in cells if i < len(c)]) for i, h in enumerate(hosts)]
    lines = [
        "      " + " " * name + "  " + "  ".join(f"{_cut(h, room):<{w}}" for h, w in zip(hosts, widths, strict=True))
    ]
    for row, found in zip(rows, cells, strict=True):
        padded = "  ".join(f"{c:<{w}}" for c, w in zip(found, widths, strict=False))
        lines.append(f"{row.mark:<4}  {row.name:<{name}}  {padded}".rstrip())
        lines += [f"      -> {fix}" for fix in row.fixes]
    return "\n".join(line.rstrip() for line in lines)


def _cut(word: str, room: int) -> str:
    return word if len(word) <= room else word[: room - 1] + "…"
