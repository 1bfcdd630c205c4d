"""A run goes on at another ZeRO stage, world size, offload or precision as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SUMMARY
from forked_ranks import ForkedRanks
from test_training import recipe, rows

from nano_ds import checkpoint
from nano_ds.config import ModelConfig, from_tree
from nano_ds.consolidate import consolidate
from nano_ds.data import BlockStream
from nano_ds.errors import RunFailure, UserError
from nano_ds.model import Transformer
from nano_ds.model_dir import ModelDir
from nano_ds.shards import TokenSet
from nano_ds.zero_shards import MOMENTS, ZeroShards

STEPS, SAVED = 10, 5
STAGES, WORLDS = (0, 1, 2, 3), (1, 2, 4)
FULL = pytest.mark.full


@dataclass(frozen=True)
class Kind:
    """A way to run: a file of ds_configs/ without its ending, processes, number format."""

    config: str
    world: int
    dtype: str = "fp32"

    @classmethod
    def zero(cls, stage: int, world: int, dtype: str = "fp32") -> Kind:
        return cls(f"zero{stage}", world, dtype)

    @property
    def stage(self) -> int:
        return int(self.config[4])

    def __str__(self) -> str:
        return f"{self.config.removeprefix('zero')}x{self.world}" + ("" if self.dtype == "fp32" else f" {self.dtype}")


class Bench:
    """Runs of one recipe: saved halfway once for each kind, gone on from with any other."""

    def __init__(self, forked: ForkedRanks, data: Path, folder: Path):
        self.forked, self.data, self.folder = forked, data, folder
        self.saved: dict[tuple[Kind, tuple[str, ...]], Path] = {}

    def train(
        self, kind: Kind, folder: Path, *more: str, save: Path | None = None, back: Path | None = None
    ) -> tuple[int, str]:
        keys = {"max_steps": STEPS, "checkpoint_every": SAVED, "eval_every": 0, "micro_batch_size": 2}
        path = recipe(folder, self.data, **keys, dtype=kind.dtype)
        args = ["-c", str(path), "--deepspeed_config", f"ds_configs/{kind.config}.json", *more]
        return self.forked.train(args, kind.world, save, back)

    def run(self, kind: Kind, *more: str) -> Path:
        """The folder of an uninterrupted run."""
        at = (kind, more)
        if at not in self.saved:
            folder = self.folder / f"{len(self.saved):03}"
            code, text = self.train(kind, folder, *more)
            assert code == 0, text
            self.saved[at] = folder / "run"
        return self.saved[at]

    def losses(self, kind: Kind, *more: str) -> dict[int, float]:
        return rows(self.run(kind, *more), "loss")

    def interrupted(self, kind: Kind, folder: Path, *more: str) -> Path:
        """A copy of the run as an interruption after step ``SAVED`` left it."""
        shutil.copytree(self.run(kind, *more), folder / "run")
        shutil.rmtree(folder / "run" / "checkpoints" / f"step-{STEPS:08}")
        return folder / "run"

    def go_on(self, before: Kind, now: Kind, folder: Path, *more: str) -> tuple[dict[int, float], str]:
        """Losses after the interruption, and what was said. The state is checked bit for bit on the way."""
        shutil.rmtree(folder, ignore_errors=True)
        run = self.interrupted(before, folder, *more)
        code, text = self.train(now, folder, *more, save=folder / "held")
        assert code == 0, text
        assert f"goes on from step {SAVED}" in text
        old = ZeroShards(run / "checkpoints" / f"step-{SAVED:08}" / "zero", before.stage, before.world)
        assert_same_state(old, ZeroShards(folder / "held" / "zero", now.stage, now.world))
        return {step: loss for step, loss in rows(run, "loss").items() if step > SAVED}, text


def assert_same_state(a: ZeroShards, b: ZeroShards) -> None:
    assert a.shapes.keys() == b.shapes.keys() and len(a.shapes) > 10
    assert a.steps == b.steps == SAVED
    one, two = a.adam(), b.adam()
    assert one.step == two.step == SAVED
    for name in a:
        assert torch.equal(a[name], b[name]), name
        for key in MOMENTS:
            assert torch.equal(one.moment(key, name), two.moment(key, name)), (key, name)
            assert one.moment(key, name).any()


def apart(a: dict[int, float], b: dict[int, float]) -> float:
    """The largest difference between two runs' losses, over the steps after the interruption."""
    steps = range(SAVED + 1, STEPS + 1)
    return max(abs(a[s] - b[s]) for s in steps)


