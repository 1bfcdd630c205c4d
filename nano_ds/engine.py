"""The only module that imports deepspeed: start-up, the optimiser step, evaluation, saving and loading."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nano_ds.collectives import World, gather
from nano_ds.config import Config, OptimConfig, RunConfig
from nano_ds.data import Batch
from nano_ds.ds_config import join, read_ds_config, zero_stage
from nano_ds.errors import RunFailure, UserError, brief
from nano_ds.guards import Guard, drifted, parameter_sums
from nano_ds.live_state import LiveState, count_again
from nano_ds.model import IGNORE
from nano_ds.nodes.environment import adopt_launcher
from nano_ds.nodes.launcher import DEFAULT_PORT
from nano_ds.nodes.network import choose_interface, free_port
from nano_ds.nodes.rendezvous import meet
from nano_ds.nodes.silence import limit_silence
from nano_ds.waiting import WAITING
from nano_ds.zero_files import SideWriter
from nano_ds.zero_shards import Layout, ZeroShards

# DeepSpeed calls what this PyTorch renames; nobody but DeepSpeed can change that.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")

TAG = "zero"  # folder of DeepSpeed's files inside a checkpoint


def start(
    run: RunConfig, timeout: timedelta = timedelta(minutes=10), rendezvous: timedelta = timedelta(minutes=2)
) -> World:
    """Joins the process group that the launcher's environment describes (one process when there is none).

    Args:
        run: names the backend.
        timeout: of every collective from then on.
        rendezvous: how long to wait for the other processes.

    Raises:
        UserError: the backend does not fit this machine, or the environment names no meeting place.
        RunFailure: the processes did not find each other; says who is missing.
    """
    adopt_launcher(os.environ)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port() if os.environ["WORLD_SIZE"] == "1" else DEFAULT_PORT)
    choose_interface(os.environ)
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
        meet(os.environ, backend, timeout, rendezvous, device)
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    limit_silence()
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
        names = {p: n for n, p in model.named_parameters()}
        self._order = [names[p] for g in groups for p in g["params"]]  # as the optimiser numbers them at stage 0
        self._bound = _layout_bound(tree)
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
        self._loss = torch.zeros((), dtype=torch.float64)
        self._skip: Tensor | None = None
        self.guard = Guard(config.train.guard_z, world.device)
        self._watch(self._base)
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

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by name; the rest is in no checkpoint."""
        return {n: p for n, p in self.ds.module.named_parameters() if p.requires_grad}

    @property
    def _has_frozen(self) -> bool:
        return any(not p.requires_grad for p in self.ds.module.parameters())

    @property
    def _base(self) -> Any:
        """The optimiser that DeepSpeed drives."""
        return self.ds.optimizer.optimizer if self.stage else self.ds.optimizer

    def _watch(self, base: Any) -> None:
        """Puts the guard before every step of the optimiser that DeepSpeed drives, the norm being known by then."""
        step = base.step
        # torch's fused kernels leave everything as it is when found_inf is 1, without asking the host.
        fused = isinstance(base, torch.optim.AdamW) and base.defaults["fused"]

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self._skip is None:  # once a step: ZeRO steps each group by itself
                norm = self.ds.optimizer._global_grad_norm if self.stage else self.grad_norm
                self._skip = self.guard.judge(self._loss, torch.as_tensor(norm, device=self.world.device))
            if fused:
                base.found_inf = self._skip
            elif self._skip.item():
                return None
            return step(*args, **kwargs)

        base.step = guarded

    def step(self, batches: Iterable[Batch], lr: float) -> Tensor:
        """One optimiser step over ``accumulation`` micro batches, unless the guard skips it.

        Nothing here waits for the device. ``grad_norm`` afterwards holds the global norm before clipping,
        ``guard.verdict()`` what became of the step.

        Returns:
            The mean loss of all targets that carry one, over all ranks: float64 scalar, on the device.
        """
        self.ds.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total: Tensor | None = None
        for i, batch in enumerate(batches, start=1):
            with sdpa_kernel(self.kernels):
                loss = self._forward(batch)
            if batch.weight != 1.0:
                loss = loss * batch.weight
            self.ds.backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
            if i == self.accumulation:
                self._skip, self._loss = None, self._mean(total / self.accumulation)
                if self.stage == 0:
                    limit = self.clip or float("inf")
                    self.grad_norm = nn.utils.clip_grad_norm_(self.ds.module.parameters(), limit)
            self.ds.step()
        assert total is not None and i == self.accumulation, "a step takes exactly `accumulation` micro batches"
        if self._skip is None:  # DeepSpeed found the gradient not finite and has left the step out by itself
            self.guard.judge(self._loss, torch.full_like(self._loss, float("inf")))
        if self.stage:
            norm = self.ds.get_global_grad_norm()
            self.grad_norm = 0.0 if norm is None else norm
        return self._loss

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Mean loss in nats per target over the batches of all ranks (equally many on each)."""
        self.ds.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.world.device)  # summed loss, targets
        for batch in batches:
            count = (batch.y != IGNORE).sum().to(self.world.device)
            total += torch.stack((self._forward(batch).double() * count, count.double()))
        if self.world.size > 1:
            dist.all_reduce(total)
        return (total[0] / total[1]).item()

    def _forward(self, batch: Batch) -> Tensor:
        """The mean loss of a micro batch."""
        device = self.world.device
        x, y = (t.to(device, non_blocking=True) for t in (batch.x, batch.y))
        if batch.documents is None:
            loss: Tensor = self.ds(x, y)
        else:
            loss = self.ds(x, y, documents=batch.documents.to(device))
        return loss

    def _mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all ranks, float64 on the device."""
        value = value.detach().double()
        if self.world.size > 1:
            with WAITING.inside():
                dist.all_reduce(value)
            value = value / self.world.size
        return value

    def check_drift(self, hosts: Sequence[str]) -> None:
        """Compares the parameters of all ranks, bit by bit; ``hosts`` names each rank's machine.

        At stage 3 every value is on one rank only, so there is nothing to compare.

        Raises:
            RunFailure: a rank holds other parameters than the rest.
        """
        if self.world.size == 1 or self.stage == 3:
            return
        parameters = dict(self.ds.module.named_parameters())
        every = gather(parameter_sums(parameters).tolist(), self.world)
        ranks, name = drifted(list(parameters), every)
        if ranks:
            who = " and ".join(f"rank {r} on {hosts[r]}" for r in ranks)
            raise RunFailure(
                f"{who} hold{'s' * (len(ranks) == 1)} other parameters than the rest ({name}): a memory or network "
                "fault, or ranks of different software; run it again, it goes on from the last checkpoint"
            )

    def comms_summary(self) -> None:
        """DeepSpeed's table of collectives on stderr, where the DeepSpeed JSON has a ``comms_logger`` block."""
        if self.logs_comms:
            import deepspeed

            with contextlib.redirect_stdout(sys.stderr):
                deepspeed.comm.log_summary(show_straggler=self.world.size > 1)

    def save(self, folder: Path) -> dict[str, tuple[int, str]]:
        """Writes DeepSpeed's files to ``folder``/zero; the caller commits them.

        Returns:
            Size and SHA-256 of each file that this process wrote, by its name inside ``folder``.

        Raises:
            OSError, RuntimeError: the disk is full, or another process of the run failed.
        """
        # The version tells DeepSpeed's own converter that the parameter shapes are recorded.
        client = {
            "universal_checkpoint_info": {"universal_checkpoint_version": 0.2},
            "parameter_names": self._order,
        }
        with SideWriter(folder) as writer:
            self.ds.checkpoint_engine.save = writer.save  # DeepSpeed's way to write one file
            frozen = {"exclude_frozen_parameters": True} if self._has_frozen else {}
            self.ds.save_checkpoint(str(folder), tag=TAG, client_state=client, save_latest=False, **frozen)
            return writer.written()

    @property
    def layout(self) -> Layout:
        """How this run divides its state."""
        return Layout(self.stage, self.world.size, self.bf16)

    @property
    def steps(self) -> int:
        """Steps that DeepSpeed counted, over the whole life of the run."""
        count: int = self.ds.global_steps
        return count

    def load(self, folder: Path, saved: Layout, steps: int) -> str:
        """Restores parameters and optimiser from ``folder``/zero, which may be of another layout.

        A fresh engine of the same layout loads through DeepSpeed. Another layout, or an engine that has trained already
        (which DeepSpeed cannot take back at stage 3), is read by parameter name and put in place. Either way every rank
        then compares what it holds with the files, bit for bit, and all agree.

        Args:
            saved: the layout that the checkpoint was written in.
            steps: what DeepSpeed's counter must be, from state.json.

        Returns:
            What was converted, for the user; empty when nothing was.

        Raises:
            UserError: this optimiser or this kind of offload cannot take over the state.
            RunFailure: a shard is damaged or of another kind, or DeepSpeed did not load what the files hold.
        """
        if self._bound:
            self._load_bound(folder, saved, steps)
            return ""
        problem: UserError | RunFailure | None = None
        try:
            shards = ZeroShards(folder / TAG, saved.stage, saved.world_size)
            live = LiveState(self.ds, self.stage, self.world)
            live.check_shapes(shards)
            same_adam = shards.optimizer_options == live.optimizer_options
            same = saved == self.layout and same_adam
            if not (same or live.is_adam):
                raise _other_layout(folder, type(live.optimizer).__name__)
            adam = shards.adam() if live.is_adam else None
        except (UserError, RunFailure) as e:
            problem = e
        self._agree(problem)
        if adam is None or (same and not self.steps):
            self._load_by_deepspeed(folder)
        else:
            live.fill(shards, adam)
            self.ds.global_steps = shards.steps
            self.ds.global_samples = shards.steps * self.ds.train_batch_size()
        try:
            digest = live.compare(shards, adam)
        except RunFailure as e:
            problem = e
        self._agree(problem)
        self._settle(folder, steps, digest)
        return "" if same else _difference(saved, self.layout, same_adam)

    def _load_bound(self, folder: Path, saved: Layout, steps: int) -> None:
        """State that lies where it cannot be read by name: only DeepSpeed knows, and only in the same layout."""
        if saved != self.layout:
            raise _other_layout(folder, self._bound)
        self._load_by_deepspeed(folder)
        self._settle(folder, steps, "")

    def _load_by_deepspeed(self, folder: Path) -> None:
        try:
            # Strict would miss what is frozen and in no checkpoint; all that is trained is compared afterwards.
            path, _ = self.ds.load_checkpoint(str(folder), tag=TAG, load_module_strict=not self._has_frozen)
        except (OSError, RuntimeError, AssertionError, AttributeError, KeyError) as e:
            raise RunFailure(f"{folder}: DeepSpeed cannot load it at ZeRO stage {self.stage}: {brief(e)}") from e
        if path is None:
            raise RunFailure(f"{folder}: DeepSpeed found no checkpoint in it")

    def _settle(self, folder: Path, steps: int, digest: str) -> None:
        """Ends a load; raises RunFailure unless all ranks are at this step with the same weights.

        DeepSpeed would only warn.
        """
        count_again(self._base)
        facts = gather((self.steps, digest), self.world)
        if any(step != steps for step, _ in facts):
            raise RunFailure(f"{folder}: is at step {max(step for step, _ in facts)}, its state.json says {steps}")
        if len(set(facts)) != 1:
            raise RunFailure(f"{folder}: the processes do not read the same weights there")

    def _agree(self, problem: UserError | RunFailure | None) -> None:
        """Raises on every rank what was found on one."""
        found = next((p for p in gather(problem, self.world) if p is not None), None)
        if found is not None:
            raise found


