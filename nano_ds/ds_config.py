"""Reads a DeepSpeed JSON and joins it with the recipe. DeepSpeed ignores a misspelt top-level key; we do not."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from nano_ds.config import Config
from nano_ds.errors import UserError
from nano_ds.files import read_json

# Keys whose place is the recipe: one source of truth.
IN_RECIPE = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size and train.micro_batch_size",
    "gradient_clipping": "optim.grad_clip",
    "scheduler": "optim.schedule",
    "bf16": "train.dtype",
    "fp16": "train.dtype (bf16 or fp32)",
    "torch_autocast": "train.dtype",
    "tensorboard": "nothing: every run writes TensorBoard files",
}
# What nano_ds does by itself; told to DeepSpeed as well, the two would get into each other's way.
OURS = {
    "checkpoint": "has no use here: nano_ds writes checkpoints itself, on shared and separate disks, and converts them "
    "to another ZeRO stage or number of processes when it goes on from one; leave it out",
}
KNOWN = (
    "activation_checkpointing",
    "aio",
    "comms_logger",
    "communication_data_type",
    "data_types",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "memory_breakdown",
    "optimizer",
    "prescale_gradients",
    "steps_per_print",
    "timers",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization",
)


def read_ds_config(path: str) -> dict[str, Any]:
    """The JSON of ``ds_configs/``; raises UserError for a missing file, bad JSON, unknown or misplaced keys."""
    tree = read_json(path, "a DeepSpeed configuration such as ds_configs/zero1.json")
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a DeepSpeed configuration is a JSON object")
    problems = []
    for key in tree:
        if key in IN_RECIPE:
            problems.append(f"{key!r} belongs in the recipe: {IN_RECIPE[key]}")
        elif key in OURS:
            problems.append(f"{key!r} {OURS[key]}")
        elif key not in KNOWN:
            near = difflib.get_close_matches(key, KNOWN, 1, 0.5)
            problems.append(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    zero = tree.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else None
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        problems.append("zero_optimization.stage must be 0, 1, 2 or 3")
    objects = {key: tree.get(key, {}) for key in ("optimizer", "comms_logger")}
    if isinstance(zero, dict):
        objects |= {f"zero_optimization.{k}": v for k, v in zero.items() if k.startswith("offload_")}
    problems += [
        f"{key} must be an object, not {value!r}" for key, value in objects.items() if not isinstance(value, dict)
    ]
    optimizer = tree.get("optimizer")
    if isinstance(optimizer, dict) and str(optimizer.get("type", "")).lower() == "muon":
        # DeepSpeed clips Muon's update after it was orthogonalised, and wants every parameter marked beforehand.
        problems.append("optimizer.type: Muon is not supported yet; leave the block out for AdamW")
    if problems:
        raise UserError(f"{path}: " + "; ".join(problems))
    return tree


def zero_stage(tree: dict[str, Any]) -> int:
    stage: int = tree.get("zero_optimization", {}).get("stage", 0)
    return stage


def offloads_optimizer(tree: dict[str, Any]) -> bool:
    device = tree.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
    return bool(device != "none")


def offload_ops(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The compiled DeepSpeed ops that this configuration needs."""
    zero = tree.get("zero_optimization", {})
    devices = {zero.get(f"offload_{what}", {}).get("device", "none") for what in ("optimizer", "param")}
    cpu_adam = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    optimizer = tree.get("optimizer", {}).get("params", {})
    return ("cpu_adam",) * (cpu_adam and not optimizer.get("torch_adam", False)) + ("async_io",) * ("nvme" in devices)


def micro_batches(config: Config, world: int) -> tuple[int, int]:
    """Micro batch per device and accumulation steps for ``world`` devices; raises UserError when they cannot fit."""
    batch, micro = config.train.batch_size, config.train.micro_batch_size
    if batch % world:
        raise UserError(f"train.batch_size: {batch} sequences cannot be shared by {world} devices; use a multiple")
    micro = micro or batch // world
    if batch % (micro * world):
        raise UserError(
            f"train.batch_size: {batch} is no multiple of train.micro_batch_size {micro} x {world} devices; "
            f"use micro batches that divide {batch // world}"
        )
    return micro, batch // (micro * world)


def join(tree: dict[str, Any], config: Config, world: int, bf16: bool) -> dict[str, Any]:
    """The complete dictionary for ``deepspeed.initialize``."""
    micro, accumulation = micro_batches(config, world)
    stage = zero_stage(tree)
    if bf16 and stage == 0:
        raise UserError("train.dtype: bf16 at ZeRO stage 0 loses accuracy in DeepSpeed; use stage 1 or fp32")
    full = {
        "steps_per_print": 1 << 40,
        "timers": {"throughput": {"enabled": False}},
        **tree,
        "train_batch_size": config.train.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        # At stage 0 DeepSpeed clips without telling the norm, so the engine does both.
        "gradient_clipping": config.optim.grad_clip if stage else 0.0,
        "data_types": {"grad_accum_dtype": "fp32", **tree.get("data_types", {})},
    }
    if not full.get("comms_logger", {}).get("enabled"):
        full.pop("comms_logger", None)  # DeepSpeed takes the mere presence of the block for a yes
    if bf16:
        full["bf16"] = {"enabled": True, "check_grad_overflow": False}
    if offloads_optimizer(tree) and "optimizer" not in tree:
        o = config.optim
        params = {"lr": o.lr, "betas": [o.beta1, o.beta2], "eps": o.eps, "weight_decay": o.weight_decay}
        full["optimizer"] = {"type": "AdamW", "params": params}
    return full