@pytest.fixture(scope="module")
def bench(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ForkedRanks() as forked:
        yield Bench(forked, small_set, tmp_path_factory.mktemp("resume"))


PLAIN = Kind("zero0", 1)  # what all are compared with, never interrupted


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (Kind.zero(1, 2), Kind.zero(3, 1)),
        (Kind.zero(3, 2), Kind.zero(0, 1)),
        (Kind.zero(0, 1), Kind.zero(2, 2)),
        (Kind.zero(2, 2), Kind.zero(1, 4)),
    ],
    ids=lambda kind: str(kind),
)
def test_another_stage_and_world_size_go_on_with_the_same_losses(
    before: Kind, now: Kind, bench: Bench, tmp_path: Path
) -> None:
    losses, text = bench.go_on(before, now, tmp_path)
    assert apart(losses, bench.losses(PLAIN)) <= 1e-5
    words = {1: "1 process", 2: "2 processes", 4: "4 processes"}
    line = f"converts from ZeRO {before.stage} x {words[before.world]} to ZeRO {now.stage} x {words[now.world]}"
    assert text.count("converts ") == 1 and line in text


@FULL
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("stage", STAGES)
def test_the_resume_matrix(
    stage: int, world: int, bench: Bench, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """One row: a checkpoint of this stage and world size goes on at all others."""
    before, cells, failed = Kind.zero(stage, world), [], []
    targets = [Kind.zero(s, w) for s in STAGES for w in WORLDS]
    for now in targets:
        try:
            losses, text = bench.go_on(before, now, tmp_path / "run")
            difference = apart(losses, bench.losses(PLAIN))
            if now == before:
                assert "converts" not in text and apart(losses, bench.losses(before)) == 0
            else:
                assert "converts from" in text
            cells.append(f"{difference:.0e}" + ("=" if now == before else " "))
            assert difference <= 1e-5
        except AssertionError as e:
            failed.append(f"{now}: {e}")
            cells.append("FAILED ")
    lines = request.config.stash[SUMMARY]
    if not any("the resume matrix" in line for line in lines):
        lines += [
            "",
            "the resume matrix: a run saved as the row (ZeRO stage x processes) goes on as the column; largest",
            "difference of a loss from the uninterrupted run on one process; = the same layout, bit for bit",
            " " * 6 + "".join(f"{t!s:>8}" for t in targets),
        ]
    lines.append(f"{before!s:<6}" + "".join(f"{c:>8}" for c in cells))
    assert not failed, "\n".join(failed)


BF16 = [Kind.zero(s, w, "bf16") for s, w in ((1, 2), (2, 2), (3, 2), (2, 1))]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        pytest.param(a, b, marks=() if (a.stage, b.stage, b.world) == (1, 3, 2) else FULL)
        for a in BF16
        for b in BF16
        if a != b
    ],
    ids=lambda kind: str(kind),
)
def test_bf16_keeps_its_fp32_masters(before: Kind, now: Kind, bench: Bench, tmp_path: Path) -> None:
    losses, _ = bench.go_on(before, now, tmp_path)
    # go_on compared the state bit for bit. Losses are not held to that: uninterrupted bf16 runs of different stages and
    # world sizes are 1e-4 apart, too.
    assert apart(losses, bench.losses(before)) <= 5e-4


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (Kind.zero(1, 2, "bf16"), Kind.zero(0, 1)),
        pytest.param(Kind.zero(3, 2), Kind.zero(1, 2, "bf16"), marks=FULL),
        pytest.param(Kind.zero(2, 2), Kind.zero(2, 2, "bf16"), marks=FULL),
    ],
    ids=lambda kind: str(kind),
)
def test_the_number_format_may_change(before: Kind, now: Kind, bench: Bench, tmp_path: Path) -> None:
    losses, text = bench.go_on(before, now, tmp_path)
    assert apart(losses, bench.losses(before)) <= 2e-2
    assert f" in {before.dtype} to " in text and f" in {now.dtype}" in text


