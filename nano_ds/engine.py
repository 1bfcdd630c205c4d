"""The only module that imports deepspeed: start-up, the optimiser step, evaluation, saving and loading."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nano_ds.collectives import World
from nano_ds.config import Config, OptimConfig, RunConfig
from nano_ds.data import Batch
from nano_ds.ds_config import join, read_ds_config, zero_stage
from nano_ds.errors import RunFailure, UserError
from nano_ds.model import IGNORE
from nano_ds.nodes.launcher import free_port
from nano_ds.waiting import WAITING

TAG = "zero"  # folder of DeepSpeed's files inside a checkpoint


def start(run: RunConfig, timeout: timedelta = timedelta(minutes=10)) -> World:
    """Joins the process group that the launcher's environment describes (one process when there is none)."""
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # Shared-memory collectives on CPU would be compiled for a minute at every first start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
    backend = run.backend if run.backend != "auto" else "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and device.type != "cuda":
        raise UserError("run.backend: nccl needs a GPU; use auto or gloo")
    with _quiet("torch.distributed.distributed_c10d"):
        try:
            deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
        except dist.DistError as e:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise RunFailure(f"the processes cannot meet at {where}, name another MASTER_PORT: {e}") from e
    return World(dist.get_rank(), local_rank, dist.get_world_size(), device)


@contextlib.contextmanager
def _quiet(name: str) -> Any:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def finish() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wants_bf16(dtype: str, device: torch.device) -> bool:
    """bf16 when asked for, or with ``auto`` on a GPU that has it."""
    return dtype == "bf16" or (dtype == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())


def attention_kernels(name: str, device: torch.device) -> list[SDPBackend]:
    """What ``scaled_dot_product_attention`` may use; raises UserError for a kernel that the device does not have."""
    every = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    if name == "auto":
        return list(every.values())
    if device.type == "cpu" and name in ("efficient", "cudnn"):
        raise UserError(f"train.sdp_kernel: {name} needs a GPU; on a CPU use auto, flash or math")
    return [every[name]]


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Matrices with weight decay, norms and biases without."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


class Engine:
    """A model under DeepSpeed. Every rank calls every method."""

    def __init__(self, model: nn.Module, config: Config, world: World):
        import deepspeed

        tree = read_ds_config(config.run.deepspeed_config)
        self.world = world
        self.stage = zero_stage(tree)
        self.bf16 = wants_bf16(config.train.dtype, world.device)
        self.clip = config.optim.grad_clip
        full = join(tree, config, world.size, self.bf16)
        self.accumulation: int = full["gradient_accumulation_steps"]
        self.micro_batch_size: int = full["train_micro_batch_size_per_gpu"]
        groups = parameter_groups(model, config.optim)
        optimizer = None
        if "optimizer" not in full:
            o = config.optim
            # fused: one kernel per step, on the CPU too; DeepSpeed's own needs a compiler on the machine.
            optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=True)
        model.to(world.device)
        try:
            self.ds, self.optimizer, _, _ = deepspeed.initialize(
                model=model, optimizer=optimizer, model_parameters=groups, config=full, dist_init_required=False
            )
        except (ValueError, AssertionError, AttributeError, TypeError) as e:
            why = " ".join(str(e).split())[:300]
            raise UserError(f"{config.run.deepspeed_config}: DeepSpeed refuses this configuration: {why}") from e
        self.grad_norm: float | Tensor = 0.0
        if world.size > 1:
            WAITING.attach(deepspeed.comm.comm.cdb)
        self.logs_comms = "comms_logger" in full
        self.kernels = attention_kernels(config.train.sdp_kernel, world.device)
        if config.train.compile:
            self.ds.compile()

    @property
    def model(self) -> Any:
        """The Transformer itself (at stage 3 its parameters are whole only inside forward)."""
        return self.ds.module

    def step(self, batches: Iterable[Batch], lr: float) -> Tensor:
        """One optimiser step over ``accumulation`` micro batches; returns this rank's mean loss (scalar, on device).

        Nothing here waits for the device. ``grad_norm`` afterwards holds the global norm before clipping.
        """
        self.ds.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total: Tensor | None = None
        for i, (x, y) in enumerate(batches, start=1):
            x, y = x.to(self.world.device, non_blocking=True), y.to(self.world.device, non_blocking=True)
            with sdpa_kernel(self.kernels):
                loss = self.ds(x, y)
            self.ds.backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
            if self.stage == 0 and i == self.accumulation:
                limit = self.clip or float("inf")
                self.grad_norm = nn.utils.clip_grad_norm_(self.ds.module.parameters(), limit)
            self.ds.step()
        assert total is not None and i == self.accumulation, "a step takes exactly `accumulation` micro batches"
        if self.stage:
            norm = self.ds.get_global_grad_norm()
            self.grad_norm = 0.0 if norm is None else norm
        return total / self.accumulation

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Mean loss in nats per target over the batches of all ranks (equally many on each)."""
        self.ds.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.world.device)  # summed loss, targets
        for x, y in batches:
            x, y = x.to(self.world.device), y.to(self.world.device)
            count = (y != IGNORE).sum()
            total += torch.stack((self.ds(x, y).double() * count, count.double()))
        if self.world.size > 1:
            dist.all_reduce(total)
        return (total[0] / total[1]).item()

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over all ranks."""
        value = value.detach().double()
        if self.world.size > 1:
            dist.all_reduce(value)
            value = value / self.world.size
        return value.item()

    def comms_summary(self) -> None:
        """DeepSpeed's table of collectives on stderr, where the DeepSpeed JSON has a ``comms_logger`` block."""
        if self.logs_comms:
            import deepspeed

            with contextlib.redirect_stdout(sys.stderr):
                deepspeed.comm.log_summary(show_straggler=self.world.size > 1)

    def save(self, folder: Path) -> None:
        """Writes DeepSpeed's files to ``folder``/zero; the caller commits them.

        Raises:
            OSError, RuntimeError: the disk is full, or another process of the run failed.
        """
        # The version tells DeepSpeed's own converter that the parameter shapes are recorded.
        client = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        self.ds.save_checkpoint(str(folder), tag=TAG, client_state=client, save_latest=False)

    def load(self, folder: Path) -> None:
        """Restores parameters and optimiser from ``folder``/zero.

        Raises:
            RunFailure: DeepSpeed found nothing to load, which it only warns about, or could not read it.
        """
        try:
            path, _ = self.ds.load_checkpoint(str(folder), tag=TAG)
        except (OSError, RuntimeError, AssertionError, AttributeError, KeyError) as e:
            raise RunFailure(f"{folder}: DeepSpeed cannot load it at ZeRO stage {self.stage}: {e}") from e
        if path is None:
            raise RunFailure(f"{folder}: DeepSpeed found no checkpoint in it")


def load_for_inference(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model through ``deepspeed.init_inference``, as a plain module of ``dtype``."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    engine = deepspeed.init_inference(model, config={"dtype": dtype, "replace_with_kernel_inject": False})
    module: nn.Module = engine.module
    return module
