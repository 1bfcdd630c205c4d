"""The model directory, which every station after training reads: config, weights, vocabulary, where they came from.

``config.json``        every ModelConfig field, format and version
``model.safetensors``  float32, names of ``Transformer.state_dict``; a tied output matrix is stored once
``tokenizer.json``     absent only where the source had none
``meta.json``          step, tokens, data fingerprint, licence note, source, version of nano_ds

An adapter directory holds ``adapter.safetensors`` and ``adapter.json`` (rank, alpha, targets, fingerprint of its base).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from nano_ds import __version__
from nano_ds.config import ModelConfig, from_tree, to_tree
from nano_ds.errors import UserError
from nano_ds.files import atomic_dir, read_json, sha256_file, write_json
from nano_ds.tensors import SafetensorsWriter, Shape, TensorFile

FORMAT, ADAPTER_FORMAT, VERSION = "nano_ds.model", "nano_ds.adapter", 1
CONFIG, WEIGHTS, TOKENIZER, META = "config.json", "model.safetensors", "tokenizer.json", "meta.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter.json", "adapter.safetensors"


class Saves(Protocol):
    """A tokenizer, or anything else that can write ``tokenizer.json``."""

    def save(self, path: str | Path) -> None: ...


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Names and shapes of the model's tensors, in the order of ``model.safetensors``.

    Worked out without torch, so that exporters start at once; a test compares them with ``Transformer.state_dict``.
    """
    c, f, d = config.n_embd, config.hidden, config.head_width
    q, kv, qkv_bias = config.n_head * d, config.n_kv_head * d, config.bias or config.qkv_bias

    def linear(name: str, out: int, into: int, bias: bool) -> dict[str, Shape]:
        return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}

    block: dict[str, Shape] = {"attn_norm.weight": (c,)}
    block |= linear("attn.wq", q, c, qkv_bias)
    block |= linear("attn.wk", kv, c, qkv_bias)
    block |= linear("attn.wv", kv, c, qkv_bias)
    block |= linear("attn.wo", c, q, config.bias)
    if config.qk_norm:
        block |= {"attn.q_norm.weight": (d,), "attn.k_norm.weight": (d,)}
    block["ffn_norm.weight"] = (c,)
    block |= linear("ffn.w1", f, c, config.bias)
    block |= linear("ffn.w2", c, f, config.bias)
    block |= linear("ffn.w3", f, c, config.bias)

    shapes: dict[str, Shape] = {"tok_emb.weight": (config.vocab_size, c)}
    if not config.use_rope:
        shapes["pos_emb.weight"] = (config.block_size, c)
    for layer in range(config.n_layer):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    shapes["final_norm.weight"] = (c,)
    if not config.tie_embeddings:
        shapes["head.weight"] = (config.vocab_size, c)
    return shapes


def shape_line(config: ModelConfig) -> str:
    """The shape of a model on one line, for the blocks of facts that commands print."""
    count = sum(math.prod(shape) for shape in expected_shapes(config).values())
    heads = f"{config.n_head}/{config.n_kv_head} heads of {config.head_width}"
    return (
        f"{count:,} parameters: {config.n_layer} layers, width {config.n_embd}, {heads}, hidden {config.hidden}, "
        f"context {config.block_size}"
    )


def new_meta(
    *,
    step: int | None = None,
    tokens: int | None = None,
    data: str = "",
    licence: str = "",
    source: str = "",
    **more: Any,
) -> dict[str, Any]:
    """What ``meta.json`` holds; ``data`` is the fingerprint of the shards, ``source`` a run or a file name."""
    return {
        "step": step,
        "tokens": tokens,
        "data_fingerprint": data,
        "licence": licence,
        "source": source,
        "nano_ds": __version__,
        **more,
    }