@FULL
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("offload", ["zero2_offload", "zero3_offload"])
def test_offload_comes_and_goes(offload: str, world: int, bench: Bench, tmp_path: Path) -> None:
    """DeepSpeed's Adam for the CPU is another implementation, with another record of its steps."""
    for other in (Kind.zero(1, 2), Kind.zero(int(offload[4]), world)):
        for before, now in ((other, Kind(offload, world)), (Kind(offload, world), other)):
            losses, text = bench.go_on(before, now, tmp_path / "run")
            assert apart(losses, bench.losses(PLAIN)) <= 1e-5, (before, now)
            assert "with another implementation of Adam" in text
    losses, text = bench.go_on(Kind(offload, world), Kind(offload, world), tmp_path / "run")
    assert apart(losses, bench.losses(Kind(offload, world))) == 0 and "converts" not in text


@pytest.mark.parametrize("world", [pytest.param(1, marks=FULL), 2])
@pytest.mark.parametrize("stage", [pytest.param(0, marks=FULL), 1, pytest.param(2, marks=FULL), 3])
def test_an_engine_that_has_trained_goes_back(stage: int, world: int, bench: Bench, tmp_path: Path) -> None:
    kind = Kind.zero(stage, world)
    back = bench.run(kind) / "checkpoints" / f"step-{SAVED:08}"
    code, text = bench.train(kind, tmp_path, back=back)
    assert code == 0, text
    assert rows(tmp_path / "run", "loss") == bench.losses(kind)
    assert text.count(f"step {SAVED + 1:2}/{STEPS}") == 2 and text.count(f"step {SAVED:2}/{STEPS}") == 1


def test_dropout_goes_on_with_numbers_that_depend_on_the_step_alone(bench: Bench, tmp_path: Path) -> None:
    before, now, key = Kind.zero(1, 2), Kind.zero(2, 1), "model.dropout=0.2"
    first, text = bench.go_on(before, now, tmp_path / "a", key)
    second, _ = bench.go_on(before, now, tmp_path / "b", key)
    assert "dropout draws other numbers" in text
    assert first == second and 0 < apart(first, bench.losses(before, key)) < 0.2


def test_a_batch_that_the_new_world_cannot_share_is_refused(bench: Bench, tmp_path: Path) -> None:
    bench.interrupted(Kind.zero(1, 2), tmp_path)
    code, text = bench.train(Kind.zero(1, 3), tmp_path)
    assert code == 2 and "8 sequences cannot be shared by 3 devices" in text and "Traceback" not in text


def test_another_optimiser_is_refused_unless_nothing_changes(bench: Bench, tmp_path: Path) -> None:
    def config(stage: int) -> str:
        tree = {
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
        }
        path = tmp_path / f"sgd{stage}.json"
        path.write_text(json.dumps(tree))
        return str(path)

    one, two = ["--deepspeed_config", config(1)], ["--deepspeed_config", config(2)]
    code, text = bench.train(Kind.zero(1, 1), tmp_path / "sgd", *one)
    assert code == 0, text
    shutil.rmtree(tmp_path / "sgd/run/checkpoints/step-00000010")
    wanted = rows(tmp_path / "sgd/run", "loss")
    code, text = bench.train(Kind.zero(2, 1), tmp_path / "sgd", *two)
    assert code == 2 and "SGD cannot take over a checkpoint of another layout" in text
    code, text = bench.train(Kind.zero(2, 1), tmp_path / "sgd")
    assert code == 2 and "its optimiser keeps momentum_buffer; only Adam's state" in text
    code, text = bench.train(Kind.zero(1, 1), tmp_path / "sgd", *one)
    assert code == 0 and "goes on from step 5" in text and rows(tmp_path / "sgd/run", "loss") == wanted
    assert "Traceback" not in text


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """Changes what a file of DeepSpeed's holds."""
    tree = torch.load(path, weights_only=False)
    change(tree)
    torch.save(tree, path)


def commit_again(folder: Path) -> None:
    """Makes COMMIT fit files that were changed: what checksums cannot see must be seen by what is loaded."""
    checkpoint.seal(folder, SAVED, checkpoint.checksum_share(folder, 0, 1), {})


