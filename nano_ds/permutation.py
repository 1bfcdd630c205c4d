"""A keyed bijection of [0, n), computed for any index alone and in constant memory: the shuffle of everything here."""

from __future__ import annotations

from typing import Any

import numpy as np

U64 = (1 << 64) - 1
ROUNDS = 8


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: scrambles 64-bit numbers (arithmetic wraps around)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key_of(*parts: int) -> int:
    """One 64-bit key of several integers."""
    state = np.array([0x6E616E6F5F6473], np.uint64)
    for part in parts:
        state = _mix((state ^ np.uint64(part & U64)) + np.uint64(0x9E3779B97F4A7C15))
    return int(state[0])


def perm(seed: int, epoch: int, i: Any, n: int) -> np.ndarray:
    """Where the keyed bijection of [0, n) for (seed, epoch) sends each ``i``.

    A Feistel network over the next even number of bits; results beyond n go round again (cycle walking) until they fall
    inside, which keeps it a bijection for every n.
    """
    if n < 1:
        raise ValueError(f"perm needs n >= 1, not {n}")
    x = np.array(i, np.uint64, ndmin=1)
    if x.size and int(x.max()) >= n:
        raise ValueError(f"perm: {int(x.max())} is outside [0, {n})")
    if n == 1:
        return x
    half = max(3, -(-(n - 1).bit_length() // 2))  # at least 3 bits a side: tiny networks shuffle badly
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = [np.uint64(key_of(seed, epoch, r)) for r in range(ROUNDS)]
    at = np.arange(len(x))
    left = x
    while len(at):
        a, b = left >> bits, left & mask
        for key in keys:
            a, b = b, a ^ (_mix(b ^ key) & mask)
        out = (a << bits) | b
        x[at] = out
        again = out >= n
        at, left = at[again], out[again]
    return x
