"""Reads a DeepSpeed checkpoint by parameter name: fp32 weights and Adam's state, one parameter at a time.

Works for every ZeRO stage and without importing DeepSpeed. Files are memory-mapped, so only the parameter that is asked
for is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nano_ds.errors import RunFailure, UserError
from nano_ds.zero_files import load_file, model_file, optimizer_file
from nano_ds.zero_layout import ByParameter, Cut, EndToEnd, Pieces, Shape, Undivided

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Layout:
    """How a run divides its state: what a checkpoint must be converted for when it changes."""

    stage: int
    world_size: int
    bf16: bool

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Layout:
        """That of a checkpoint, from its state.json."""
        return cls(int(state["zero_stage"]), int(state["world_size"]), bool(state["bf16"]))

    def __str__(self) -> str:
        return f"ZeRO {self.stage} x {self.world_size} process{'es' if self.world_size > 1 else ''}"


@dataclass(frozen=True)
class Adam:
    """The optimiser's state in a checkpoint."""

    step: int  # updates done, which the bias correction counts
    shapes: Mapping[str, Shape]
    cut: Cut
    pieces: Mapping[str, Pieces]  # by moment; empty before the first update

    def moment(self, key: str, name: str) -> Tensor:
        """One of MOMENTS of a parameter, float32, in the parameter's shape."""
        return self.cut.whole(self.pieces[key], name).view(self.shapes[name]).float()


class ZeroShards:
    """The contents of a DeepSpeed checkpoint folder, by parameter name."""

    def __init__(self, folder: Path, stage: int, world_size: int):
        """Raises RunFailure when a shard is missing or of another kind."""
        self.folder, self.stage, self.world_size = folder, stage, world_size
        facts = load_file(model_file(folder, stage))
        try:
            self.steps = int(facts["global_steps"])  # that DeepSpeed counted
            if stage:
                self._open_divided(facts["param_shapes"])
            else:
                self._open_whole(facts)
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            raise self._other_kind() from e
        problem = self.cut.problem(self._pieces)
        if problem:
            raise RunFailure(f"{folder}: {problem}")

    def _open_whole(self, facts: dict[str, Any]) -> None:
        module: dict[str, Tensor] = facts["module"]
        self.shapes: dict[str, Shape] = {n: tuple(t.shape) for n, t in module.items()}
        self.cut: Cut = Undivided(self.shapes)
        self._pieces: Pieces = [list(module.values())]
        self._optimizers: list[Any] = [facts.get("optimizer")]
        # Older checkpoints do not name the optimiser's tensors: matrices came first, as in engine.parameter_groups.
        by_group = sorted(self.shapes, key=lambda name: len(self.shapes[name]) < 2)
        self._order: list[str] = facts.get("parameter_names") or by_group

    def _open_divided(self, groups: list[dict[str, Any]]) -> None:
        states = [
            load_file(optimizer_file(self.folder, rank, self.world_size))["optimizer_state_dict"]
            for rank in range(self.world_size)
        ]
        shapes = [{n: tuple(shape) for n, shape in group.items()} for group in groups]
        self.shapes = {n: shape for group in shapes for n, shape in group.items()}
        if self.stage == 3:
            self.cut = ByParameter(self.shapes, self.world_size)
            self._pieces = [s["fp32_flat_groups"] for s in states]
            self._optimizers = [s["optimizer_state_dict"] for s in states]
        else:
            self.cut = EndToEnd(shapes, states[0].get("param_alignment_paddings"))
            self._pieces = [s["single_partition_of_fp32_groups"] for s in states]
            self._optimizers = [s["base_optimizer_state"] for s in states]

    def _other_kind(self) -> RunFailure:
        return RunFailure(f"{self.folder}: its shards are not those of ZeRO stage {self.stage}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __getitem__(self, name: str) -> Tensor:
        """The whole parameter, float32."""
        return self.cut.whole(self._pieces, name).view(self.shapes[name]).float()

    @property
    def optimizer_options(self) -> frozenset[str]:
        """Names of the optimiser's settings, which tell one implementation from another."""
        try:
            return option_names(self._optimizers[0]["param_groups"])
        except (KeyError, TypeError, AttributeError) as e:
            raise self._other_kind() from e

    def adam(self) -> Adam:
        """The optimiser's state.

        Raises:
            UserError: it is not Adam's.
            RunFailure: the shards disagree about it, or it is not whole.
        """
        try:
            states = [[o["state"][i] for i in sorted(o["state"])] for o in self._optimizers]
            kinds = {frozenset(s) for part in states for s in part}
            if not kinds:
                return Adam(0, self.shapes, self.cut, {})
            if kinds != {frozenset(("step", *MOMENTS))}:
                found = ", ".join(sorted({str(k) for kind in kinds for k in kind}))
                raise UserError(
                    f"{self.folder}: its optimiser keeps {found}; only Adam's state (step, {', '.join(MOMENTS)}) goes "
                    f"on at another ZeRO stage, world size or precision; use ZeRO {self.stage} x {self.world_size}"
                )
            steps = {int(s["step"]) for part in states for s in part}
            if len(steps) != 1:
                raise RunFailure(f"{self.folder}: its shards disagree about the optimiser's step: {sorted(steps)}")
            pieces: dict[str, Pieces] = {key: [[s[key] for s in part] for part in states] for key in MOMENTS}
        except (KeyError, TypeError, AttributeError) as e:
            raise self._other_kind() from e
        if self.stage == 0:
            pieces = {key: self._by_parameter(p) for key, p in pieces.items()}
        for key, found_pieces in pieces.items():
            problem = self.cut.problem(found_pieces)
            if problem:
                raise RunFailure(f"{self.folder}: {key}: {problem}")
        return Adam(steps.pop(), self.shapes, self.cut, pieces)

    def _by_parameter(self, pieces: Pieces) -> Pieces:
        """Stage 0 numbers the optimiser's tensors in the order of its groups; puts them in the order of the module."""
        if sorted(self._order) != sorted(self.shapes) or len(pieces[0]) != len(self._order):
            raise RunFailure(f"{self.folder}: its optimiser's tensors are not those of its parameters")
        at = {name: i for i, name in enumerate(self._order)}
        return [[pieces[0][at[name]] for name in self.shapes]]


def option_names(groups: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The settings of an optimiser's parameter groups, without what is no setting."""
    return frozenset(key for group in groups for key in group) - {"params", "step"}
