"""Attention by document: a row of several documents gives what each gives alone, forwards and backwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bin_helpers import small_config

from nano_ds.by_document import Documents
from nano_ds.config import ModelConfig
from nano_ds.data import BlockStream, Loader
from nano_ds.model import IGNORE, Transformer
from nano_ds.shards import TokenSet

LENGTHS = ((5, 1, 20, 6), (32,), (1, 1, 2, 28))  # of three rows of 32
SHAPES: dict[str, dict[str, Any]] = {
    "rope": {},
    "halves, norms, biases": {"rope_interleaved": False, "qk_norm": True, "qkv_bias": True},
    "learned positions": {"use_rope": False},
    "full attention": {"is_causal": False},
}


def model(**more: Any) -> Transformer:
    torch.manual_seed(1)
    made = Transformer(replace(small_config(), block_size=32, **more))
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(3)  # logits of the size of real ones
    return made


def batch(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, Documents]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, config.vocab_size, (len(LENGTHS), 33), generator=generator)
    y = ids[:, 1:].clone()
    y[torch.rand(y.shape, generator=generator) < 0.5] = IGNORE
    positions = np.stack([np.concatenate([np.arange(n) for n in row]) for row in LENGTHS])
    return ids[:, :-1], y, Documents.of(positions)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_row_of_documents_is_each_alone(shape: dict[str, Any]) -> None:
    packed, alone = model(**shape), model(**shape)
    x, y, documents = batch(packed.config)
    assert documents.lengths == sum(LENGTHS, ())
    logits = packed(x, documents=documents)
    loss = packed(x, y, documents=documents)
    loss.backward()
    total: Any = 0.0
    for row, lengths in enumerate(LENGTHS):
        for piece in torch.arange(32).split(list(lengths)):
            one = alone(x[row, piece][None])
            torch.testing.assert_close(logits[row, piece], one[0], atol=1e-5, rtol=1e-5)
            total = total + F.cross_entropy(one[0], y[row, piece], ignore_index=IGNORE, reduction="sum")
    (total / (y != IGNORE).sum()).backward()
    assert abs(float((total / (y != IGNORE).sum()).detach()) - loss.item()) <= 1e-5
    for (name, a), b in zip(packed.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)
    assert not torch.allclose(logits, packed(x), atol=1e-2)


def test_dropout_reaches_attention_too() -> None:
    made = model(dropout=0.5)
    x, y, documents = batch(made.config)
    losses = {made.train()(x, y, documents=documents).item() for _ in range(3)}
    assert len(losses) == 3
    assert len({made.eval()(x, y, documents=documents).item() for _ in range(3)}) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the variable-length flash kernel runs on none else")
def test_the_gpus_kernel_agrees() -> None:
    made = model().cuda().bfloat16()
    x, y, documents = batch(made.config)
    x, y, documents = x.cuda(), y.cuda(), documents.to(torch.device("cuda"))
    loss = made(x, y, documents=documents)
    loss.backward()
    reference = model().cuda()
    wanted = reference(x, y, documents=documents)
    wanted.backward()
    assert abs(loss.item() - wanted.item()) <= 2e-2 * wanted.item()
    for a, b in zip(made.parameters(), reference.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad.float() - b.grad).norm() <= 0.1 * b.grad.norm()


def test_documents_of_text_begin_with_the_end_of_the_one_before(small_set: Path) -> None:
    found = TokenSet.open(small_set, "train")
    stream = BlockStream([found], 16, seed=1, document_mask=True)
    eos = 0
    seen = 0
    for g in range(stream.blocks[0]):
        tokens, positions = stream.read([g])[0], stream.positions([g])
        assert positions is not None and positions[0, 0] == 0
        begins = np.flatnonzero(positions[0] == 0)
        eos = eos or int(found.shards[0].tokens[int(found.shards[0].starts[1]) - 1])
        wanted = [0, *(i for i in range(1, 16) if tokens[i] == eos)]
        assert begins.tolist() == sorted(set(wanted))
        assert (np.diff(positions[0])[np.delete(np.arange(15), begins[1:] - 1)] == 1).all()
        seen += len(begins) - 1
    assert seen > 5
    with Loader(stream, micro_batch=2, batch_size=2) as loader:
        (made,) = loader.next_step()
        assert made.documents is not None and made.weight == 1.0 and (made.y != IGNORE).all()
    assert BlockStream([found], 16, seed=1).positions([0]) is None
