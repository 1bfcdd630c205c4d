"""Small sets of questions and answers, and the items in them read back from the shards."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from conftest import story

from nano_ds.shards import Shard, TokenSet


def write_items(path: Path, count: int, seed: int = 0, longest: int = 12) -> list[dict[str, Any]]:
    """Single questions and conversations of up to three turns, in turn."""
    rng = random.Random(seed)
    items: list[dict[str, Any]] = []
    for i in range(count):

        def text() -> str:
            return story(rng.randrange(1 << 30), rng.randint(1, longest))

        if i % 3:
            items.append({"question": f"{i} {text()}", "answer": text()})
            continue
        messages = [{"role": "system", "content": text()}] if i % 2 else []
        for _ in range(rng.randint(1, 3)):
            messages += [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
        items.append({"messages": messages})
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    return items


def items_of(shard: Shard, rows: Any = None) -> Iterator[tuple[list[int], np.ndarray]]:
    """Tokens and loss marks of every item (of some rows), padding taken off: it carries no loss and lies behind."""
    loss = shard.loss(slice(None)).reshape(-1)
    ends = np.append(shard.starts[1:], len(shard.tokens)).astype(int)
    for start, end in zip(shard.starts.astype(int).tolist(), ends.tolist(), strict=True):
        if rows is None or start // shard.row in rows:
            last = start + int(np.flatnonzero(loss[start:end])[-1]) + 1
            yield shard.tokens[start:last].tolist(), loss[start:last]


def all_items(folder: Path) -> list[tuple[list[int], list[bool]]]:
    found = []
    for split in ("train", "val"):
        for shard in TokenSet.open(folder, split).shards:
            found += [(ids, loss.tolist()) for ids, loss in items_of(shard)]
    return found
