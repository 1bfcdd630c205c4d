"""The parts of the training loop that need no training: rates, speed, log, checkpoints, memory formulas."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ranks import ROOT

from nano_ds import checkpoint, cli, run_dir
from nano_ds.config import OptimConfig
from nano_ds.errors import UserError
from nano_ds.files import write_json
from nano_ds.hardware import peak_of_name
from nano_ds.monitor import Monitor, Speed, duration
from nano_ds.schedule import learning_rate


def test_cosine_wsd_and_constant_rates() -> None:
    cosine = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=10)
    rates = [learning_rate(cosine, s, 100) for s in range(120)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55) and rates[100] == rates[119] == 0.1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    wsd = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=10, schedule="wsd", wsd_decay=0.2)
    rates = [learning_rate(wsd, s, 100) for s in range(101)]
    assert set(rates[10:80]) == {1.0} and rates[90] == pytest.approx(0.55) and rates[100] == 0.1
    constant = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=0, schedule="constant")
    assert {learning_rate(constant, s, 100) for s in range(200)} == {1.0}


def test_the_arithmetic_of_speed() -> None:
    speed = Speed(tokens_per_step=1000, flops_per_token=10**6, peak_flops=2e9, devices=2)
    values = speed.measure(steps=4, seconds=2.0, steps_left=10)
    assert values == {"tokens_per_s": 2000.0, "step_s": 0.5, "eta_s": 5.0, "mfu": 0.5}
    assert "mfu" not in Speed(1000, 10**6, None, 1).measure(1, 1.0, 1)
    assert [duration(s) for s in (9, 65, 3725)] == ["9s", "1m05s", "1h02m"]


def test_peaks_are_known_or_absent() -> None:
    assert peak_of_name("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of_name("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_of_name("NVIDIA L40S") == 362e12
    assert peak_of_name("NVIDIA GeForce GTX 1080") is None


def test_a_resumed_log_forgets_the_steps_that_come_again(tmp_path: Path) -> None:
    lines = [json.dumps({"step": s, "loss": 1.0}) for s in (1, 2, 3, 4)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "lo')
    Monitor(tmp_path, 10, resumed_at=2).close()
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]


def make(root: Path, step: int, **progress: float) -> Path:
    tmp = checkpoint.staging(root, step)
    (tmp / "zero").mkdir(parents=True)
    (tmp / "zero" / "weights.pt").write_bytes(bytes(range(100)) * step)
    write_json(tmp / "state.json", {"step": step, "progress": progress})
    checkpoint.seal(tmp, step, checkpoint.checksum_share(tmp, 0, 2) | checkpoint.checksum_share(tmp, 1, 2), {})
    return checkpoint.publish(root, step)


def test_only_committed_and_whole_checkpoints_count(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == (None, [])
    for step in (10, 20, 30, 40):
        make(tmp_path, step)
    found, skipped = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 40 and not skipped
    # A staging folder is nothing; cuts, bends and missing files are found.
    (tmp_path / ".step-00000050.tmp").mkdir()
    with open(tmp_path / "step-00000040" / "zero" / "weights.pt", "r+b") as f:
        f.truncate(50)
    with open(tmp_path / "step-00000030" / "zero" / "weights.pt", "r+b") as f:
        f.seek(5)
        f.write(b"x")
    (tmp_path / "step-00000020" / "state.json").unlink()
    found, skipped = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 10
    assert "50 bytes instead of 4000" in skipped[0] and "checksum differs" in skipped[1] and "missing" in skipped[2]
    commit = tmp_path / "step-00000010" / "COMMIT"
    whole = commit.read_bytes()
    for size in range(len(whole) - 2):
        commit.write_bytes(whole[:size])
        assert checkpoint.inspect(commit.parent).why
    assert checkpoint.newest(tmp_path)[0] is None
    with pytest.raises(UserError, match="damaged"):
        checkpoint.find(tmp_path / "step-00000010")
    checkpoint.clean(tmp_path)
    assert not (tmp_path / ".step-00000050.tmp").exists()


def listing(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, str]:
    code = cli.main(["checkpoints", *map(str, args)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_list_of_checkpoints_shows_saves_that_never_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run" / "checkpoints"
    whole = make(root, 10, loss=2.5, val_loss=2.75)
    assert listing(capsys, tmp_path / "run")[0] == 0
    staging = checkpoint.staging(root, 20)
    (staging / "zero").mkdir(parents=True)
    (staging / "zero" / "weights.pt").write_bytes(bytes(2_000_000))
    (root / ".step-00000005.old.tmp").mkdir()  # what a rotation left is no save
    code, out, _ = listing(capsys, tmp_path / "run", "--verify")
    head, first, second, _ = out.splitlines()
    assert code == 1 and head.split()[:4] == ["step", "loss", "val", "loss"]
    assert first.split()[:4] == ["10", "2.5000", "2.7500", "*"] and first.endswith("committed")
    assert second.split()[0] == "20" and "2.0 MB" in second and "torn: it was never finished" in second
    for held in (tmp_path / "run", root):  # a run's lock, a mirror's lock
        with run_dir.lock(held):
            code, out, _ = listing(capsys, tmp_path / "run", "--json")
        facts = [json.loads(line) for line in out.splitlines()]
        assert code == 0 and [f["state"] for f in facts] == ["committed", "being written"]
    code, out, _ = listing(capsys, tmp_path / "run")
    assert code == 1 and "torn: it was never finished" in out  # the lock is free again

    code, out, _ = listing(capsys, whole, "--verify")
    assert code == 0 and out.splitlines()[1].split()[0] == "10"
    assert listing(capsys, root / "step-00000099")[2].endswith("no such checkpoint\n")
    assert "neither a run" in listing(capsys, tmp_path)[2]


@pytest.mark.parametrize("text", ["[]", '{"step": 1, "progress": []}', '{"step": 1e999}', "[" * 100_000, "{}", "\0"])
def test_a_state_file_that_makes_no_sense_is_damage(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "checkpoints", 1)
    (folder / "state.json").write_text(text)
    code, out, err = listing(capsys, tmp_path)
    assert code == 1 and " damaged: state.json " in out and not err
    commit = {"format": checkpoint.FORMAT, "version": 1, "step": 1}
    write_json(folder / "COMMIT", {**commit, "files": checkpoint.checksum_share(folder, 0, 1)})
    code, out, err = listing(capsys, tmp_path, "--verify")  # written like this, by something else
    assert code == 1 and " damaged: state.json is unreadable" in out and not err
    with pytest.raises(UserError, match=r"state\.json is unreadable"):
        checkpoint.find(folder)


@pytest.mark.parametrize(
    "harm",
    [
        lambda t: t.update(step=float("inf")),
        lambda t: t.update(step=True),
        lambda t: t["files"]["state.json"].__setitem__(0, 1e308 * 10),
        lambda t: t["files"]["state.json"].__setitem__(0, -1),
        lambda t: t["files"].update({"\ud800": [1, "a"]}),
        lambda t: t.update(files=[]),
        None,
    ],
)
def test_a_commit_that_makes_no_sense_hides_no_older_checkpoint(
    harm: Callable[[dict[str, Any]], object] | None, tmp_path: Path
) -> None:
    make(tmp_path, 1)
    commit = make(tmp_path, 2) / "COMMIT"
    tree = json.loads(commit.read_text())
    if harm is not None:
        harm(tree)
    commit.write_text(json.dumps(tree).replace("Infinity", "1e67173") if harm is not None else "[" * 100_000)
    found, (skipped,) = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1 and "its COMMIT file is damaged" in skipped


def test_rotation_keeps_the_newest_every_kth_and_the_best(tmp_path: Path) -> None:
    for step in range(10, 90, 10):
        make(tmp_path, step)
    assert checkpoint.rotate(tmp_path, 80, keep_last=2, keep_every=40, best=30) == [10, 20, 50, 60]
    assert sorted(p.name for p in tmp_path.glob("step-*")) == [checkpoint.folder_name(s) for s in (30, 40, 70, 80)]
    # 80 was damaged and the run went back to 70: what it saves next must stay.
    make(tmp_path, 75)
    assert checkpoint.rotate(tmp_path, 75, keep_last=1, keep_every=0, best=None) == [30, 40, 70]
    assert checkpoint.steps(tmp_path) == [75, 80]


def test_a_process_that_is_done_is_not_aborted_by_the_interpreters_end() -> None:
    script = (
        "import os\nfrom nano_ds.leaving import leave\n"
        "class Late:\n    def __del__(self): os.abort()\n"  # as gloo's threads do, now and then
        "late = Late()\nprint('said')\nleave(3)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "said\n"), done.stderr
