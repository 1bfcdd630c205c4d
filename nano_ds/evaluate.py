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

from nano_ds.data import Batch, BlockStream, Validation
from nano_ds.errors import UserError
from nano_ds.model import IGNORE, Transformer
from nano_ds.shards import TokenSet
from nano_ds.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from nano_ds.libnano import Adapter, Model

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

    Text is cut into sequences of ``block_size`` tokens (0: the model's context). Of questions and answers only the
    answers count, each conversation by itself, in the rows that they were packed into.

    Raises:
        UserError: the set was made with another vocabulary, or has no validation text.
    """
    found = TokenSet.open(shards, "val", tokenizer.fingerprint if tokenizer else None)
    block_size = _block_size(block_size, model.config.block_size, found)
    device = next(model.parameters()).device

    def score(batch: Batch) -> float:
        documents = None if batch.documents is None else batch.documents.to(device)
        return float(model(batch.x.to(device), batch.y.to(device), documents=documents).item())

    return _average(found, block_size, batches, batch_size, score)


def mean_loss_c(
    model: Model,
    shards: str,
    batches: int,
    batch_size: int,
    block_size: int = 0,
    threads: int = 0,
    adapter: Adapter | None = None,
) -> LossResult:
    """The same of a model file, through the C engine; ``threads`` 0: one for each fast core.

    Raises:
        UserError: as above.
    """
    from nano_ds.libnano import Session

    found = TokenSet.open(shards, "val")
    block_size = _block_size(block_size, model.config.block_size, found)
    tokenizer = load_tokenizer(found.folder / "tokenizer.json")
    if tokenizer.fingerprint != found.tokenizer_fingerprint:
        raise UserError(f"{shards}: its tokenizer.json is not the one it was made with; run `nano-ds prepare` again")
    check_vocabulary(model, tokenizer, shards)
    with Session(model, block_size, threads) as session:
        session.set_adapter(adapter)

        def score(batch: Batch) -> float:
            total, count = 0.0, 0
            whole_rows = (block_size,) * len(batch.x)
            lengths = list(whole_rows if batch.documents is None else batch.documents.lengths)
            parts = (t.flatten().split(lengths) for t in (batch.x, batch.y))
            for ids, targets in zip(*parts, strict=True):
                if (targets == IGNORE).all():
                    continue  # fills up the last batch
                session.reset()
                step = PIECE if model.config.causal else len(ids)
                for at in range(0, len(ids), step):
                    logits = session.eval(ids.numpy()[at : at + step], all_logits=True)
                    losses = cross_entropy(logits, targets.numpy()[at : at + step])
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


def _block_size(asked: int, context: int, found: TokenSet) -> int:
    if asked > context:
        raise UserError(f"--block-size: {asked} is more than the model's context of {context}")
    size = found.block_size
    if not size:
        return asked or context
    if asked not in (0, size):
        raise UserError(f"--block-size: {found.folder} is packed into rows of {size} tokens; leave the option out")
    if size > context:
        raise UserError(
            f"{found.folder}: packed into rows of {size} tokens, more than the model's context of {context}; prepare "
            f"it again with --block-size {context} or less"
        )
    return size


def _average(
    found: TokenSet,
    block_size: int,
    batches: int,
    batch_size: int,
    score: Callable[[Batch], float],
) -> LossResult:
    """``score`` gives the mean loss of the targets of a batch that count."""
    stream = BlockStream([found], block_size, shuffle=False)
    batch_size = min(batch_size, stream.blocks[0])
    wanted = batches or -(-stream.blocks[0] // batch_size)
    validation = Validation(stream, eval_batches=wanted, batch_size=batch_size, micro_batch=batch_size)
    total, count = 0.0, 0
    for batch in tqdm(
        validation.batches(), "evaluate", total=-(-validation.samples // batch_size), leave=False, disable=None
    ):
        n = int((batch.y != IGNORE).sum())
        total += score(batch) * n if n else 0.0
        count += n
    loss = total / count
    return LossResult(loss, loss / math.log(2) / validation.bytes_per_token, count)
