"""GGUF files put together by hand from docs/model_file.md, independent of the package's writer."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from nano_ds.config import ModelConfig

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10

# Every variant that a config can ask for, one or two at a time.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "halves": {"rope_interleaved": False},
    "untied": {"tie_embeddings": False},
    "theta": {"rope_theta": 5e5, "norm_eps": 1e-6},
    "odd numbers": {"rope_theta": 12345.678901, "norm_eps": 1.23456789e-6, "dropout": 0.1},
    "wide heads": {"head_dim": 32},
    "wide halves": {"head_dim": 32, "rope_interleaved": False},
    "qwen2": {"qkv_bias": True, "rope_interleaved": False},
    "qwen2 interleaved": {"qkv_bias": True},
    "qwen2 wide": {"qkv_bias": True, "rope_interleaved": False, "head_dim": 32},
    "qwen3": {"qk_norm": True, "rope_interleaved": False, "head_dim": 32, "rope_theta": 1e6},
    "qwen3 interleaved": {"qk_norm": True},
    "both": {"qk_norm": True, "qkv_bias": True},
    "bias": {"bias": True},
    "bias twice": {"bias": True, "qkv_bias": True},
    "bias halves": {"bias": True, "rope_interleaved": False},
    "full attention": {"is_causal": False},
    "full halves": {"is_causal": False, "rope_interleaved": False},
    "positions": {"use_rope": False},
    "everything": {
        "use_rope": False,
        "is_causal": False,
        "bias": True,
        "qk_norm": True,
        "tie_embeddings": False,
        "head_dim": 24,
    },
}
ARCHITECTURE = {
    **dict.fromkeys(VARIANTS, "nano"),
    **dict.fromkeys(("plain", "halves", "untied", "theta", "odd numbers", "wide heads", "wide halves"), "llama"),
    **dict.fromkeys(("bias", "bias twice", "bias halves", "qwen2 wide"), "llama"),
    **dict.fromkeys(("qwen2", "qwen2 interleaved"), "qwen2"),
    **dict.fromkeys(("qwen3", "qwen3 interleaved"), "qwen3"),
}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value(type: int, payload: Any) -> bytes:
    """A typed value; an array is (type of its items, items)."""
    if type == ARRAY:
        inner, items = payload
        return struct.pack("<IIQ", ARRAY, inner, len(items)) + b"".join(value(inner, i)[4:] for i in items)
    if type == STRING:
        return struct.pack("<I", STRING) + text(payload)
    code = {0: "B", 1: "b", 2: "H", 3: "h", U32: "I", 5: "i", F32: "f", BOOL: "B", U64: "Q", 11: "q", 12: "d"}[type]
    return struct.pack(f"<I{code}", type, payload)


def build(
    keys: dict[str, tuple[int, Any]],
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]],
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A file of ``keys`` (name: type, value) and ``tensors`` (name: dimensions as stored, type, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for name, (kind, payload) in keys.items():
        head += text(name) + value(kind, payload)
    data = b""
    for name, (dims, kind, raw) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data))
        data += raw + b"\0" * (-len(raw) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


def by_hand(config: ModelConfig, tensors: dict[str, np.ndarray], arch: str = "llama", **more: Any) -> bytes:
    """A float32 model without vocabulary, named tensor by tensor; ``more`` are keys to add or (None) to leave out."""
    c = config
    keys: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, arch),
        f"{arch}.context_length": (U32, c.block_size),
        f"{arch}.embedding_length": (U32, c.n_embd),
        f"{arch}.block_count": (U32, c.n_layer),
        f"{arch}.feed_forward_length": (U64, c.hidden),
        f"{arch}.attention.head_count": (U32, c.n_head),
        f"{arch}.attention.head_count_kv": (ARRAY, (5, [c.n_kv_head] * c.n_layer)),
        f"{arch}.attention.layer_norm_rms_epsilon": (F32, c.norm_eps),
        f"{arch}.rope.freq_base": (F32, c.rope_theta),
        "tokenizer.ggml.model": (STRING, "no_vocab"),
    }
    for key, given in more.items():
        key = key.replace("__", ".")
        if given is None:
            del keys[key]
        else:
            keys[key] = given
    modules = {"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output"}
    modules |= {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
    modules |= {n: n for n in ("attn_norm", "ffn_norm")} | {"q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}
    outside = {"tok_emb": "token_embd", "final_norm": "output_norm", "head": "output"}
    stored = {}
    for name, array in tensors.items():
        parts = name.split(".")
        theirs = outside.get(parts[0]) or f"blk.{parts[1]}.{modules[parts[-2]]}"
        stored[f"{theirs}.{parts[-1]}"] = (tuple(reversed(array.shape)), 0, array.astype("<f4").tobytes())
    return build(keys, stored)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
