"""Choosing the next token. The C engine and the page use the same order, formulas and random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nano_ds.errors import UserError

_M64 = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class SamplerParams:
    """temperature 0 is greedy; top_k 0 and top_p 0 are off; penalty 1 is none."""

    temperature: float = 1.0
    top_k: int = 5
    top_p: float = 0.0
    repetition_penalty: float = 1.2
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 1000:
            raise UserError(f"temperature: {self.temperature} is out of range, it must be from 0 to 1000")
        if self.top_k < 0:
            raise UserError(f"top-k: {self.top_k} is out of range, it must be at least 0 (0 = off)")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top-p: {self.top_p} is out of range, it must be from 0 to 1 (0 = off)")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise UserError(f"repetition penalty: {self.repetition_penalty} must be from 0.01 to 100 (1 = none)")
        if not 0 <= self.seed < 1 << 64:
            raise UserError(f"seed: {self.seed} is out of range, it must be from 0 to 2^64 - 1")


class Xorshift:
    """xorshift64* (Vigna 2016): 24-bit floats in [0, 1)."""

    def __init__(self, seed: int):
        self.state = seed & _M64 or 0x9E3779B97F4A7C15

    def uniform(self) -> float:
        s = self.state
        s ^= s >> 12
        s ^= s << 25 & _M64
        s ^= s >> 27
        self.state = s
        return ((s * 0x2545F4914F6CDD1D & _M64) >> 40) / (1 << 24)


class Sampler:
    """Draws tokens one after another; remembers which were seen, for the penalty."""

    def __init__(self, params: SamplerParams, prompt: list[int]):
        self.params = params
        self.random = Xorshift(params.seed)
        self.seen = set(prompt)

    def pick(self, logits: np.ndarray) -> int:
        """The next token from float32 logits [V]: penalty, temperature, top-k, softmax, top-p, inverse CDF."""
        p = self.params
        logits = np.array(logits, dtype=np.float32)
        if self.seen and p.repetition_penalty != 1:
            ids = np.fromiter(self.seen, np.int64)
            x, r = logits[ids], np.float32(p.repetition_penalty)
            logits[ids] = np.where(x > 0, x / r, x * r)
        if p.temperature == 0:
            token = int(logits.argmax())  # the lowest id among equals
        else:
            order = _largest(logits, p.top_k)
            weights = np.exp((logits[order].astype(np.float64) - np.float64(logits[order[0]])) / p.temperature)
            sums = np.cumsum(weights)
            kept = len(sums)
            if 0 < p.top_p < 1:
                kept = min(kept, int(np.searchsorted(sums, p.top_p * sums[-1], side="left")) + 1)
            at = int(np.searchsorted(sums[:kept], self.random.uniform() * sums[kept - 1], side="right"))
            token = int(order[min(at, kept - 1)])
        self.seen.add(token)
        return token


def _largest(logits: np.ndarray, k: int) -> np.ndarray:
    """Ids by falling logit, equal ones by rising id; the first ``k`` of them (0: all)."""
    if 0 < k < len(logits):
        # Every id that ties with the k-th stays in, so that the tie goes to the lowest ids.
        limit = np.partition(logits, -k)[-k]
        ids = np.nonzero(logits >= limit)[0]
        return ids[np.argsort(-logits[ids], kind="stable")][:k]
    return np.argsort(-logits, kind="stable")
