"""Steps that must not move the weights, batches that a run has to pass over, ranks that drift apart."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from ranks import ROOT, finish, start
from test_training import options, recipe, rows

from nano_ds.guards import WARMUP, Guard, drifted, parameter_sums


def faulty(fault: str, first: int, last: int, args: list[str], world: int = 1) -> tuple[int, str]:
    return finish(start(ROOT / "tests" / "faulty_training.py", [fault, str(first), str(last), *args], world))


def test_statistics_find_spikes_and_nothing_else() -> None:
    torch.manual_seed(1)
    guard = Guard(8.0, torch.device("cpu"))
    for i in range(3000):  # a loss that falls, a norm that rises, both noisy
        loss = 2 + 4 * math.exp(-i / 300) + 0.2 * torch.randn(()).item()
        norm = (0.5 + i / 3000) * math.exp(0.3 * torch.randn(()).item())
        assert guard.judge(torch.tensor(loss), torch.tensor(norm)) == 0, i
    before = guard.save()
    for loss, norm, word in (
        (9.0, 1.0, "loss 9, above"),
        (2.0, 80.0, "gradient norm 80, above"),
        (math.nan, 1.0, "nan"),
    ):
        assert guard.judge(torch.tensor(loss), torch.tensor(norm)) == 1
        assert word in guard.verdict().why
    v = guard.verdict()
    assert v.skipped and v.in_a_row == v.total == 3
    assert guard.save()[:5] == before[:5]  # what was skipped does not become usual
    # The state goes through JSON without a change.
    other = Guard(8.0, torch.device("cpu"))
    other.load(json.loads(json.dumps(guard.save())))
    for x in (2.1, 2.3):
        assert guard.judge(torch.tensor(x), torch.tensor(1.0)) == other.judge(torch.tensor(x), torch.tensor(1.0)) == 0
    assert other.save() == guard.save() and guard.verdict().in_a_row == 0


def test_the_beginning_is_judged_by_finiteness_alone() -> None:
    guard = Guard(8.0, torch.device("cpu"))
    for i in range(WARMUP):
        assert guard.judge(torch.tensor(5.0 * (1 + i % 2)), torch.tensor(10.0 ** (i % 4))) == 0
    off = Guard(0.0, torch.device("cpu"))
    for x in [1.0] * 100 + [1e6]:
        assert off.judge(torch.tensor(x), torch.tensor(x)) == 0
    assert off.judge(torch.tensor(1.0), torch.tensor(math.inf)) == 1


def test_one_changed_bit_is_drift() -> None:
    torch.manual_seed(0)
    same = {"a": torch.randn(100, 7), "b": torch.randn(5).bfloat16()}
    other = {n: t.clone() for n, t in same.items()}
    other["b"].view(torch.int16)[3] ^= 1
    sums = [parameter_sums(p).tolist() for p in (same, same, other)]
    assert drifted(["a", "b"], sums) == ([2], "b")
    assert drifted(["a", "b"], sums[1:]) == ([0, 1], "b")
    assert drifted(["a", "b"], sums[:2]) == ([], "")


@pytest.mark.parametrize(
    ("stage", "world"),
    [(0, 1), (1, 2), *(pytest.param(s, w, marks=pytest.mark.full) for s in (2, 3) for w in (1, 2))],
)
def test_a_skipped_step_changes_nothing(stage: int, world: int, small_set: Path, tmp_path: Path) -> None:
    """Step 16 is bad: weights, moments and step count at 16 are those of 15, and a resume across it is bit-equal."""
    keys = {"eval_every": 0, "checkpoint_every": 1, "keep_last": 100, "micro_batch_size": 4, "max_steps": 20}
    args = options(recipe(tmp_path, small_set, **keys), stage)
    code, text = faulty("nan", 16, 16, args, world)
    assert code == 0 and "step 16 skipped: loss nan (1 skipped so far)" in text, text
    root = tmp_path / "run" / "checkpoints"
    # While steps are being skipped nothing is saved, so step 17 follows 15.
    assert not (root / "step-00000016").exists() and (root / "step-00000017").exists()
    losses = rows(tmp_path / "run", "loss")
    assert losses[16] is None and all(math.isfinite(losses[s]) for s in losses if s != 16)
    assert rows(tmp_path / "run", "skipped")[20] == 1
    for step in range(16, 21):
        shutil.rmtree(root / f"step-{step:08d}", ignore_errors=True)
    code, text = faulty("nan", 16, 16, args, world)
    assert code == 0 and "goes on from step 15" in text
    assert rows(tmp_path / "run", "loss") == losses


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(2, "bf16"), *(pytest.param(s, d, marks=pytest.mark.full) for s, d in ((0, "fp32"), (1, "bf16"), (3, "bf16")))],
)
def test_a_gradient_that_is_not_finite_is_skipped(stage: int, dtype: str, small_set: Path, tmp_path: Path) -> None:
    """The loss is sound. DeepSpeed leaves the step out by itself, except in bf16 at stage 2, where it would step."""
    keys = {"eval_every": 0, "checkpoint_every": 0, "max_steps": 12, "dtype": dtype}
    code, text = faulty("gradient", 10, 10, options(recipe(tmp_path, small_set, **keys), stage))
    assert code == 0 and "step 10 skipped: gradient norm" in text and "(1 skipped so far)" in text, text
    losses = rows(tmp_path / "run", "loss")
    assert all(loss is not None and math.isfinite(loss) for loss in losses.values())


def test_weights_after_a_skip_are_those_before(small_set: Path, tmp_path: Path) -> None:
    """Every stage ends with a bad step and saves all the same, it being the last."""
    for stage in (0, 1, 3):
        keys = {"eval_every": 0, "checkpoint_every": 9, "keep_last": 100, "max_steps": 10}
        args = options(recipe(tmp_path / str(stage), small_set, **keys), stage)
        code, text = faulty("nan", 10, 10, args)
        assert code == 0 and "step 10 skipped" in text, text
        root = tmp_path / str(stage) / "run" / "checkpoints"
        files = sorted(p.name for p in (root / "step-00000009" / "zero").iterdir())
        for name in files:
            a, b = (torch.load(root / f"step-{s:08d}" / "zero" / name, weights_only=False) for s in (9, 10))
            assert same_but_counters(a, b), name


def same_but_counters(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        skip = {"global_steps", "global_samples", "lr", "micro_steps"}
        return all(k in skip or same_but_counters(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_but_counters, a, b))
    return True


def test_bad_batches_in_a_row_are_passed_over(small_set: Path, tmp_path: Path) -> None:
    """A spike that lasts: the run goes back to its checkpoint and trains on with what comes after."""
    keys = {"eval_every": 0, "checkpoint_every": 60, "max_steps": 80, "guard_patience": 3}
    args = options(recipe(tmp_path, small_set, **keys), 1)
    code, text = faulty("spike", 64, 68, args, 2)
    assert code == 0, text
    assert "step 64 skipped: loss" in text and ", above" in text, text
    assert "step 66: 3 steps in a row were skipped: goes back to step 60 and past the batches up to there" in text
    # Then samples 67 and 68 come, are skipped too, and the run is through.
    assert "step 61 skipped" in text and "step 62 skipped" in text and "step 63 skipped" not in text
    assert set(rows(tmp_path / "run", "loss")) == set(range(1, 81))
    state = json.loads((tmp_path / "run/checkpoints/step-00000080/state.json").read_text())
    assert state["progress"]["passed_over"] == 6


def test_without_patience_a_run_never_goes_back(small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set, eval_every=0, max_steps=12, checkpoint_every=4, guard_patience=0)
    code, text = faulty("nan", 5, 9, options(path, 1))
    assert code == 0 and "goes back" not in text, text
    assert rows(tmp_path / "run", "skipped")[12] == 5


def test_a_run_that_only_fails_ends_with_the_fix(small_set: Path, tmp_path: Path) -> None:
    args = options(recipe(tmp_path, small_set, eval_every=0, checkpoint_every=10), 1)
    code, text = faulty("nan", 3, 30, args)
    assert code == 1 and "there is no checkpoint to go back to; lower optim.lr" in text, text
    code, text = faulty("nan", 13, 300, args)
    assert code == 1 and "also after going back 3 times; lower optim.lr" in text, text
    assert json.loads((tmp_path / "run/checkpoints/step-00000010/state.json").read_text())["step"] == 10


def test_a_rank_that_drifted_is_found(small_set: Path, tmp_path: Path) -> None:
    args = options(recipe(tmp_path, small_set, eval_every=0, drift_every=10), 0)
    code, text = faulty("drift", 12, 0, args, 2)
    assert code == 1 and "hold other parameters than the rest (final_norm.weight)" in text, text
    # It was found before the checkpoint of step 15 could be written.
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
