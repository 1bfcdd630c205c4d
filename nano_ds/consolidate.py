"""ZeRO shards into a model directory, a parameter at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nano_ds import checkpoint
from nano_ds.collect import collected
from nano_ds.config import LoraConfig, ModelConfig, from_tree
from nano_ds.engine import TAG
from nano_ds.errors import UserError
from nano_ds.model_dir import (
    AdapterConfig,
    expected_shapes,
    model_adapter_shapes,
    new_meta,
    write_adapter_dir,
    write_model_dir,
)
from nano_ds.zero_shards import ZeroShards


def open_shards(found: checkpoint.Checkpoint) -> tuple[ModelConfig, ZeroShards]:
    """The config and the trained parameters of a committed checkpoint.

    Raises:
        UserError: the shards do not hold what the config asks for.
    """
    config = from_tree(ModelConfig, found.state["config"]["model"], str(found.path))
    shards = ZeroShards(found.path / TAG, found.state["zero_stage"], found.state["world_size"])
    wanted, adapter = expected_shapes(config), adapter_of(found)
    if adapter is not None:
        wanted = model_adapter_shapes(config, adapter.rank, adapter.targets)
    wrong = [n for n in wanted.keys() | shards.shapes.keys() if wanted.get(n) != shards.shapes.get(n)]
    if wrong:
        raise UserError(f"{found.path}: its shards do not fit its config.yaml: {', '.join(sorted(wrong)[:5])}")
    return config, shards


def adapter_of(found: checkpoint.Checkpoint) -> AdapterConfig | None:
    """What kind of adapter a checkpoint holds; None when it holds a whole model."""
    lora = from_tree(LoraConfig, found.state["config"].get("lora", {}), str(found.path))
    if not lora.rank:
        return None
    base = str(found.state["base"])
    return AdapterConfig(rank=lora.rank, alpha=lora.alpha, targets=lora.targets, base_fingerprint=base)


def consolidate(where: Path, out: Path, hosts: Sequence[str] = ()) -> Mapping[str, Any]:
    """Writes the model directory ``out``, or of a LoRA run the adapter directory, from a run or checkpoint.

    Returns its meta data; of an adapter with its ``base`` model and its ``targets``.

    With ``hosts``, files that this machine lacks come from them over ssh.

    Raises:
        UserError: ``where`` holds no usable checkpoint, or ``out`` is in the way.
    """
    if hosts:
        with collected(where, hosts, out) as found:
            return _merge(found, out)
    return _merge(checkpoint.find(where), out)


def _merge(found: checkpoint.Checkpoint, out: Path) -> Mapping[str, Any]:
    config, shards = open_shards(found)
    state = found.state
    meta = new_meta(
        step=state["step"],
        tokens=state["tokens"],
        data=state["data"],
        source=found.path.name,
        val_loss=state["progress"]["val_loss"],
        git=state["git"],
        zero_stage=state["zero_stage"],
        world_size=state["world_size"],
    )
    adapter = adapter_of(found)
    if adapter is not None:
        shapes = model_adapter_shapes(config, adapter.rank, adapter.targets)
        with write_adapter_dir(out, adapter, shapes) as writer:
            for name in shapes:
                writer.write(name, shards[name])
        return {**meta, "base": state["config"]["train"]["init_from"], "targets": adapter.targets}
    with write_model_dir(out, config, found.path / "tokenizer.json", meta) as writer:
        for name in tqdm(writer.names, "consolidate", unit=" tensors", leave=False, disable=None):
            writer.write(name, shards[name])
    return meta
