"""Reads parameters out of DeepSpeed's checkpoint files, one at a time, without importing DeepSpeed.

Stage 0 keeps the whole module in one file. Stages 1 and 2 lay the fp32 parameters of a group end to end, pad, and cut
the row into one piece per rank. Stage 3 cuts every parameter into one piece per rank and lays a rank's pieces end to
end. Files are memory-mapped, so only the parameter that is asked for is copied.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nano_ds.errors import RunFailure


class _Inert:
    """Stands in for DeepSpeed's bookkeeping objects: holds what it is given, does nothing."""

    def __init__(self, *args: Any):
        self.args = args


# Everything beyond tensors and plain containers that the restricted unpickler may build.
_INERT: list[Any] = [
    (_Inert, name)
    for name in (
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    )
]


def _load(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_INERT):
            tree: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return tree
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as e:
        raise RunFailure(f"{path}: cannot read this shard: {str(e).splitlines()[0]}") from None


class ZeroShards:
    """The fp32 parameters of a DeepSpeed checkpoint folder, by name."""

    def __init__(self, folder: Path, stage: int, world_size: int):
        """Raises RunFailure when a shard is missing or of another kind."""
        self.folder, self.stage, self.world_size = folder, stage, world_size
        if stage == 0:
            self._module = _load(folder / "mp_rank_00_model_states.pt")["module"]
            self.shapes = {n: tuple(t.shape) for n, t in self._module.items()}
            return
        prefix = "zero_pp_rank_0_" if stage == 3 else ""
        groups = _load(folder / f"{prefix}mp_rank_00_model_states.pt")["param_shapes"]
        states = [self._state(rank) for rank in range(world_size)]
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        if any(key not in s for s in states):
            raise RunFailure(f"{folder}: its shards are not those of ZeRO stage {stage}")
        self._pieces: list[list[Tensor]] = [s[key] for s in states]  # [rank][group]
        self.shapes = {n: tuple(shape) for group in groups for n, shape in group.items()}
        if stage == 3:
            self._place_by_parameter()
        else:
            self._place_end_to_end(groups, states[0].get("param_alignment_paddings"))

    def _state(self, rank: int) -> dict[str, Any]:
        path = self.folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        if not path.is_file():
            # bf16 without ZeRO's own optimizer has another prefix.
            path = self.folder / f"bf16_{path.name}"
        if not path.is_file():
            raise RunFailure(f"{path}: this shard is missing; {self.world_size} processes wrote one each")
        state: dict[str, Any] = _load(path)["optimizer_state_dict"]
        return state

    def _place_end_to_end(self, groups: list[dict[str, Any]], paddings: list[list[int]] | None) -> None:
        self._place: dict[str, tuple[int, int]] = {}  # name -> group, offset
        for g, group in enumerate(groups):
            offset = 0
            for i, (name, shape) in enumerate(group.items()):
                self._place[name] = (g, offset)
                offset += math.prod(shape) + (paddings[g][i] if paddings else 0)
            held = sum(p[g].numel() for p in self._pieces)
            if held < offset:
                raise RunFailure(f"{self.folder}: its shards hold {held} values of group {g}, {offset} are needed")

    def _place_by_parameter(self) -> None:
        self._place = {}
        offset = 0
        for name, shape in self.shapes.items():
            self._place[name] = (0, offset)
            offset += -(-math.prod(shape) // self.world_size)
        held = {sum(t.numel() for t in piece) for piece in self._pieces}
        if held != {offset}:
            raise RunFailure(f"{self.folder}: its shards hold {sorted(held)} values each, {offset} are needed")

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __getitem__(self, name: str) -> Tensor:
        """The whole parameter, float32."""
        shape = self.shapes[name]
        if self.stage == 0:
            whole: Tensor = self._module[name]
            return whole.float()
        size = math.prod(shape)
        group, offset = self._place[name]
        if self.stage == 3:
            part = -(-size // self.world_size)
            parts = [_span(piece, offset, part) for piece in self._pieces]
        else:
            parts = [_span([piece[group] for piece in self._pieces], offset, size)]
        return torch.cat(parts)[:size].view(shape).float()


def _span(row: list[Tensor], start: int, size: int) -> Tensor:
    """``size`` values from ``start`` of tensors laid end to end."""
    found = []
    for tensor in row:
        n = tensor.numel()
        if start < n and size > 0:
            piece = tensor[start : start + size]
            found.append(piece)
            size -= piece.numel()
            start = 0
        else:
            start -= min(start, n)
    return found[0] if len(found) == 1 else torch.cat(found)
