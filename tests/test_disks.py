"""Runs whose ranks do not share a disk, and runs with a mirror: what is lost on one place comes from another."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import ROOT, train
from test_training import options, recipe, rows

from nano_ds import checkpoint
from nano_ds import copies as copies_module
from nano_ds.checkpoint import Health
from nano_ds.collectives import World
from nano_ds.config import TrainConfig
from nano_ds.copies import Copies
from nano_ds.disks import find_disks
from nano_ds.files import write_json
from nano_ds.resume import whole
from nano_ds.run_dir import lock

LAST = "checkpoints/step-00000030"


def bend(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def nano_ds(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nano_ds", *words]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True)


def consolidate(run: Path, tmp: Path) -> subprocess.CompletedProcess[str]:
    """Over a hostfile whose second machine is this one with another disk, reached by a program in place of ssh."""
    fake = tmp / "bin" / "ssh"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$(echo "$last" | sed "s#/disk0/#/disk1/#g")"\n')
    fake.chmod(0o755)
    (tmp / "hosts").write_text("localhost slots=1\nother-machine slots=1\n")
    path = f"{fake.parent}:{os.environ['PATH']}"
    shutil.rmtree(tmp / "model", ignore_errors=True)
    return nano_ds("consolidate", str(run), "-o", str(tmp / "model"), "--hostfile", str(tmp / "hosts"), PATH=path)


def test_separate_disks_hold_one_checkpoint_together(small_set: Path, tmp_path: Path) -> None:
    """Each rank has a folder of its own, as on machines without a shared disk."""
    args = [*options(recipe(tmp_path, small_set, eval_every=0), 2), f"run.dir={tmp_path}/disk{{rank}}/run"]
    disks = [tmp_path / "disk0" / "run", tmp_path / "disk1" / "run"]
    code, text = train(args, 2)
    assert code == 0, text
    wanted = rows(disks[0], "loss")
    commits = [(d / LAST / "COMMIT").read_bytes() for d in disks]
    assert commits[0] == commits[1] and len(set(json.loads(commits[0])["hosts"])) == len(
        json.loads(commits[0])["files"]
    )
    # Every disk ends up with every file.
    assert all(checkpoint.inspect(d / LAST).state == "committed" for d in disks)

    # Consolidation fetches what this machine lacks, and takes nothing that differs from what was committed.
    shard = "zero/zero_pp_rank_{}_mp_rank_00_optim_states.pt"
    away = tmp_path / "away"
    away.mkdir()
    for name in ("state.json", shard.format(1)):
        shutil.move(disks[0] / LAST / name, away / Path(name).name)
    done = consolidate(disks[0], tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("state.json", shard.format(1)):
        shutil.move(away / Path(name).name, disks[0] / LAST / name)
    direct = tmp_path / "direct" / "model.safetensors"
    assert nano_ds("consolidate", str(disks[0]), "-o", str(direct.parent)).returncode == 0
    assert direct.read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*.tmp"))

    # Step 30 is lost on both disks (a file of rank 1 bent here, gone there); of step 15 each disk has a part.
    bend(disks[0] / LAST / shard.format(1))
    (disks[1] / LAST / shard.format(1)).unlink()
    middle = "checkpoints/step-00000015"
    (disks[0] / middle / shard.format(1)).unlink()
    bend(disks[1] / middle / shard.format(0))
    assert checkpoint.inspect(disks[0] / middle).state == "apart"
    listing = nano_ds("checkpoints", str(disks[0]), "--verify")
    assert listing.returncode == 1 and " apart: 1 of its " in listing.stdout and " damaged: zero/" in listing.stdout
    done = consolidate(disks[0], tmp_path)
    assert done.returncode == 0 and "is damaged" in done.stderr and "step 15" in done.stdout, done.stderr
    code, text = train(args, 2)
    assert code == 0, text
    assert f"{shard.format(1)} is damaged" in text and "goes on from step 15" in text
    assert rows(disks[0], "loss") == wanted

    # A machine with an empty disk takes over from one that died.
    shutil.rmtree(disks[1])
    shutil.rmtree(disks[0] / LAST)
    code, text = train(args, 2)
    assert code == 0, text
    assert "goes on from step 15" in text and rows(disks[0], "loss") == wanted
    assert all(checkpoint.inspect(d / LAST).state == "committed" for d in disks)

    # Two histories are never mixed.
    other = tmp_path / "other"
    assert train([*args, f"run.dir={other}", "optim.lr=1e-3"], 2)[0] == 0
    for step in (15, 30):
        shutil.rmtree(disks[1] / "checkpoints" / f"step-{step:08d}")
        shutil.copytree(other / "checkpoints" / f"step-{step:08d}", disks[1] / "checkpoints" / f"step-{step:08d}")
    code, text = train([*args, "train.max_steps=40"], 2)
    assert code == 2 and "its COMMIT differs between" in text and "none of its checkpoints can be used" in text


def test_a_mirror_brings_a_lost_run_back(small_set: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    args = [*options(recipe(tmp_path, small_set, eval_every=0), 1), "--mirror", str(mirror)]
    code, text = train(args)
    assert code == 0, text
    copied, own = checkpoint.find(mirror), checkpoint.find(tmp_path / "run")
    assert copied.step == own.step == 30 and copied.state == own.state
    wanted = rows(tmp_path / "run", "loss")
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(mirror / LAST)
    code, text = train([*args, "train.keep_last=1"])
    assert code == 0 and "takes step 15 back from the mirror" in text and "goes on from step 15" in text, text
    assert rows(tmp_path / "run", "loss") == {s: loss for s, loss in wanted.items() if s > 15}
    assert checkpoint.steps(mirror / "checkpoints") == [30]
    # Another run must not overwrite it; a mirror that cannot be written is said and costs nothing else.
    code, text = train([*args, f"run.dir={tmp_path / 'two'}", "train.seed=1"])
    assert code == 2 and "cannot go on from it" in text
    (tmp_path / "file").write_text("")
    code, text = train([*args, f"run.dir={tmp_path / 'two'}", "--mirror", str(tmp_path / "file")])
    assert code == 0 and "step 30 could not be copied: Not a directory" in text, text


def test_a_mirror_belongs_to_one_run(small_set: Path, tmp_path: Path) -> None:
    mirror, run = tmp_path / "mirror", tmp_path / "run"
    args = options(recipe(tmp_path, small_set, eval_every=0), 1)
    assert train(args)[0] == 0
    # A finished run is copied all the same.
    code, text = train([*args, "--mirror", str(mirror)])
    assert code == 0 and "already at step 30" in text and checkpoint.steps(mirror / "checkpoints") == [30], text
    # A branch is another run, and so is a new one.
    old = ["--resume", str(run / "checkpoints" / "step-00000015"), f"run.dir={tmp_path / 'branch'}"]
    for words in (old, ["--resume", "none", f"run.dir={tmp_path / 'new'}"]):
        code, text = train([*args, *words, "--mirror", str(mirror)])
        assert code == 2 and "mirrors another run" in text, text
    code, text = train([*args, f"run.dir={tmp_path / 'new'}", "--mirror", str(run)])
    assert code == 2 and "is a run itself" in text, text
    # All is lost: that is said, and what is left stays.
    shutil.rmtree(run)
    bend(mirror / LAST / "state.json")
    code, text = train([*args, "--mirror", str(mirror)])
    assert code == 2 and "none of the checkpoints that it mirrors can be used" in text, text
    assert checkpoint.steps(mirror / "checkpoints") == [30] and not checkpoint.steps(run / "checkpoints")


def test_a_mirror_without_room_for_one_more_gives_up_its_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, copied = tmp_path / "run" / "checkpoints", tmp_path / "mirror" / "checkpoints"
    for step in (10, 20, 30):
        tmp = checkpoint.staging(root, step)
        tmp.mkdir(parents=True)
        write_json(tmp / "state.json", {"step": step, "run_id": "a", "progress": {"best": {}}})
        checkpoint.seal(tmp, step, checkpoint.checksum_share(tmp, 0, 1), {})
        checkpoint.publish(root, step)
    world = World(0, 0, 1, torch.device("cpu"))
    copies = Copies(root, tmp_path / "mirror", TrainConfig(keep_last=2), world, find_disks(root, world))
    real = copies_module.mirror_checkpoint

    def small(folder: Path, root: Path) -> Path:
        if len(checkpoint.steps(root)) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(folder, root)

    monkeypatch.setattr(copies_module, "mirror_checkpoint", small)
    for step in (10, 20, 30):
        copies.start(step)
        copies.finish()
    assert checkpoint.steps(copied) == [20, 30] and not copies.problem


def test_a_run_is_locked_on_every_disk(small_set: Path, tmp_path: Path) -> None:
    """The other run has its first rank on what is the second disk here."""
    args = [*options(recipe(tmp_path, small_set, eval_every=0), 1), f"run.dir={tmp_path}/disk{{rank}}/run"]
    with lock(tmp_path / "disk1" / "run"):
        code, text = train(args, 2)
    assert code == 2 and f"process {os.getpid()} is training in this run" in text and "(rank 1)" in text, text
    assert not list(tmp_path.glob("disk*/run/checkpoints/*"))


def health(good: str, files: str = "abc", step: int = 1, problem: str = "", **damaged: str) -> Health:
    known = {} if problem else {n: (1, n) for n in files}
    missing = tuple(n for n in known if n not in good and n not in damaged)
    return Health(step, known, dict.fromkeys(known, "A"), problem, frozenset(good), missing, damaged)


@pytest.mark.parametrize(
    ("disks", "why"),
    [
        ({"A": health("ab"), "B": health("c")}, ""),
        ({"A": health("abc"), "B": health("", problem="it was never committed")}, ""),
        ({"A": health("ab"), "B": health("b")}, "c is missing (A wrote it)"),
        ({"A": health("ab", c="c is bent"), "B": health("a")}, "c is bent (A wrote it)"),
        ({"A": health("abc"), "B": health("abcd", files="abcd")}, "its COMMIT differs between A and B"),
        ({"A": health("abc"), "B": health("abc", step=2)}, "its COMMIT differs between A and B"),
        ({"A": health("", problem="it was never committed"), "B": health("", problem="damaged")}, "damaged"),
    ],
)
def test_a_checkpoint_counts_when_the_disks_hold_it_together(disks: dict[str, Health], why: str) -> None:
    committed, said = whole(disks)
    assert said == why and (committed is None) == bool(why)
