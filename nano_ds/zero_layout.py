"""Where the values of a parameter lie in the pieces that the ranks hold: one class for each way that ZeRO cuts.

A piece is what one rank holds of one kind of value (masters, or one of Adam's moments): a list of flat tensors, one for
each parameter group (at stage 3 one for each sub-group). Offsets and counts are in values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]
Pieces = Sequence[Sequence[Tensor]]  # [rank][group]


class Cut(Protocol):
    """A way to divide parameters among ranks."""

    def problem(self, pieces: Pieces) -> str:
        """Why these pieces cannot be what this layout describes, or an empty string."""

    def whole(self, pieces: Pieces, name: str) -> Tensor:
        """All values of a parameter, flat."""


class EndToEnd:
    """Stages 1 and 2: the parameters of a group end to end, padded, the row cut into one piece per rank."""

    def __init__(self, groups: Sequence[Mapping[str, Shape]], paddings: Sequence[Sequence[int]] | None):
        self.place: dict[str, tuple[int, int, int]] = {}  # name -> group, offset in the whole row, count
        self.needed: list[int] = []
        for g, group in enumerate(groups):
            offset = end = 0
            for i, (name, shape) in enumerate(group.items()):
                end = offset + math.prod(shape)
                self.place[name] = (g, offset, math.prod(shape))
                offset = end + (paddings[g][i] if paddings else 0)
            self.needed.append(end)

    def problem(self, pieces: Pieces) -> str:
        for g, needed in enumerate(self.needed):
            if any(len(piece) != len(self.needed) for piece in pieces):
                return f"its shards hold {sorted({len(p) for p in pieces})} groups, {len(self.needed)} are needed"
            sizes = [piece[g].numel() for piece in pieces]
            if sum(sizes) < needed:
                return f"its shards hold {sum(sizes)} values of group {g}, {needed} are needed"
            # Only the last piece is without its padding.
            if len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]:
                return f"its shards hold unequal pieces of group {g}: {sizes}"
        return ""

    def whole(self, pieces: Pieces, name: str) -> Tensor:
        group, offset, count = self.place[name]
        return _span([piece[group] for piece in pieces], offset, count)


class ByParameter:
    """Stage 3: every parameter cut into one part per rank (the last padded), a rank's parts laid end to end."""

    def __init__(self, shapes: Mapping[str, Shape], world_size: int):
        self.place: dict[str, tuple[int, int, int]] = {}  # name -> offset in a piece, count in a piece, count in all
        offset = 0
        for name, shape in shapes.items():
            count = math.prod(shape)
            part = -(-count // world_size)
            self.place[name] = (offset, part, count)
            offset += part
        self.needed = offset

    def problem(self, pieces: Pieces) -> str:
        held = {sum(t.numel() for t in piece) for piece in pieces}
        return "" if held == {self.needed} else f"its shards hold {sorted(held)} values each, {self.needed} are needed"

    def whole(self, pieces: Pieces, name: str) -> Tensor:
        offset, part, count = self.place[name]
        return torch.cat([_span(piece, offset, part) for piece in pieces])[:count]


class Undivided:
    """Stage 0: one tensor for each parameter, in a single piece."""

    def __init__(self, shapes: Mapping[str, Shape]):
        self.index = {name: i for i, name in enumerate(shapes)}
        self.shapes = list(shapes.values())

    def problem(self, pieces: Pieces) -> str:
        held = [tuple(t.shape) for t in pieces[0]]
        return "" if held == self.shapes else "its tensors do not have the shapes of the parameters"

    def whole(self, pieces: Pieces, name: str) -> Tensor:
        return pieces[0][self.index[name]].flatten()


def _span(row: Sequence[Tensor], start: int, size: int) -> Tensor:
    """``size`` values from ``start`` of tensors laid end to end."""
    found = []
    for tensor in row:
        n = tensor.numel()
        if start < n and size > 0:
            piece = tensor[start : start + size]
            found.append(piece)
            size -= piece.numel()
            start = 0
        else:
            start -= min(start, n)
    return found[0] if len(found) == 1 else torch.cat(found)