class ModelDir:
    """An open model directory: ``config``, ``meta``, ``tensors`` (read when asked for), ``tokenizer_path``."""

    def __init__(self, path: str | Path):
        """Raises UserError naming the file and every tensor that is missing, unexpected or of another shape."""
        self.path = Path(path)
        check_is_model_dir(self.path)
        self.config = read_config(self.path / CONFIG)
        self.tensors = TensorFile(self.path / WEIGHTS)
        self.tensors.check(expected_shapes(self.config), CONFIG)
        self.tokenizer_path = self.path / TOKENIZER
        meta = read_json(self.path / META, "the origin of a model") if (self.path / META).exists() else {}
        if not isinstance(meta, dict):
            raise UserError(f"{self.path / META}: expected a JSON object")
        self.meta: dict[str, Any] = meta

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of config and weights, by which an adapter knows its base."""
        digest = hashlib.sha256(json.dumps(to_tree(self.config), sort_keys=True).encode())
        digest.update(sha256_file(self.path / WEIGHTS).encode())
        return digest.hexdigest()

    def load_into(self, model: Any) -> None:
        """Copies the weights into a ``Transformer`` of this config, one tensor at a time.

        Adapters already injected into ``model`` are left as they are.
        """
        import torch

        state = model.state_dict()
        with torch.no_grad():
            for name in self.tensors:
                state[name].copy_(torch.from_numpy(self.tensors[name]))


@contextmanager
def write_model_dir(
    path: str | Path, config: ModelConfig, tokenizer: str | Path | Saves | None, meta: Mapping[str, Any]
) -> Iterator[SafetensorsWriter]:
    """Writes a model directory atomically; the block writes every tensor of ``writer.names`` in that order.

    An older model directory at ``path`` is replaced, anything else there is refused.

        with write_model_dir(out, config, tokenizer_path, new_meta(step=step)) as writer:
            for name in writer.names:
                writer.write(name, tensors[name])
    """
    path = Path(path).resolve()
    refuse_to_replace(path, {CONFIG, WEIGHTS, TOKENIZER, META}, {CONFIG, WEIGHTS})
    if (path / CONFIG).is_file():  # Hugging Face directories have files of the same names
        there = read_json(path / CONFIG, "the config of a model directory")
        if not isinstance(there, dict) or there.get("format") != FORMAT:
            raise UserError(f"{path}: would be replaced, but is no model directory of nano_ds; choose another -o")
    with atomic_dir(path) as tmp:
        write_json(tmp / CONFIG, {"format": FORMAT, "version": VERSION, **to_tree(config)})
        write_json(tmp / META, dict(meta))
        if isinstance(tokenizer, (str, Path)):
            shutil.copyfile(tokenizer, tmp / TOKENIZER)
        elif tokenizer is not None:
            tokenizer.save(tmp / TOKENIZER)
        with SafetensorsWriter(tmp / WEIGHTS, expected_shapes(config)) as writer:
            yield writer


def read_config(path: Path) -> ModelConfig:
    tree = _read_versioned(path, FORMAT, "the config of a model directory")
    return from_tree(ModelConfig, tree, str(path))


def check_is_model_dir(path: Path) -> None:
    """Raises UserError with the right next step when ``path`` is something else."""
    if not path.exists():
        raise UserError(f"{path}: no such folder; expected a model directory")
    if not path.is_dir():
        hint = f"; `nano-ds import {path} -o DIR` makes one of it" if path.suffix in (".bin", ".gguf", ".pt") else ""
        raise UserError(f"{path}: is a file; expected a model directory{hint}")
    if (path / "config.yaml").exists() and (path / "checkpoints").is_dir():
        raise UserError(
            f"{path}: is a run, not a model directory; consolidate it first: "
            f"`nano-ds consolidate {path} -o {path / 'model'}`"
        )
    if (path / ADAPTER).exists():
        raise UserError(f"{path}: is an adapter; give it with --lora beside its base model")
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise UserError(f"{path}: no model directory, it lacks {' and '.join(missing)}")


def refuse_to_replace(path: Path, known: set[str], needed: set[str]) -> None:
    """Raises UserError unless ``path`` is free, an empty folder, or a folder of ``needed`` and only ``known`` files."""
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path}: a file of that name is in the way; choose another -o")
    held = {p.name for p in path.iterdir()}
    if held and not needed <= held <= known:
        other = sorted(held - known) or sorted(held)
        raise UserError(f"{path}: would be replaced, but holds {', '.join(other[:3])}; choose another -o or empty it")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What ``adapter.json`` holds."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base_fingerprint: str = ""  # ModelDir.fingerprint; empty where the adapter came without its base

    def problems(self) -> Iterator[str]:
        if self.rank < 1:
            yield f"rank: {self.rank} is out of range, it must be at least 1"
        if not self.alpha > 0:
            yield f"alpha: {self.alpha} is out of range, it must be above 0"
        if not self.targets:
            yield "targets: name at least one linear layer, such as wq"


class AdapterDir:
    """An open adapter directory: ``config``, and ``tensors`` ``<linear>.lora_a`` [r, in] and ``.lora_b`` [out, r]."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / ADAPTER).is_file():
            raise UserError(f"{path}: no adapter directory, it lacks {ADAPTER}")
        tree = _read_versioned(self.path / ADAPTER, ADAPTER_FORMAT, "the config of an adapter")
        self.config = from_tree(AdapterConfig, tree, str(self.path / ADAPTER))
        self.tensors = TensorFile(self.path / ADAPTER_WEIGHTS, "an adapter's weights")
        self._check()

    @property
    def linears(self) -> list[str]:
        """The names of the adapted layers, such as ``blocks.0.attn.wq``."""
        return [name.removesuffix(".lora_a") for name in self.tensors if name.endswith(".lora_a")]

    def check_base(self, base: ModelDir) -> None:
        """Raises UserError if the adapter does not fit the model, or was made for another."""
        self.check_shapes(expected_shapes(base.config), str(base.path))
        made_for = self.config.base_fingerprint
        if made_for and made_for != base.fingerprint:
            raise UserError(
                f"{self.path}: was trained on another base model ({made_for[:12]}) than {base.path} "
                f"({base.fingerprint[:12]}); its answers would be noise"
            )

    def check_shapes(self, base: Mapping[str, Shape], source: str) -> None:
        """``base`` gives the shape of every weight of the model that ``source`` names."""
        expected: dict[str, Shape] = {}
        for linear in self.linears:
            if len(base.get(f"{linear}.weight", ())) != 2:
                raise UserError(f"{self.path}: adapts {linear}, which {source} does not have")
            out, into = base[f"{linear}.weight"]
            expected |= adapter_shapes(linear, self.config.rank, out, into)
        self.tensors.check(expected, source)

    def _check(self) -> None:
        expected: dict[str, Shape] = {}
        for linear in self.linears:
            a, b = self.tensors.shapes[f"{linear}.lora_a"], self.tensors.shapes.get(f"{linear}.lora_b", ())
            expected |= adapter_shapes(linear, self.config.rank, b[0] if b else 0, a[-1] if a else 0)
            if linear.rpartition(".")[2] not in self.config.targets:
                raise UserError(f"{self.path}: adapts {linear}, which is none of the targets in {ADAPTER}")
        if not expected:
            raise UserError(f"{self.path / ADAPTER_WEIGHTS}: adapts nothing")
        self.tensors.check(expected, ADAPTER)