def _layout_bound(tree: dict[str, Any]) -> str:
    """The setting of a DeepSpeed configuration that keeps state where it cannot be put by name, or an empty string."""
    zero = tree.get("zero_optimization", {})
    offload = zero.get("offload_optimizer", {})
    if offload.get("device") == "nvme" or zero.get("offload_param", {}).get("device") == "nvme":
        return "offload to NVMe"
    if offload.get("ratio", 1.0) != 1.0 or offload.get("super_offload"):
        return "partial offload"
    if zero.get("mics_shard_size", -1) > 0:
        return "mics_shard_size"
    return "zenflow" if zero.get("zenflow") else ""


def _other_layout(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder}: {what} cannot take over a checkpoint of another layout; go on with the ZeRO stage, offload, number "
        "of processes, optimiser and train.dtype that it was saved with"
    )


def _difference(saved: Layout, now: Layout, same_adam: bool) -> str:
    """What changes between two layouts, in words."""
    numbers = {True: " in bf16", False: " in fp32"} if saved.bf16 != now.bf16 else {True: "", False: ""}
    adam = "" if same_adam else " with another implementation of Adam"
    return f"from {saved}{numbers[saved.bf16]} to {now}{numbers[now.bf16]}{adam}"


def load_for_inference(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model through ``deepspeed.init_inference``, as a plain module of ``dtype``."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    engine = deepspeed.init_inference(model, config={"dtype": dtype, "replace_with_kernel_inject": False})
    module: nn.Module = engine.module
    return module
