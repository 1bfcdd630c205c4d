"""Nano's `.bin` described once: header words by version, and the order of the parameters that reader and writer walk.

Dimensions: V vocabulary, E n_embd, Q = n_head * head_dim, K = n_kv_head * head_dim, F n_hidden, D head_dim, R = D / 2,
B block_size, r rank of an adapter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nano_ds.interop.quantize import Q4K_BLOCK, Q4K_TAG, q4k_blocks

MAGIC = (0x42443453, 0x55524C4D)
HEADER_BYTES = 256
NANO, QWEN2, QWEN3, LORA = 0, 2, 3, 10
KINDS = {NANO: "Nano", QWEN2: "Qwen2", QWEN3: "Qwen3", LORA: "LoRA adapter"}
COUNTS = ("block_size", "vocab_size", "n_layer", "n_embd", "n_head", "n_kv_head", "n_hidden", "tied")  # words 6 to 13
LORA_COUNTS = ("rank", "alpha", "n_layer", "n_embd", "n_head", "n_kv_head", "n_hidden")  # words 6 to 12
Q4K_PREFIX = 44  # u64 bytes, u32 tag, u32 dimensions, u32 shape[6], u32 blocks
Q4K_PREFIX_CODE = "<QII6II"


@dataclass(frozen=True)
class Version:
    """What differs between versions. A word of -1 is absent."""

    config_bytes: int
    head_dim: dict[int, int]  # model type -> word
    quant: dict[int, int]  # model type -> word; its keys are the types of this version
    codes: dict[int, str]  # value of the quantisation word -> format
    # The group size is in the word after the quantisation.


VERSIONS = {
    (2024, 10): Version(32, {NANO: -1}, {NANO: 14}, {0: "f32", 800: "q80"}),
    (2025, 8): Version(32, {NANO: -1, QWEN3: 14}, {NANO: 14, QWEN3: 15}, {10: "q80", 800: "q80", 0x80: "q80"}),
    (2025, 12): Version(36, dict.fromkeys((0, 2, 3), 14), dict.fromkeys((0, 2, 3), 15), {0: "f32", 10: "q80"}),
    (2026, 1): Version(
        36, dict.fromkeys((0, 2, 3), 14), dict.fromkeys((0, 2, 3), 15), {0: "f32", 0x80: "q80", 0x42: "q4k"}
    ),
}
LORA_VERSION = (2024, 10)


@dataclass(frozen=True)
class Parameter:
    """One entry of a file: for every layer at once where the name holds ``{}``."""

    name: str  # of the state dict
    shape: str  # dimensions, a letter each
    quantised: bool = False  # a matrix, stored in the file's number format; all others are float32
    only: str = ""  # "untied", "qkv_bias" or "qk_norm": absent from other models


PARAMETERS = {
    "tok_emb": Parameter("tok_emb.weight", "VE", True),
    "attn_norm": Parameter("blocks.{}.attn_norm.weight", "E"),
    "wq": Parameter("blocks.{}.attn.wq.weight", "QE", True),
    "wk": Parameter("blocks.{}.attn.wk.weight", "KE", True),
    "wv": Parameter("blocks.{}.attn.wv.weight", "KE", True),
    "wo": Parameter("blocks.{}.attn.wo.weight", "EQ", True),
    "ffn_norm": Parameter("blocks.{}.ffn_norm.weight", "E"),
    "w1": Parameter("blocks.{}.ffn.w1.weight", "FE", True),
    "w2": Parameter("blocks.{}.ffn.w2.weight", "EF", True),
    "w3": Parameter("blocks.{}.ffn.w3.weight", "FE", True),
    "final_norm": Parameter("final_norm.weight", "E"),
    "bq": Parameter("blocks.{}.attn.wq.bias", "Q", only="qkv_bias"),
    "bk": Parameter("blocks.{}.attn.wk.bias", "K", only="qkv_bias"),
    "bv": Parameter("blocks.{}.attn.wv.bias", "K", only="qkv_bias"),
    "q_norm": Parameter("blocks.{}.attn.q_norm.weight", "D", only="qk_norm"),
    "k_norm": Parameter("blocks.{}.attn.k_norm.weight", "D", only="qk_norm"),
    "cos": Parameter("rope.cos", "BR"),
    "sin": Parameter("rope.sin", "BR"),
    "output": Parameter("head.weight", "VE", True, only="untied"),
    "wq_a": Parameter("blocks.{}.attn.wq.lora_a", "rE"),
    "wq_b": Parameter("blocks.{}.attn.wq.lora_b", "Qr"),
    "wk_a": Parameter("blocks.{}.attn.wk.lora_a", "rE"),
    "wk_b": Parameter("blocks.{}.attn.wk.lora_b", "Kr"),
    "wv_a": Parameter("blocks.{}.attn.wv.lora_a", "rE"),
    "wv_b": Parameter("blocks.{}.attn.wv.lora_b", "Kr"),
    "wo_a": Parameter("blocks.{}.attn.wo.lora_a", "rQ"),
    "wo_b": Parameter("blocks.{}.attn.wo.lora_b", "Er"),
}

ORDER_A = "tok_emb attn_norm wq wk wv wo ffn_norm w1 w2 w3 final_norm cos sin output"
ORDER_B = "attn_norm ffn_norm final_norm tok_emb wq wk wv wo w1 w2 w3 output cos sin"
ORDER_B2 = "attn_norm ffn_norm final_norm tok_emb wq wk wv wo w1 w2 w3 bq bk bv q_norm k_norm cos sin output"
ORDER_LORA = "wq_a wq_b wk_a wk_b wv_a wv_b wo_a wo_b"
LORA_TARGETS = ("wq", "wk", "wv", "wo")


@dataclass(frozen=True)
class Header:
    """The header words that mean something, checked by whoever made it."""

    version: tuple[int, int]
    kind: int
    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int
    n_hidden: int
    head_dim: int
    block_size: int = 0
    vocab_size: int = 0
    tied: bool = True
    quant: str = "f32"
    group_size: int = 0
    rank: int = 0
    alpha: int = 0

    @property
    def dims(self) -> dict[str, int]:
        d = self.head_dim
        return {
            "V": self.vocab_size,
            "E": self.n_embd,
            "Q": self.n_head * d,
            "K": self.n_kv_head * d,
            "F": self.n_hidden,
            "D": d,
            "R": d // 2,
            "B": self.block_size,
            "r": self.rank,
        }

    @property
    def order(self) -> list[str]:
        if self.kind == LORA:
            return ORDER_LORA.split()
        if self.version == (2024, 10):
            return (ORDER_A if self.quant == "f32" else ORDER_B).split()
        return ORDER_B2.split()

    def has(self, parameter: Parameter) -> bool:
        present = {"untied": not self.tied, "qkv_bias": self.kind == QWEN2, "qk_norm": self.kind == QWEN3}
        return not parameter.only or present[parameter.only]


@dataclass(frozen=True)
class Segment:
    """A run of one parameter's bytes: ``layers`` pieces of ``shape``, or one piece that belongs to no layer (0)."""

    key: str
    name: str
    shape: tuple[int, ...]
    layers: int
    quant: str
    group_size: int

    @property
    def count(self) -> int:
        """Weights of one piece."""
        return math.prod(self.shape)

    @property
    def prefix(self) -> int:
        return Q4K_PREFIX if self.quant == "q4k" else 0

    def q4k_prefix(self) -> tuple[int, ...]:
        """The numbers before the blocks of a Q4K tensor: bytes, tag, dimensions, six of them, blocks."""
        shape = (self.layers, *self.shape) if self.layers else self.shape
        blocks = max(1, self.layers) * q4k_blocks(self.shape)
        padded = (*shape, *[0] * (6 - len(shape)))
        return (Q4K_PREFIX + Q4K_BLOCK.itemsize * blocks, Q4K_TAG, len(shape), *padded, blocks)

    @property
    def piece_bytes(self) -> int:
        if self.quant == "q80":
            return self.count + 4 * (self.count // self.group_size)
        if self.quant == "q4k":
            return Q4K_BLOCK.itemsize * q4k_blocks(self.shape)
        return 4 * self.count

    @property
    def size(self) -> int:
        return self.prefix + max(1, self.layers) * self.piece_bytes

    def names(self) -> list[str]:
        return [self.name.format(i) for i in range(self.layers)] if self.layers else [self.name]


def segments(header: Header) -> list[Segment]:
    """What follows the tokenizer field, in order and without gaps."""
    dims = header.dims
    found = []
    for key in header.order:
        p = PARAMETERS[key]
        if header.has(p):
            shape = tuple(dims[letter] for letter in p.shape)
            layers = header.n_layer if "{}" in p.name else 0
            found.append(Segment(key, p.name, shape, layers, header.quant if p.quantised else "f32", header.group_size))
    return found
