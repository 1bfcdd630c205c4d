"""How Hugging Face's Llama, Qwen2 and Qwen3 name the modules that we have, and which of their rows rotate.

Their rotary pairs are (x[j], x[j + D/2]), "halves"; ours are by default (x[2j], x[2j + 1]), "pairs". Attention only
sees products of queries and keys, so a model of pairs is the same model in halves once the rows that make queries and
keys are put in that order, head by head.
"""

from __future__ import annotations

import re

import numpy as np

from nano_ds.config import ModelConfig

OUTSIDE = {"tok_emb": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn.wq": "self_attn.q_proj",
    "attn.wk": "self_attn.k_proj",
    "attn.wv": "self_attn.v_proj",
    "attn.wo": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn.w1": "mlp.gate_proj",
    "ffn.w2": "mlp.down_proj",
    "ffn.w3": "mlp.up_proj",
}
OURS_OUTSIDE = {theirs: ours for ours, theirs in OUTSIDE.items()}
OURS_INSIDE = {theirs: ours for ours, theirs in INSIDE.items()}
ROTATED = ("attn.wq", "attn.wk", "attn.q_norm", "attn.k_norm")


def hf_module(ours: str) -> str:
    """``blocks.3.attn.wq`` is ``model.layers.3.self_attn.q_proj``. Raises KeyError for what they do not have."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", ours)
    return f"model.layers.{block[1]}.{INSIDE[block[2]]}" if block else OUTSIDE[ours]


def our_module(theirs: str) -> str:
    """The way back. Raises KeyError for a module that we do not have."""
    layer = re.fullmatch(r"model\.layers\.(0|[1-9]\d{0,3})\.(.+)", theirs)
    return f"blocks.{layer[1]}.{OURS_INSIDE[layer[2]]}" if layer else OURS_OUTSIDE[theirs]


def hf_name(ours: str) -> str:
    """The same for a tensor, ``blocks.3.attn.wq.weight``."""
    module, _, leaf = ours.rpartition(".")
    return f"{hf_module(module)}.{leaf}"


def rotates(module: str) -> bool:
    """Whether the rows of a module of ours make queries or keys, which the rotary positions turn."""
    return module.endswith(ROTATED)


def to_halves(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Rows [heads D, …] of each head from the order of pairs, 0 1 2 3 …, to that of halves, 0 2 4 … 1 3 5 …"""
    return _reorder(x, config.head_width // 2, 2)


def to_pairs(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The inverse of ``to_halves``."""
    return _reorder(x, 2, config.head_width // 2)


def _reorder(x: np.ndarray, outer: int, inner: int) -> np.ndarray:
    return np.ascontiguousarray(x.reshape(-1, outer, inner, *x.shape[1:]).swapaxes(1, 2)).reshape(x.shape)
