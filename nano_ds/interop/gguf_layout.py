"""How a model of ours lies in a GGUF file: its architecture, the names of its tensors, the order of rotary rows.

`docs/model_file.md` has this as tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from nano_ds.config import ModelConfig
from nano_ds.interop.blocks import TYPES
from nano_ds.model_dir import expected_shapes

NANO = "nano"  # ours: what no architecture of llama.cpp holds; read by nano_ds and nano-infer alone
# Which pairs an architecture rotates: (2j, 2j+1), or (j, j + D/2). `nano` says it in a key.
INTERLEAVED = {"llama": True, "qwen2": False, "qwen3": False}
ARCHITECTURES = (*INTERLEAVED, NANO)

OUTSIDE = {
    "tok_emb.weight": "token_embd.weight",
    "pos_emb.weight": "position_embd.weight",
    "final_norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}
INSIDE = {
    "attn_norm": "attn_norm",
    "attn.wq": "attn_q",
    "attn.wk": "attn_k",
    "attn.wv": "attn_v",
    "attn.wo": "attn_output",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "ffn_norm": "ffn_norm",
    "ffn.w1": "ffn_gate",
    "ffn.w2": "ffn_down",
    "ffn.w3": "ffn_up",
}
OURS = {theirs: ours for ours, theirs in INSIDE.items()}

MIXES = {
    # quant: matrices, those that a coarse type hurts most, the output matrix (the embedding where it is tied)
    "f32": ("f32", "f32", "f32"),
    "f16": ("f16", "f16", "f16"),
    "bf16": ("bf16", "bf16", "bf16"),
    "q8_0": ("q8_0", "q8_0", "q8_0"),
    "q4_0": ("q4_0", "q4_0", "q6_k"),
    "q4_k": ("q4_k", "q6_k", "q6_k"),
}
# Where a row does not fill the blocks of a type.
NARROWER = {"q4_k": "q5_0", "q6_k": "q8_0", "q4_0": "f16", "q5_0": "f16", "q8_0": "f16"}
# general.file_type, which programs print.
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k": 15, "bf16": 32}


def gguf_name(ours: str) -> str:
    """``blocks.3.attn.wq.weight`` becomes ``blk.3.attn_q.weight``; what follows the module's name stays."""
    if ours in OUTSIDE:
        return OUTSIDE[ours]
    _, layer, rest = ours.split(".", 2)
    module, _, leaf = rest.rpartition(".")
    return f"blk.{layer}.{INSIDE[module]}.{leaf}"


def tensor_names(config: ModelConfig) -> dict[str, str]:
    """Our name to GGUF's of every tensor of the model, in the order of ``model.safetensors``."""
    return {name: gguf_name(name) for name in expected_shapes(config)}


def choose_architecture(config: ModelConfig) -> tuple[str, list[str]]:
    """The architecture that holds a model, and, where that is ``nano``, everything that llama.cpp's lack."""
    c = config
    checks = [
        (c.qk_norm and (c.bias or c.qkv_bias), "biases and norms of queries and keys together"),
        (not c.is_causal, "full attention"),
        (not c.use_rope, "learned positions"),
    ]
    if reasons := [text for wrong, text in checks if wrong]:
        return NANO, reasons
    if c.qk_norm:
        return "qwen3", []
    # qwen2 has biases on three layers of a block and fixes the width of a head; llama takes what biases there are.
    return ("qwen2" if c.qkv_bias and not c.bias and c.head_width * c.n_head == c.n_embd else "llama"), []


def turns_rows(name: str) -> bool:
    """Whether a tensor's rows are those of rotated heads, whose order an architecture prescribes."""
    return name.startswith("blocks.") and name.split(".", 2)[2] in (
        "attn.wq.weight",
        "attn.wk.weight",
        "attn.wq.bias",
        "attn.wk.bias",
        "attn.q_norm.weight",
        "attn.k_norm.weight",
        "attn.wq.lora_b",
        "attn.wk.lora_b",
    )


def turn_rows(rows: np.ndarray, head_width: int, interleaved: bool) -> np.ndarray:
    """Puts the rows of every head in the other order: from halves to ``interleaved`` pairs, or back.

    The head computes the same: a row travels with its pair, and scores are sums over the whole head.
    """
    inner = (2, head_width // 2) if interleaved else (head_width // 2, 2)
    split = rows.reshape(-1, *inner, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def tensor_types(config: ModelConfig, quant: str) -> dict[str, str]:
    """The type of every tensor (by our name) in a file of ``quant``: norms, biases and positions stay float32.

    The output matrix decides every word and is kept finer; in q4_k so are the values and the way down from the
    feed-forward of the first and the last eighth of the layers and of every third between, as in llama.cpp's Q4_K_M.
    """
    matrix, fine, output = MIXES[quant]
    types = {}
    for name, shape in expected_shapes(config).items():
        if len(shape) == 1 or name == "pos_emb.weight":
            types[name] = "f32"
            continue
        wanted = matrix
        if name == "head.weight" or (name == "tok_emb.weight" and config.tie_embeddings):
            wanted = output
        elif name.endswith(("attn.wv.weight", "ffn.w2.weight")) and _is_sensitive(name, config.n_layer):
            wanted = fine
        types[name] = fitting(wanted, shape[-1])
    return types


def fitting(type: str, row: int) -> str:
    """``type``, or the next narrower whose blocks rows of this length fill."""
    while row % TYPES[type].weights:
        type = NARROWER[type]
    return type


def _is_sensitive(name: str, layers: int) -> bool:
    layer, eighth = int(name.split(".")[1]), layers // 8
    return layer < eighth or layer >= math.ceil(7 * layers / 8) or (layer - eighth) % 3 == 2


def type_summary(types: Mapping[str, str], config: ModelConfig) -> str:
    """The matrices' types by how many there are: ``180 q5_0, 30 q6_k, 1 q8_0``."""
    count: dict[str, int] = {}
    for name, shape in expected_shapes(config).items():
        if len(shape) == 2 and name in types:
            count[types[name]] = count.get(types[name], 0) + 1
    return ", ".join(f"{n} {t}" for t, n in sorted(count.items(), key=lambda item: -item[1]))
