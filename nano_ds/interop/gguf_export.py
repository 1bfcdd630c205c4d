"""A model directory as a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nano_ds.config import ModelConfig
from nano_ds.interop.gguf_file import GGUFWriter, Value
from nano_ds.interop.gguf_layout import (
    FILE_TYPES,
    INTERLEAVED,
    NANO,
    choose_architecture,
    tensor_names,
    tensor_types,
    turn_rows,
    turns_rows,
)
from nano_ds.interop.gguf_tokenizer import tokenizer_metadata
from nano_ds.model_dir import expected_shapes
from nano_ds.tokenizer import Tokenizer

QUANTS = tuple(FILE_TYPES)


@dataclass(frozen=True)
class Written:
    """What a file became: its architecture, why it had to be ours, the type of every tensor by our name."""

    architecture: str
    reasons: list[str]
    types: dict[str, str]
    remarks: list[str]


def write_gguf(
    path: str | Path,
    config: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    tokenizer: Tokenizer | None,
    meta: Mapping[str, Any],
    quant: str = "f32",
    importance: Mapping[str, np.ndarray] | None = None,
) -> Written:
    """Writes a model as GGUF, one tensor in memory at a time.

    Args:
        tensors: float32 by the names of ``model.safetensors``.
        meta: what ``meta.json`` holds; name, licence, step and tokens go along.
        importance: mean squares of the inputs by tensor name, of ``importance.collect``.

    Raises:
        UserError: the tokenizer has more tokens than the model, a weight is not finite or does not fit.
    """
    path = Path(path)
    architecture, reasons = choose_architecture(config)
    interleaved = INTERLEAVED.get(architecture, config.rope_interleaved)
    types, names, shapes = tensor_types(config, quant), tensor_names(config), expected_shapes(config)
    metadata = _general(architecture, meta, path, quant, types) | _hyperparameters(architecture, config)
    if config.use_rope and interleaved != config.rope_interleaved:
        metadata["nano_ds.rope_interleaved"] = config.rope_interleaved
    metadata |= exact_values(config)
    more, remarks = tokenizer_metadata(tokenizer, config.vocab_size)
    metadata |= more
    with GGUFWriter(path, metadata, [(names[n], shapes[n], types[n]) for n in shapes]) as writer:
        for name in shapes:
            weights = tensors[name]
            if config.use_rope and interleaved != config.rope_interleaved and turns_rows(name):
                weights = turn_rows(weights, config.head_width, interleaved)
            writer.write(names[name], weights, (importance or {}).get(name))
    return Written(architecture, reasons, types, remarks)


def _general(
    architecture: str, meta: Mapping[str, Any], path: Path, quant: str, types: Mapping[str, str]
) -> dict[str, Value]:
    values: dict[str, Value] = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": str(meta.get("name") or path.stem),
    }
    if licence := meta.get("licence"):
        values["general.license"] = str(licence)
    if source := meta.get("source"):
        values["nano_ds.source"] = str(source)
    for key in ("step", "tokens"):
        if type(meta.get(key)) is int and meta[key] >= 0:
            values[f"nano_ds.{key}"] = meta[key]
    values["general.file_type"] = FILE_TYPES[quant]
    if any(t.startswith("q") for t in types.values()):
        values["general.quantization_version"] = 2
    return values


def _hyperparameters(architecture: str, config: ModelConfig) -> dict[str, Value]:
    c = config
    values: dict[str, Value] = {
        "context_length": c.block_size,
        "embedding_length": c.n_embd,
        "block_count": c.n_layer,
        "feed_forward_length": c.hidden,
        "attention.head_count": c.n_head,
        "attention.head_count_kv": c.n_kv_head,
        "attention.layer_norm_rms_epsilon": float(c.norm_eps),
        "vocab_size": c.vocab_size,
    }
    if c.head_width * c.n_head != c.n_embd:
        values |= {"attention.key_length": c.head_width, "attention.value_length": c.head_width}
    if c.use_rope:
        values |= {"rope.freq_base": float(c.rope_theta), "rope.dimension_count": c.head_width}
    if architecture == NANO:
        values |= {"attention.causal": c.is_causal, "use_rope": c.use_rope}
        if c.use_rope:
            values["rope.interleaved"] = c.rope_interleaved
    return {f"{architecture}.{key}": value for key, value in values.items()}


def exact_values(config: ModelConfig) -> dict[str, Value]:
    """Numbers that the container's float32 changes, and those that it has no key for, so that they come back equal."""
    values: dict[str, Value] = {}
    for key in ("rope_theta", "norm_eps"):
        value = getattr(config, key)
        if shortest(value) != value:
            values[f"nano_ds.{key}"] = np.float64(value)
    if config.dropout:
        values["nano_ds.dropout"] = np.float64(config.dropout)
    if config.bias and config.qkv_bias:
        values["nano_ds.qkv_bias"] = True  # says nothing more than bias does, but is part of the config
    return values


def shortest(value: float) -> float:
    """The number with the fewest digits that is the same in float32: 1e-5, not 9.99999974e-06."""
    return float(str(np.float32(value)))
