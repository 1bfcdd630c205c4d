"""Generation with a KV cache in PyTorch: what `inference/` and the samples of a training run use."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nano_ds.errors import UserError
from nano_ds.model import KVCache
from nano_ds.sampling import Sampler, SamplerParams


@dataclass
class Timing:
    """Seconds and tokens of a generation."""

    prompt_tokens: int = 0
    prefill_s: float = 0.0
    new_tokens: int = 0
    decode_s: float = 0.0

    def summary(self) -> str:
        prefill = self.prompt_tokens / max(self.prefill_s, 1e-9)
        decode = max(0, self.new_tokens - 1) / max(self.decode_s, 1e-9)
        return f"prompt {self.prompt_tokens} tokens, {prefill:.0f} tok/s; new {self.new_tokens}, {decode:.1f} tok/s"


def room(prompt_tokens: int, block_size: int, new_tokens: int | None, total: int | None) -> int:
    """How many tokens may follow a prompt: ``new_tokens`` (-n), at most ``total`` (-s) and the context in all.

    Raises:
        UserError: the prompt alone fills the context.
    """
    limit = min(total or block_size, block_size)
    if prompt_tokens >= limit:
        raise UserError(f"the prompt has {prompt_tokens} tokens and the context {limit}; shorten the prompt")
    return limit - prompt_tokens if new_tokens is None else min(new_tokens, limit - prompt_tokens)


@torch.no_grad()
def stream(
    model: Any,
    prompt: Sequence[int],
    params: SamplerParams,
    max_new: int,
    stop: Sequence[int] = (),
    timing: Timing | None = None,
) -> Iterator[int]:
    """Yields up to ``max_new`` ids that continue ``prompt``; ends before the first id in ``stop``.

    ``model`` is a Transformer in evaluation mode or something that forwards to one (``config``, ``prefill``).
    """
    timing = timing or Timing()
    weight = next(model.parameters())
    sampler = Sampler(params, list(prompt))
    cache = KVCache(model.config, 1, len(prompt) + max_new, weight.device, weight.dtype)
    ids = torch.tensor([list(prompt)], device=weight.device)
    started = time.perf_counter()
    # ZeRO-3 gathers its parameters in the hooks of forward, so prefill would find them empty.
    partitioned = hasattr(weight, "ds_id")
    logits = model(ids, cache=cache)[0, -1] if partitioned else model.prefill(ids, cache)[0]
    timing.prompt_tokens, timing.prefill_s = len(prompt), time.perf_counter() - started
    for i in range(max_new):
        started = time.perf_counter()
        token = sampler.pick(logits.cpu().numpy())
        if token in stop:
            return
        timing.new_tokens += 1
        yield token
        if i + 1 < max_new:
            ids = torch.tensor([[token]], device=weight.device)
            logits = model(ids, cache=cache)[0, -1]
            timing.decode_s += time.perf_counter() - started


@torch.no_grad()
def position_wise(model: Any, ids: Sequence[int]) -> list[int]:
    """Sequence-to-sequence inference of a non-causal model: the most likely token at every position."""
    device = next(model.parameters()).device
    out: list[int] = model(torch.tensor([list(ids)], device=device))[0].argmax(-1).tolist()
    return out
