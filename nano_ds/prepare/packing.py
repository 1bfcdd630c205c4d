"""Which documents share a row: as few rows as a simple rule finds (best fit, the longest first; Johnson 1973)."""

from __future__ import annotations

import numpy as np

from nano_ds.permutation import key_of, perm

KEY = 0x5F7  # of the shuffles; fixed, so that the same input always gives the same shards


def shuffled(n: int, what: int = 0) -> np.ndarray:
    """The numbers below ``n`` in a fixed random order; ``what`` gives another one."""
    return perm(key_of(KEY, what), 0, np.arange(n), n).astype(np.int64) if n else np.zeros(0, np.int64)


def pack(lengths: np.ndarray, row: int) -> list[list[int]]:
    """Rows of item numbers whose ``lengths`` add up to at most ``row`` tokens; every item is in one of them.

    Items come in random order within a row and among those of a length, and so do the rows.
    """
    assert not len(lengths) or 0 < lengths.min() <= lengths.max() <= row, "an item must fit into a row"
    rank = np.empty(len(lengths), np.int64)
    rank[shuffled(len(lengths))] = np.arange(len(lengths))
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(row + 1)]  # rows by the tokens that are free in them
    free = 0  # bit r: some row has exactly r free tokens
    for item in np.lexsort((rank, -lengths)).tolist():
        length = int(lengths[item])
        fitting = free >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                free &= ~(1 << room)
        else:
            room, number = row, len(rows)
            rows.append([])
        rows[number].append(item)
        with_room[room - length].append(number)
        free |= 1 << (room - length)
    for items in rows:
        items.sort(key=rank.__getitem__)
    return [rows[i] for i in shuffled(len(rows), 1)]
