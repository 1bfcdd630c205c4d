"""LoRA adapters in GGUF, both ways: `blk.N.attn_q.weight.lora_a` [r, in] and `.lora_b` [out, r], alpha in a key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nano_ds.config import ModelConfig
from nano_ds.errors import UserError
from nano_ds.interop.gguf_file import GGUFFile, GGUFWriter, single
from nano_ds.interop.gguf_layout import INTERLEAVED, NANO, OURS, choose_architecture, gguf_name, turn_rows, turns_rows
from nano_ds.model_dir import (
    AdapterConfig,
    AdapterDir,
    ModelDir,
    Shape,
    adapter_shapes,
    expected_shapes,
    write_adapter_dir,
)

_NAME = re.compile(r"blk\.(0|[1-9]\d{0,4})\.([a-z_]+)\.weight\.(lora_[ab])")


@dataclass(frozen=True)
class GGUFAdapter:
    """An open adapter file, its tensors under our names (``blocks.0.attn.wq.lora_a``)."""

    file: GGUFFile
    architecture: str
    rank: int
    alpha: float
    names: dict[str, str]  # ours -> the file's

    @property
    def linears(self) -> list[str]:
        return [name.removesuffix(".lora_a") for name in self.names if name.endswith(".lora_a")]

    def check(self, base: Mapping[str, Shape], source: str) -> None:
        """Raises UserError where it does not fit the model ``source`` with weights of shapes ``base``."""
        for linear in self.linears:
            shape = base.get(f"{linear}.weight", ())
            if len(shape) != 2:
                raise UserError(f"{self.file.path}: adapts {linear}, which {source} does not have")
            for name, wanted in adapter_shapes(linear, self.rank, *shape).items():
                found = self.file.infos[self.names[name]].shape
                if found != wanted:
                    raise UserError(f"{self.file.path}: {name} is {list(found)}, {source} needs {list(wanted)}")

    def reader(self, base: ModelConfig) -> Callable[[str], np.ndarray]:
        """A function from our name to the matrix, its rows in the order of the base model in nano_ds."""
        stored = _stored_order(self.architecture, base)

        def read(name: str) -> np.ndarray:
            weights = self.file[self.names[name]]
            if base.use_rope and stored != base.rope_interleaved and turns_rows(name):
                return turn_rows(weights, base.head_width, base.rope_interleaved)
            return weights

        return read


def is_adapter(file: GGUFFile) -> bool:
    return bool(single(file.metadata, "general.type") == "adapter")


def read_adapter(path: str | Path) -> GGUFAdapter:
    """Raises UserError for anything but a LoRA whose layers all have one rank."""
    file = GGUFFile(path)
    m = file.metadata
    if not is_adapter(file):
        raise UserError(f"{path}: is a model, not an adapter")
    kind = single(m, "adapter.type")
    if kind != "lora":
        raise UserError(f"{path}: adapter.type is {kind!r}; nano_ds reads lora")
    architecture, alpha = single(m, "general.architecture"), single(m, "adapter.lora.alpha")
    if architecture not in (*INTERLEAVED, NANO):
        raise UserError(f"{path}: is for architecture {architecture!r}; nano_ds has {', '.join((*INTERLEAVED, NANO))}")
    if type(alpha) is not float or not 0 < alpha < 1e9:
        raise UserError(f"{path}: adapter.lora.alpha is {alpha!r}, it must be a positive number")
    names: dict[str, str] = {}
    ranks = set()
    for name, info in file.infos.items():
        found = _NAME.fullmatch(name)
        if not found or found[2] not in OURS or len(info.shape) != 2:
            raise UserError(f"{path}: tensor {name} {list(info.shape)} is no adapter of a layer that nano_ds has")
        names[f"blocks.{found[1]}.{OURS[found[2]]}.{found[3]}"] = name
        ranks.add(info.shape[0] if found[3] == "lora_a" else info.shape[1])
    for name in names:
        other = name[:-1] + ("b" if name.endswith("a") else "a")
        if other not in names:
            raise UserError(f"{path}: has {names[name]} without its other half")
    if len(ranks) != 1:
        raise UserError(f"{path}: has {'no layers' if not ranks else f'ranks {sorted(ranks)}'}; nano_ds wants one rank")
    return GGUFAdapter(file, architecture, ranks.pop(), alpha, names)


def import_adapter(path: str | Path, out: str | Path, base: ModelDir | None) -> GGUFAdapter:
    """Writes a GGUF adapter as an adapter directory.

    Raises:
        UserError: it does not fit ``base``, or cannot be put in order without it.
    """
    adapter = read_adapter(path)
    if base is None:
        if adapter.architecture == NANO or any(n.endswith(("attn.wq.lora_b", "attn.wk.lora_b")) for n in adapter.names):
            raise UserError(f"{path}: the order of its rows depends on the model; name it with --base MODEL_DIR")
        read: Callable[[str], np.ndarray] = lambda name: adapter.file[adapter.names[name]]  # noqa: E731
    else:
        adapter.check(expected_shapes(base.config), str(base.path))
        read = adapter.reader(base.config)
    linears = adapter.linears
    names = [f"{linear}.{part}" for linear in linears for part in ("lora_a", "lora_b")]
    config = AdapterConfig(
        rank=adapter.rank,
        alpha=adapter.alpha,
        targets=tuple(dict.fromkeys(n.rpartition(".")[2] for n in linears)),
        base_fingerprint=base.fingerprint if base is not None else "",
    )
    with write_adapter_dir(out, config, {n: adapter.file.infos[adapter.names[n]].shape for n in names}) as writer:
        for name in names:
            writer.write(name, read(name))
    return adapter


def write_adapter(path: str | Path, adapter: AdapterDir, base: ModelDir) -> str:
    """Writes an adapter of ``base`` for its GGUF; returns the architecture.

    Raises:
        UserError: the adapter belongs to another model.
    """
    adapter.check_base(base)
    config = base.config
    architecture, _ = choose_architecture(config)
    stored = _stored_order(architecture, config)
    metadata = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "general.name": Path(path).stem,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(adapter.config.alpha),
        "general.file_type": 0,
    }
    parts = [(f"{n}.{p}", f"{gguf_name(n + '.weight')}.{p}") for n in adapter.linears for p in ("lora_a", "lora_b")]
    with GGUFWriter(
        path, metadata, [(theirs, adapter.tensors.shapes[ours], "f32") for ours, theirs in parts]
    ) as writer:
        for ours, theirs in parts:
            weights = adapter.tensors[ours]
            if config.use_rope and stored != config.rope_interleaved and turns_rows(ours):
                weights = turn_rows(weights, config.head_width, stored)
            writer.write(theirs, weights)
    return architecture


def _stored_order(architecture: str, base: ModelConfig) -> bool:
    return INTERLEAVED.get(architecture, base.rope_interleaved)
