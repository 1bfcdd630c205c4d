"""What the inference scripts want of whatever computes for them; none of it needs PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from nano_ds.errors import UserError
from nano_ds.sampling import SamplerParams


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


class Engine(Protocol):
    """PyTorch (`nano_ds.generate.TorchEngine`) or C (`nano_ds.libnano.engine.CEngine`): one seed, one text."""

    @property
    def block_size(self) -> int: ...

    @property
    def is_causal(self) -> bool: ...

    @property
    def about(self) -> str:
        """Which engine this is, for --profile."""

    def stream(
        self,
        prompt: Sequence[int],
        params: SamplerParams,
        max_new: int,
        stop: Sequence[int] = (),
        timing: Timing | None = None,
    ) -> Iterator[int]:
        """Yields up to ``max_new`` ids that continue ``prompt``; ends before the first id in ``stop``."""

    def position_wise(self, ids: Sequence[int]) -> list[int]:
        """Sequence-to-sequence inference of a non-causal model: the most likely token at every position."""