def adapter_shapes(linear: str, rank: int, out: int, into: int) -> dict[str, Shape]:
    return {f"{linear}.lora_a": (rank, into), f"{linear}.lora_b": (out, rank)}


def model_adapter_shapes(config: ModelConfig, rank: int, targets: Sequence[str]) -> dict[str, Shape]:
    """Names and shapes of adapters on all ``targets`` of a model, in the order of its weights."""
    found: dict[str, Shape] = {}
    for name, shape in expected_shapes(config).items():
        linear = name.removesuffix(".weight")
        if linear.rpartition(".")[2] in targets and len(shape) == 2:
            found |= adapter_shapes(linear, rank, *shape)
    return found


@contextmanager
def write_adapter_dir(
    path: str | Path, config: AdapterConfig, shapes: Mapping[str, Shape]
) -> Iterator[SafetensorsWriter]:
    """Writes an adapter directory atomically; the block writes the tensors of ``shapes`` in that order."""
    path = Path(path).resolve()
    refuse_to_replace(path, {ADAPTER, ADAPTER_WEIGHTS}, {ADAPTER, ADAPTER_WEIGHTS})
    with atomic_dir(path) as tmp:
        write_json(tmp / ADAPTER, {"format": ADAPTER_FORMAT, "version": VERSION, **to_tree(config)})
        with SafetensorsWriter(tmp / ADAPTER_WEIGHTS, shapes) as writer:
            yield writer


def _read_versioned(path: Path, format: str, what: str) -> dict[str, Any]:
    tree = read_json(path, what)
    if not isinstance(tree, dict) or tree.get("format") != format:
        raise UserError(f"{path}: expected {what} (format {format!r})")
    if tree.get("version") != VERSION:
        raise UserError(f"{path}: version {tree.get('version')!r}; this program reads {VERSION}, update nano_ds")
    return {k: v for k, v in tree.items() if k not in ("format", "version")}
