"""Puts a checkpoint's parameters and optimiser state into a live DeepSpeed engine of any ZeRO stage, and checks them.

The engine must be DeepSpeed's of ``nano_ds.engine``; DeepSpeed itself is not imported. What a rank owns of a parameter
is always a range of one flat fp32 tensor, the master, which the optimiser steps; stages differ in where it lies. One
parameter at a time is copied, so memory stays near the largest of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nano_ds.collectives import World
from nano_ds.errors import RunFailure
from nano_ds.zero_shards import MOMENTS, Adam, ZeroShards, option_names


@dataclass(frozen=True)
class Part:
    """What this rank owns of one parameter: values ``start`` to ``start + count`` of it, flattened."""

    master: Tensor  # the optimiser's own tensor; its state is kept under it
    offset: int  # of the part in the master
    start: int
    count: int

    def of(self, flat: Tensor) -> Tensor:
        """The part in the master, or in a moment of the same size."""
        return flat.detach().view(-1)[self.offset : self.offset + self.count]

    def cut(self, whole: Tensor) -> Tensor:
        """The same part out of the whole parameter."""
        return whole.flatten()[self.start : self.start + self.count]


class LiveState:
    """Parameters and optimiser state of a running engine, by parameter name."""

    def __init__(self, ds: Any, stage: int, world: World):
        self.ds, self.stage, self.world = ds, stage, world
        self.zero: Any = ds.optimizer if stage else None
        self.optimizer: Any = ds.optimizer.optimizer if stage else ds.optimizer
        # Adapters are trained without the weights that they adapt, which are in no checkpoint.
        self.parameters: dict[str, Any] = {n: p for n, p in ds.module.named_parameters() if p.requires_grad}

    @property
    def is_adam(self) -> bool:
        return _is_torch_adam(self.optimizer) or type(self.optimizer).__name__ in ("DeepSpeedCPUAdam", "FusedAdam")

    @property
    def optimizer_options(self) -> frozenset[str]:
        """Names of the optimiser's settings, which tell one implementation from another."""
        return option_names(self.optimizer.param_groups)

    @property
    def masters(self) -> list[Tensor]:
        """The tensors that the optimiser steps."""
        z = self.zero
        if z is None:
            return [p for p in self.parameters.values() if p.requires_grad]
        if self.stage == 3:
            found: list[Tensor] = z.fp32_partitioned_groups_flat
        elif hasattr(z, "single_partition_of_fp32_groups"):
            found = z.single_partition_of_fp32_groups
        else:
            found = z.fp32_groups_flat_partition  # of bf16 at stage 1
        return found

    def part(self, name: str) -> Part | None:
        """What this rank owns of a parameter; None when it owns nothing of it."""
        p = self.parameters[name]
        if self.stage == 0:
            return Part(p, 0, 0, p.numel())
        masters = self.masters
        if self.stage == 3:
            group, offset, size = self.zero.grad_position[self.zero.get_param_id(p)]
            start = size * self.world.rank
            count = min(size, p.ds_numel - start)  # the last part is padded
            return Part(masters[group], offset, start, count) if count > 0 else None
        m = p._hp_mapping
        if m is None:
            return None
        at = m.hp_fragment_address
        return Part(masters[m.param_group_index], at.start, m.lp_fragment_address.start, at.numel)

    def check_shapes(self, shards: ZeroShards) -> None:
        """Raises RunFailure unless the checkpoint holds exactly the engine's parameters."""
        here = {n: tuple(getattr(p, "ds_shape", p.shape)) for n, p in self.parameters.items()}
        wrong = [n for n in here.keys() | shards.shapes.keys() if here.get(n) != shards.shapes.get(n)]
        if wrong:
            raise RunFailure(f"{shards.folder}: its parameters are not the model's: {', '.join(sorted(wrong)[:5])}")

    @torch.no_grad()
    def fill(self, shards: ZeroShards, adam: Adam) -> None:
        """Takes over weights, moments and step count; every rank calls it, since low-precision copies are gathered."""
        self._make_state(adam)
        if self.stage == 3:
            self.zero.checkpoint_event_prologue()  # no parameter is whole while its parts change
        for name in shards:
            part = self.part(name)
            if part is None:
                continue
            part.of(part.master).copy_(part.cut(shards[name]))
            for key in adam.pieces:
                part.of(self.optimizer.state[part.master][key]).copy_(part.cut(adam.moment(key, name)))
        if self.stage == 3:
            for i in range(len(self.masters)):
                self.zero._reassign_or_swap_out_partitioned_parameters(i)
            self.zero.checkpoint_event_epilogue()
        elif self.zero is not None:
            self.zero.update_lp_params()

    def _make_state(self, adam: Adam) -> None:
        """Adam's state as its first step would make it, but at the checkpoint's step."""
        by_tensor = _is_torch_adam(self.optimizer)  # DeepSpeed's count with a number
        group_of = {id(p): g for g in self.optimizer.param_groups for p in g["params"]}
        for master in self.masters:
            state = self.optimizer.state[master]
            state.clear()
            if not adam.pieces:
                continue
            step: Any = adam.step
            if by_tensor:
                # At stage 3 groups hold their masters only while they step; all groups have the same settings.
                group = group_of.get(id(master), self.optimizer.param_groups[0])
                on_device = group["fused"] or group["capturable"]
                step = torch.tensor(float(step), device=master.device if on_device else "cpu")
            state["step"] = step
            for key in MOMENTS:
                state[key] = torch.zeros_like(master.detach())
        for group in self.optimizer.param_groups:
            if "step" in group:
                group["step"] = adam.step

    @torch.no_grad()
    def compare(self, shards: ZeroShards, adam: Adam | None) -> str:
        """A digest of the checkpoint's weights, after this rank's live state was found to be equal to it, bit for bit.

        Args:
            adam: None leaves the optimiser's state out.

        Raises:
            RunFailure: weights, moments or step differ.
        """
        seen = hashlib.sha256()
        for name, p in self.parameters.items():
            whole = shards[name]
            seen.update(whole.contiguous().view(torch.uint8).numpy().data)
            part = self.part(name)
            copies: list[tuple[Tensor, Tensor]] = []
            if part is not None:
                copies.append((part.of(part.master), part.cut(whole)))
                if adam is not None and adam.pieces:
                    state = self.optimizer.state[part.master]
                    copies += [(part.of(state[k]), part.cut(adam.moment(k, name))) for k in MOMENTS]
                    if int(state["step"]) != adam.step:
                        raise _differs(shards, f"the optimiser is at step {int(state['step'])} instead of {adam.step}")
                if self.stage == 3:
                    copies.append((p.ds_tensor.detach().flatten()[: part.count], part.cut(whole)))
            if p.numel() == whole.numel():  # at stage 3 only small parameters are whole now
                copies.append((p.detach().flatten(), whole.flatten()))
            for live, wanted in copies:
                if not torch.equal(live.cpu(), wanted.to(live.dtype)):
                    raise _differs(shards, f"{name} differs")
        return seen.hexdigest()


def _differs(shards: ZeroShards, why: str) -> RunFailure:
    return RunFailure(f"{shards.folder}: what was loaded is not what it holds: {why}")


def count_again(optimizer: Any) -> None:
    """Brings the bias correction of DeepSpeed's Adam for the CPU to where it was when the state was saved.

    Its C++ side multiplies it up step by step, and takes a power instead when the steps do not follow one another, as
    after loading: the last bits differ then. So it counts from 1 again, over a weight that nobody has.
    """
    if type(optimizer).__name__ != "DeepSpeedCPUAdam":
        return
    steps = max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)
    beta1, beta2 = optimizer.param_groups[0]["betas"]
    nobody = [torch.zeros(1) for _ in range(4)]  # weight, gradient, moments
    for step in range(1, steps + 1):
        optimizer.ds_opt_adam.adam_update(optimizer.opt_id, step, 0.0, beta1, beta2, 1.0, 0.0, True, *nobody)


def _is_torch_adam(optimizer: Any) -> bool:
    return isinstance(optimizer, torch.optim.Adam)  # AdamW is one
