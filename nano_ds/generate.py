"""Generation with a KV cache in PyTorch: what `inference/` and the samples of a training run use."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from nano_ds.generate_base import Timing
from nano_ds.model import KVCache
from nano_ds.sampling import Sampler, SamplerParams


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


class TorchEngine:
    """A Transformer in evaluation mode, or something that forwards to one, as the inference scripts use it."""

    def __init__(self, model: Any):
        self.model = model

    @property
    def block_size(self) -> int:
        return int(self.model.config.block_size)

    @property
    def is_causal(self) -> bool:
        return bool(self.model.config.is_causal)

    @property
    def about(self) -> str:
        weight = next(self.model.parameters())
        return f"PyTorch, {weight.device}, {str(weight.dtype).removeprefix('torch.')}"

    def stream(
        self,
        prompt: Sequence[int],
        params: SamplerParams,
        max_new: int,
        stop: Sequence[int] = (),
        timing: Timing | None = None,
    ) -> Iterator[int]:
        return stream(self.model, prompt, params, max_new, stop, timing)

    def position_wise(self, ids: Sequence[int]) -> list[int]:
        return position_wise(self.model, ids)
