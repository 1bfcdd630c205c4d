"""How well a model predicts text, in PyTorch or in C.

B sequences of a batch, T block size, V vocab_size
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from nano_ds.data import BlockStream, Validation
from nano_ds.errors import UserError
from nano_ds.model import IGNORE, Transformer
from nano_ds.shards import TokenSet
from nano_ds.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from nano_ds.libnano import Model

PIECE = 64  # tokens whose logits the C engine hands over at once: 64 x 150,000 float32 take 40 MB


@dataclass(frozen=True)
class LossResult:
    loss: float  # nats per token
    bits_per_byte: float
    tokens: int


@torch.no_grad()
def mean_loss(
    model: Transformer, tokenizer: Tokenizer | None, shards: str, batches: int, batch_size: int, block_size: int = 0
) -> LossResult:
    """Mean loss over the first ``batches`` (0: all) of the validation part of a prepared set.

    The text is cut into sequences of ``block_size`` tokens (0: the model's context).

    Raises:
        UserError: the set was made with another vocabulary, or has no validation text.
    """
    block_size = _block_size(block_size, model.config.block_size)
    found = TokenSet.open(shards, "val", tokenizer.fingerprint if tokenizer else None)
    device = next(model.parameters()).device

    def score(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(model(x.to(device), y.to(device)).item())

    return _average(found, block_size, batches, batch_size, score)


def mean_loss_c(
    model: Model, shards: str, batches: int, batch_size: int, block_size: int = 0, threads: int = 0
) -> LossResult:
    """The same of a model file, through the C engine; ``threads`` 0: one for each fast core.

    Raises:
        UserError: as above.
    """
    from nano_ds.libnano import Session

    block_size = _block_size(block_size, model.config.block_size)
    found = TokenSet.open(shards, "val")
    tokenizer = load_tokenizer(found.folder / "tokenizer.json")
    if tokenizer.fingerprint != found.tokenizer_fingerprint:
        raise UserError(f"{shards}: its tokenizer.json is not the one it was made with; run `nano-ds prepare` again")
    check_vocabulary(model, tokenizer, shards)
    with Session(model, block_size, threads) as session:

        def score(x: torch.Tensor, y: torch.Tensor) -> float:
            total, count = 0.0, 0
            for row, targets in zip(x.numpy(), y.numpy(), strict=True):
                if (targets == IGNORE).all():
                    continue  # fills up the last batch
                session.reset()
                step = PIECE if model.config.causal else len(row)
                for at in range(0, len(row), step):
                    logits = session.eval(row[at : at + step], all_logits=True)
                    losses = cross_entropy(logits, targets[at : at + step])
                    total, count = total + losses.sum(), count + len(losses)
            return float(total / count)

        return _average(found, block_size, batches, batch_size, score)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-log softmax of each target that counts, float64, from logits [n, V] and ids [n]."""
    rows = np.flatnonzero(targets != IGNORE)
    x = logits[rows].astype(np.float64)
    x -= x.max(-1, keepdims=True)
    out: np.ndarray = np.log(np.exp(x).sum(-1)) - x[np.arange(len(rows)), targets[rows]]
    return out


def check_vocabulary(model: Model, tokenizer: Tokenizer, shards: str) -> None:
    """Raises UserError unless every id of the set stands for the same bytes in the model file."""
    mine, theirs = model.config.vocab_size, tokenizer.vocab_size
    fix = f"prepare the text again with the tokenizer.json of the model directory that {model.name} was made from"
    if theirs > mine:
        raise UserError(f"{shards}: made with a vocabulary of {theirs} tokens, {model.name} has {mine}; {fix}")
    for i in range(theirs):
        a, b = tokenizer.token_bytes(i), model.token_bytes(i)
        if a != b:
            raise UserError(f"{shards}: made with another vocabulary: token {i} is {a!r}, in {model.name} {b!r}; {fix}")


def _block_size(asked: int, context: int) -> int:
    if asked > context:
        raise UserError(f"--block-size: {asked} is more than the model's context of {context}")
    return asked or context


def _average(
    found: TokenSet,
    block_size: int,
    batches: int,
    batch_size: int,
    score: Callable[[torch.Tensor, torch.Tensor], float],
) -> LossResult:
    """``score`` gives the mean loss of the targets [B, T] that count, from inputs [B, T]."""
    stream = BlockStream([found], block_size, shuffle=False)
    batch_size = min(batch_size, stream.blocks[0])
    wanted = batches or -(-stream.blocks[0] // batch_size)
    validation = Validation(stream, eval_batches=wanted, batch_size=batch_size, micro_batch=batch_size)
    total, count = 0.0, 0
    for x, y in tqdm(
        validation.batches(), "evaluate", total=-(-validation.samples // batch_size), leave=False, disable=None
    ):
        n = int((y != IGNORE).sum())
        total += score(x, y) * n
        count += n
    loss = total / count
    return LossResult(loss, loss / math.log(2) / validation.bytes_per_token, count)
