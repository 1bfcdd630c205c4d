"""The Transformer: shapes, cache, loss and counts, for every variant of its config."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nano_ds.config import ModelConfig
from nano_ds.model import IGNORE, KVCache, Transformer, cross_entropy, parameter_count, train_flops_per_token
from nano_ds.model_dir import expected_shapes

BASE: dict[str, Any] = {"block_size": 32, "vocab_size": 101, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "one head per query": {"n_kv_head": 4},
    "learned positions": {"use_rope": False},
    "halves, another theta": {"rope_interleaved": False, "rope_theta": 1e6},
    "biases": {"bias": True},
    "qkv bias": {"qkv_bias": True},
    "qk norm, own head_dim": {"qk_norm": True, "head_dim": 16},
    "untied": {"tie_embeddings": False},
    "n_hidden": {"n_hidden": 50},
}


def model(**more: Any) -> Transformer:
    torch.manual_seed(1)
    made = Transformer(ModelConfig(**{**BASE, **more})).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.05)  # biases and norms must not hide behind 0 and 1
    return made


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_shapes_and_cache(name: str) -> None:
    m = model(**VARIANTS[name])
    assert sum(p.numel() for p in m.parameters()) == parameter_count(m.config)["total"]
    assert {n: tuple(p.shape) for n, p in m.named_parameters()} == expected_shapes(m.config)
    ids = torch.randint(0, 101, (3, 32))
    with torch.no_grad():
        whole = m(ids)
        assert whole.shape == (3, 32, 101) and whole.dtype == torch.float32
        cache = KVCache(m.config, 3, 32, ids.device, torch.float32)
        parts = [m(ids[:, :9], cache=cache), m(ids[:, 9:10], cache=cache), m(ids[:, 10:], cache=cache)]
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
        fresh = KVCache(m.config, 3, 32, ids.device, torch.float32)
        assert torch.allclose(m.prefill(ids, fresh), whole[:, -1], atol=1e-5)


def test_causal_attention_does_not_see_what_follows_and_full_attention_does() -> None:
    ids = torch.randint(0, 101, (1, 20))
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 101
    for causal in (True, False):
        m = model(is_causal=causal)
        with torch.no_grad():
            same = torch.equal(m(ids)[0, :10], m(changed)[0, :10])
        assert same is causal


def test_too_long_a_sequence_is_refused() -> None:
    m = model()
    with pytest.raises(ValueError, match="33 tokens does not fit the context of 32"):
        m(torch.zeros(1, 33, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_logits", [1, 101 * 7, 1 << 30])
def test_chunked_cross_entropy_is_the_plain_one(dtype: torch.dtype, max_logits: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 16).to(dtype).requires_grad_()
    w = torch.randn(101, 16).to(dtype).requires_grad_()
    targets = torch.randint(0, 101, (40,))
    targets[::7] = IGNORE
    loss = cross_entropy(x, w, targets, max_logits)
    (3 * loss).backward()
    x2, w2 = x.detach().float().requires_grad_(), w.detach().float().requires_grad_()
    plain = F.cross_entropy(x2 @ w2.T, targets, ignore_index=IGNORE)
    (3 * plain).backward()
    assert x.grad is not None and w.grad is not None and x2.grad is not None and w2.grad is not None
    tolerance = 1e-6 if dtype == torch.float32 else 3e-2
    assert torch.allclose(loss, plain, rtol=tolerance)
    assert torch.allclose(x.grad.float(), x2.grad, atol=tolerance)
    assert torch.allclose(w.grad.float(), w2.grad, atol=tolerance)


def test_rotary_tables_stay_float32_when_the_model_becomes_bf16() -> None:
    m = model().to(torch.bfloat16)
    assert m.rope is not None and m.rope[0].dtype == torch.float32


def test_flops_of_a_model_counted_by_hand() -> None:
    c = ModelConfig(block_size=8, vocab_size=10, n_layer=1, n_head=1, n_kv_head=1, n_embd=4, n_hidden=6)
    matrices = 4 * 4 * 4 + 3 * 4 * 6 + 10 * 4
    norms = 2 * 4
    assert train_flops_per_token(c) == 6 * (matrices + norms) + 12 * 1 * 8 * 4
