"""How well a model predicts text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tqdm import tqdm

from nano_ds.data import BlockStream, Validation
from nano_ds.model import IGNORE, Transformer
from nano_ds.shards import TokenSet
from nano_ds.tokenizer import Tokenizer


@dataclass(frozen=True)
class LossResult:
    loss: float  # nats per token
    bits_per_byte: float
    tokens: int


@torch.no_grad()
def mean_loss(
    model: Transformer, tokenizer: Tokenizer | None, shards: str, batches: int, batch_size: int
) -> LossResult:
    """Mean loss over the first ``batches`` (0: all) of the validation part of a prepared set.

    Raises:
        UserError: the set was made with another vocabulary, or has no validation text.
    """
    found = TokenSet.open(shards, "val", tokenizer.fingerprint if tokenizer else None)
    stream = BlockStream([found], model.config.block_size, shuffle=False)
    batch_size = min(batch_size, stream.blocks[0])
    wanted = batches or -(-stream.blocks[0] // batch_size)
    validation = Validation(stream, eval_batches=wanted, batch_size=batch_size, micro_batch=batch_size)
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for x, y in tqdm(
        validation.batches(), "evaluate", total=-(-validation.samples // batch_size), leave=False, disable=None
    ):
        n = int((y != IGNORE).sum())
        total += model(x.to(device), y.to(device)).item() * n
        count += n
    loss = total / count
    return LossResult(loss, loss / math.log(2) / validation.bytes_per_token, count)
