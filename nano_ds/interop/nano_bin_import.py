"""Nano `.bin` files into model and adapter directories."""

from __future__ import annotations

from pathlib import Path

from nano_ds.errors import UserError
from nano_ds.interop.nano_bin import NanoBin
from nano_ds.interop.nano_bin_layout import KINDS, LORA_TARGETS, Header
from nano_ds.model_dir import AdapterConfig, ModelDir, expected_shapes, new_meta, write_adapter_dir, write_model_dir


def describe(header: Header) -> str:
    """One phrase for meta and messages: ``Nano .bin 2026.1, type 0 Nano, q80 in groups of 128``."""
    quant = f"{header.quant} in groups of {header.group_size}" if header.quant == "q80" else header.quant
    version = ".".join(map(str, header.version))
    return f"Nano .bin {version}, type {header.kind} {KINDS[header.kind]}, {quant}"


def import_model(file: NanoBin, out: str | Path, licence: str = "") -> None:
    """Writes a model file as a model directory, dequantised where it was quantised."""
    if file.is_lora:
        raise UserError(f"{file.path}: is an adapter, not a model")
    meta = new_meta(source=f"{file.path.name} ({describe(file.header)})", licence=licence)
    with write_model_dir(out, file.config, file.vocabulary, meta) as writer:
        for name in writer.names:
            writer.write(name, file.tensor(name))
    assert set(file.names) == set(expected_shapes(file.config))


def import_adapter(file: NanoBin, out: str | Path, base: ModelDir | None = None) -> None:
    """Writes a LoRA file as an adapter directory; with ``base`` checked against it and bound to it."""
    if not file.is_lora:
        raise UserError(f"{file.path}: is a model, not an adapter")
    if base is not None:
        check_base_shape(file, base)
    config = AdapterConfig(
        rank=file.header.rank,
        alpha=file.header.alpha,
        targets=LORA_TARGETS,
        base_fingerprint=base.fingerprint if base is not None else "",
    )
    with write_adapter_dir(out, config, {name: file.shape(name) for name in file.names}) as writer:
        for name in writer.names:
            writer.write(name, file.tensor(name))


def check_base_shape(file: NanoBin, base: ModelDir) -> None:
    """Raises UserError naming every header word in which an adapter and its base differ."""
    c, h = base.config, file.header
    theirs = {
        "n_layer": c.n_layer,
        "n_embd": c.n_embd,
        "n_head": c.n_head,
        "n_kv_head": c.n_kv_head,
        "n_hidden": c.hidden,
        "head_dim": c.head_width,
    }
    wrong = [f"{k} {getattr(h, k)} (base: {v})" for k, v in theirs.items() if getattr(h, k) != v]
    if wrong:
        raise UserError(f"{file.path}: does not fit {base.path}: {', '.join(wrong)}")
