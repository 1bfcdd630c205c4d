"""GGUF files into model directories."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nano_ds.config import ModelConfig, from_tree
from nano_ds.errors import UserError
from nano_ds.interop.gguf_export import shortest
from nano_ds.interop.gguf_file import GGUFFile, single
from nano_ds.interop.gguf_layout import ARCHITECTURES, INTERLEAVED, NANO, tensor_names, turn_rows, turns_rows
from nano_ds.interop.gguf_tokenizer import read_tokenizer
from nano_ds.model_dir import expected_shapes, new_meta, write_model_dir
from nano_ds.tokenizer import Tokenizer

# Keys of an architecture that say what ModelConfig holds.
COUNTS = {
    "context_length": "block_size",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_hidden",
    "attention.head_count": "n_head",
    "attention.head_count_kv": "n_kv_head",
}
KNOWN = {
    *COUNTS,
    *("attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length", "attention.causal"),
    *("rope.freq_base", "rope.dimension_count", "vocab_size", "use_rope", "rope.interleaved"),
}
# Keys that change the model unless they have one of these values, and what they would ask for.
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "rope.scaling.type": (("none", ""), "scaled rotary positions"),
    "rope.scaling.factor": ((0.0, 1.0), "scaled rotary positions"),
    "rope.scale_linear": ((0.0, 1.0), "scaled rotary positions"),
    "attention.sliding_window": ((0,), "a sliding window of attention"),
    "expert_count": ((0,), "experts"),
    "expert_used_count": ((0,), "experts"),
    "use_parallel_residual": ((False,), "parallel residuals"),
    "tensor_data_layout": (("Meta AI original pth",), "another order of the weights"),
}
LEFTOVERS = ("rope.scaling.original_context_length", "rope.scaling.finetuned")  # mean nothing without a scaling type


@dataclass(frozen=True)
class Imported:
    """What an import found, for the lines that the command prints."""

    config: ModelConfig
    tokenizer: Tokenizer | None
    description: str


def describe(file: GGUFFile) -> str:
    """One phrase for meta and messages: ``GGUF, llama, 210 q4_1, 61 f32, 1 q8_0``."""
    types = Counter(info.type.name for info in file.infos.values())
    kinds = ", ".join(f"{n} {t}" for t, n in types.most_common())
    return f"GGUF, {single(file.metadata, 'general.architecture')}, {kinds}"


def import_gguf(path: str | Path, out: str | Path, licence: str = "", with_tokenizer: bool = True) -> Imported:
    """Writes a GGUF model as a model directory, float32, one tensor in memory at a time.

    Raises:
        UserError: the file is damaged, or holds something that a model directory cannot; nothing is written then.
    """
    from tqdm import tqdm

    file = GGUFFile(path)
    config = read_config(file)
    source = str(file.path)
    tokenizer = read_tokenizer(file.metadata, config.vocab_size, source) if with_tokenizer else None
    meta = _meta(file, licence)
    names = tensor_names(config)
    turned = config.use_rope and config.rope_interleaved != stored_interleaved(file)
    with write_model_dir(out, config, tokenizer, meta) as writer:
        for name in tqdm(writer.names, "import", unit=" tensors", leave=False, disable=None):
            weights = file[names[name]]
            if turned and turns_rows(name):
                weights = turn_rows(weights, config.head_width, config.rope_interleaved)
            writer.write(name, weights)
    return Imported(config, tokenizer, describe(file))


def architecture(file: GGUFFile) -> str:
    name = single(file.metadata, "general.architecture")
    if name not in ARCHITECTURES:
        raise UserError(f"{file.path}: architecture {name!r}; nano_ds reads {', '.join(ARCHITECTURES)}")
    return str(name)


def stored_interleaved(file: GGUFFile) -> bool:
    """Which rotary pairs the rows of queries and keys in the file are ordered for."""
    name = architecture(file)
    return file.metadata.get(f"{NANO}.rope.interleaved") is True if name == NANO else INTERLEAVED[name]


def read_config(file: GGUFFile) -> ModelConfig:
    """The config of a model file whose tensors are all there, of the right shapes, and no others."""
    kind = single(file.metadata, "general.type", "model")
    if kind != "model":
        raise UserError(f"{file.path}: general.type is {kind!r}, not a model")
    if single(file.metadata, "split.count", 0) not in (0, 1):
        raise UserError(f"{file.path}: is one part of a split model; join the parts first (`llama-gguf-split --merge`)")
    reader = _Keys(file, architecture(file))
    config = reader.config()
    _check_tensors(file, config)
    return config


class _Keys:
    """The keys of one architecture; collects everything that is wrong with them."""

    def __init__(self, file: GGUFFile, prefix: str):
        self.file, self.prefix = file, prefix
        start = f"{prefix}."
        self.values = {k[len(start) :]: v for k, v in file.metadata.items() if k.startswith(start)}
        self.problems: list[str] = []

    def _problem(self, key: str, text: str) -> None:
        self.problems.append(f"{self.prefix}.{key}: {text}")

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number; per layer where all layers have the same."""
        value = self.values.get(key, default)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(value):
            if (value != value[0]).any():
                self._problem(key, "differs between layers, which nano_ds has no place for")
            value = int(value[0])
        if type(value) is not int or value < 1:
            self._problem(key, "is missing" if value is None else f"expected a positive whole number, not {value!r}")
            return 1
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e30:
            self._problem(key, "is missing" if value is None else f"expected a number, not {value!r}")
            return 1.0
        own = self.file.metadata.get(OWN_NUMBERS[key])
        if type(own) is float and shortest(own) == shortest(value):
            return own
        return shortest(value)

    def flag(self, key: str, default: bool | None) -> bool:
        value = self.values.get(key, default)
        if type(value) is not bool:
            self._problem(key, "is missing" if value is None else f"expected true or false, not {value!r}")
        return value is True

    def config(self) -> ModelConfig:
        nano, infos, metadata = self.prefix == NANO, self.file.infos, self.file.metadata
        tree: dict[str, Any] = {ours: self.count(key) for key, ours in COUNTS.items() if not key.endswith("_kv")}
        tree["n_kv_head"] = self.count("attention.head_count_kv", tree["n_head"])
        rows = infos["token_embd.weight"].shape[0] if "token_embd.weight" in infos else 1
        tree["vocab_size"] = self.count("vocab_size", rows)
        width = self.count("attention.key_length", max(1, tree["n_embd"] // tree["n_head"]))
        tree["head_dim"] = None if width * tree["n_head"] == tree["n_embd"] else width
        tree["norm_eps"] = self.number("attention.layer_norm_rms_epsilon")
        tree["is_causal"] = self.flag("attention.causal", None if nano else True)
        tree["use_rope"] = self.flag("use_rope", None) if nano else True
        if tree["use_rope"]:
            tree["rope_theta"] = self.number("rope.freq_base", 1e4)
            stored = self.flag("rope.interleaved", None) if nano else INTERLEAVED[self.prefix]
            tree["rope_interleaved"] = metadata.get("nano_ds.rope_interleaved", stored) is True
        tree["qkv_bias"] = "blk.0.attn_q.bias" in infos
        tree["bias"] = "blk.0.attn_output.bias" in infos
        tree["qk_norm"] = "blk.0.attn_q_norm.weight" in infos
        tree["tie_embeddings"] = "output.weight" not in infos
        dropout = metadata.get("nano_ds.dropout", 0.0)
        tree["dropout"] = dropout if type(dropout) is float and 0 <= dropout < 1 else 0.0
        if tree["bias"]:
            tree["qkv_bias"] = metadata.get("nano_ds.qkv_bias", False) is True
        self._refuse_the_rest(width, tree)
        if self.problems:
            shown = "".join(f"\n  - {p}" for p in self.problems)
            raise UserError(f"{self.file.path}: cannot be imported:{shown}")
        return from_tree(ModelConfig, tree, str(self.file.path))

    def _refuse_the_rest(self, width: int, tree: dict[str, Any]) -> None:
        if single(self.values, "attention.value_length", width) != width:
            self._problem("attention.value_length", f"differs from the width of keys, {width}")
        if tree["use_rope"] and single(self.values, "rope.dimension_count", width) != width:
            self._problem("rope.dimension_count", f"rotates part of a head of {width}; nano_ds rotates all of it")
        if tree["qk_norm"] and self.prefix not in ("qwen3", NANO):
            self._problem("attention", f"norms of queries and keys are no part of {self.prefix}")
        for key, (allowed, what) in NEUTRAL.items():
            if key in self.values and (value := single(self.values, key)) not in allowed:
                self._problem(key, f"{value!r} asks for {what}, which nano_ds has not")
        for key in self.values.keys() - KNOWN - NEUTRAL.keys() - set(LEFTOVERS):
            self._problem(key, f"{_short(self.values[key])}: unknown here; it may change what the model computes")


OWN_NUMBERS = {"attention.layer_norm_rms_epsilon": "nano_ds.norm_eps", "rope.freq_base": "nano_ds.rope_theta"}


def _check_tensors(file: GGUFFile, config: ModelConfig) -> None:
    """Raises UserError with everything that is missing, of another shape, or has no place in the model."""
    wanted = {theirs: expected_shapes(config)[ours] for ours, theirs in tensor_names(config).items()}
    problems = []
    for name, shape in wanted.items():
        if name not in file.infos:
            problems.append(f"{name}: missing")
        elif file.infos[name].shape != shape:
            problems.append(f"{name}: shape {list(file.infos[name].shape)}, its keys ask for {list(shape)}")
    for name in file.infos:
        if name not in wanted:
            scaled = "; it scales rotary positions" if name.startswith("rope_") else ""
            problems.append(f"{name}: has no place in a model of ours{scaled}")
    if problems:
        shown = "".join(f"\n  - {p}" for p in problems[:12])
        more = f"\n  and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise UserError(f"{file.path}: its tensors are not those that nano_ds has a place for:{shown}{more}")


def _meta(file: GGUFFile, licence: str) -> dict[str, Any]:
    m = file.metadata

    def text(key: str) -> str:
        return m[key] if isinstance(m.get(key), str) else ""

    def number(key: str) -> int | None:
        return m[key] if type(m.get(key)) is int else None

    return new_meta(
        step=number("nano_ds.step"),
        tokens=number("nano_ds.tokens"),
        licence=licence or text("general.license"),
        source=f"{file.path.name} ({describe(file)})",
        name=text("general.name"),
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