@pytest.mark.parametrize("world", [1, 2])
def test_what_deepspeed_loads_wrongly_stops_the_run(world: int, bench: Bench, tmp_path: Path) -> None:
    """DeepSpeed takes weights from one file and masters from another, and never compares them."""
    kind = Kind.zero(1, world)
    folder = bench.interrupted(kind, tmp_path) / "checkpoints" / f"step-{SAVED:08}"

    def change(tree: Any) -> None:
        tree["module"]["blocks.1.ffn.w1.weight"][0, 0] += 1

    rewrite(folder / "zero" / "mp_rank_00_model_states.pt", change)
    commit_again(folder)
    code, text = bench.train(kind, tmp_path)
    assert code == 1 and "what was loaded is not what it holds: blocks.1.ffn.w1.weight differs" in text
    assert "Traceback" not in text


def test_files_of_another_step_stop_the_run(bench: Bench, tmp_path: Path) -> None:
    folder = bench.interrupted(Kind.zero(1, 2), tmp_path) / "checkpoints" / f"step-{SAVED:08}"
    shutil.rmtree(folder / "zero")
    shutil.copytree(bench.run(Kind.zero(1, 2)) / "checkpoints" / f"step-{STEPS:08}" / "zero", folder / "zero")
    commit_again(folder)
    for kind in (Kind.zero(1, 2), Kind.zero(3, 1)):
        code, text = bench.train(kind, tmp_path)
        assert code == 1 and f"is at step {STEPS}, its state.json says {SAVED}" in text


@pytest.mark.parametrize("stage", [1, 3])
def test_shards_that_do_not_fit_are_named(stage: int, bench: Bench, tmp_path: Path) -> None:
    folder = bench.interrupted(Kind.zero(stage, 2), tmp_path) / "checkpoints" / f"step-{SAVED:08}" / "zero"
    inner = "optimizer_state_dict" if stage == 3 else "base_optimizer_state"
    second = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    whole = second.read_bytes()

    def state(tree: Any) -> Any:
        return tree["optimizer_state_dict"][inner]["state"]

    def cut(tree: Any) -> None:
        state(tree)[0]["exp_avg"] = state(tree)[0]["exp_avg"][:-300].clone()

    def later(tree: Any) -> None:
        state(tree)[1]["step"] += 1

    def other(tree: Any) -> None:
        for values in state(tree).values():
            values["momentum_buffer"] = values.pop("exp_avg")

    for change, error, words in (
        (cut, RunFailure, "exp_avg: its shards hold"),
        (later, RunFailure, "its shards disagree about the optimiser's step: [5, 6]"),
        (other, UserError, "its optimiser keeps exp_avg, exp_avg_sq, momentum_buffer, step; only Adam's state"),
    ):
        rewrite(second, change)
        with pytest.raises(error) as e:
            ZeroShards(folder, stage, 2).adam()
        assert words in str(e.value) and str(folder) in str(e.value)
        second.write_bytes(whole)
    ZeroShards(folder, stage, 2).adam()
    second.unlink()
    with pytest.raises(RunFailure, match="this shard is missing; 2 processes wrote one each"):
        ZeroShards(folder, stage, 2)
    second.write_bytes(whole)
    with pytest.raises(RunFailure, match=f"not those of ZeRO stage {stage ^ 2}|cannot read this shard"):
        ZeroShards(folder, stage ^ 2, 2)


def test_a_run_starts_from_the_weights_of_a_model(bench: Bench, tmp_path: Path) -> None:
    consolidate(bench.run(Kind.zero(1, 2)), tmp_path / "model")
    for kind in (Kind.zero(1, 2), Kind.zero(3, 1)):
        folder = tmp_path / f"new{kind.stage}"
        code, text = bench.train(kind, folder, f"train.init_from={tmp_path / 'model'}", "train.max_steps=2")
        assert code == 0, text
        found = checkpoint.find(folder / "run")
        config = from_tree(ModelConfig, found.state["config"]["model"], "state.json")
        model = Transformer(config)
        ModelDir(tmp_path / "model").load_into(model)
        stream = BlockStream([TokenSet.open(bench.data, "train")], 16, seed=found.state["config"]["train"]["seed"])
        batch = torch.from_numpy(stream.read(np.arange(8)))
        with torch.no_grad():
            wanted = model(batch[:, :-1], batch[:, 1:]).item()
        first = rows(folder / "run", "loss")[1]
        assert abs(first - wanted) <= 1e-6
        assert first < bench.losses(PLAIN)[1] - 0.5  # far from where a new model starts
        assert "converts" not in text and found.step == 2
