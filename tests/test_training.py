"""Training through DeepSpeed: the same numbers for every ZeRO stage and world size, and across an interruption."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from ranks import ROOT, finish, start, train
from safetensors.torch import load_file

from nano_ds.config import load_config
from nano_ds.consolidate import consolidate
from nano_ds.data import BlockStream
from nano_ds.engine import parameter_groups
from nano_ds.model import Transformer
from nano_ds.schedule import learning_rate
from nano_ds.shards import TokenSet
from nano_ds.tokenizer import load_tokenizer

STEPS = 30


def recipe(folder: Path, data: Path, **train_keys: Any) -> Path:
    """A tiny recipe over a prepared set."""
    tree = {
        "run": {"dir": str(folder / "run")},
        "model": {"block_size": 16, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "dropout": 0.0},
        "data": {"tokenizer": str(data / "tokenizer.json"), "sets": [{"dir": str(data)}]},
        "optim": {"lr": 5e-3, "min_lr": 5e-4, "warmup_steps": 5},
        "train": {
            "batch_size": 8,
            "max_steps": STEPS,
            "log_every": 1,
            "eval_every": 10,
            "eval_batches": 2,
            "checkpoint_every": 15,
            "sample_tokens": 4,
            **train_keys,
        },
    }
    path = folder / "recipe.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree))
    return path


def rows(run: Path, key: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {r["step"]: r[key] for r in lines if key in r}


def options(path: Path, stage: int, *more: str) -> list[str]:
    return ["-c", str(path), "--deepspeed", "--deepspeed_config", f"ds_configs/zero{stage}.json", *more]


@pytest.fixture(scope="module")
def plain_losses(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The same batches through a bare PyTorch loop."""
    config = load_config(recipe(tmp_path_factory.mktemp("plain"), small_set))
    vocab_size = load_tokenizer(config.data.tokenizer).vocab_size
    config = replace(config, model=replace(config.model, vocab_size=vocab_size))
    stream = BlockStream([TokenSet.open(small_set, "train")], 16, seed=config.train.seed)
    torch.manual_seed(config.train.seed)
    model = Transformer(config.model)
    o = config.optim
    optimizer = torch.optim.AdamW(parameter_groups(model, o), betas=(o.beta1, o.beta2), eps=o.eps)
    losses = []
    for step in range(STEPS):
        batch = torch.from_numpy(stream.read(np.arange(step * 8, step * 8 + 8)))
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(o, step, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    return losses


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_and_world_size_learns_like_a_plain_loop(
    stage: int, world: int, small_set: Path, tmp_path: Path, plain_losses: list[float]
) -> None:
    # Two micro batches a step at world 1: accumulation is under test too.
    path = recipe(tmp_path, small_set, micro_batch_size=4)
    code, text = train(options(path, stage), world)
    assert code == 0, text
    losses = rows(tmp_path / "run", "loss")
    assert list(losses) == list(range(1, STEPS + 1))
    assert np.abs(np.array(list(losses.values())) - plain_losses).max() <= 1e-5
    assert list(rows(tmp_path / "run", "val_bpb")) == [10, 15, 20, 30]

    # Stopped at step 15 and resumed: the same digits.
    uninterrupted = tmp_path / "uninterrupted"
    shutil.move(tmp_path / "run", uninterrupted)
    shutil.copytree(uninterrupted, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000030")
    code, text = train(options(path, stage), world)
    assert code == 0, text
    assert "goes on from step 15" in text
    assert rows(tmp_path / "run", "loss") == losses
    assert rows(tmp_path / "run", "val_loss") == rows(uninterrupted, "val_loss")
    assert rows(tmp_path / "run", "grad_norm") == rows(uninterrupted, "grad_norm")

    # The consolidated model is the live one, bit for bit.
    code, text = finish(
        start(ROOT / "tests" / "live_parameters.py", [str(tmp_path / "live"), *options(path, stage)], world)
    )
    assert code == 0, text
    consolidate(tmp_path / "run", tmp_path / "model")
    live, made = load_file(tmp_path / "live"), load_file(tmp_path / "model" / "model.safetensors")
    assert live.keys() == made.keys()
    assert all(torch.equal(live[n], made[n]) for n in live)


FULL = pytest.mark.full


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=FULL)])
@pytest.mark.parametrize("stage", [1, *(pytest.param(s, marks=FULL) for s in (0, 2, 3))])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(
    number: int, stage: int, world: int, small_set: Path, tmp_path: Path
) -> None:
    """With dropout, so that the random states matter too."""
    path = recipe(tmp_path, small_set, max_steps=400, eval_every=0, checkpoint_every=0)
    args = options(path, stage, "model.dropout=0.1")
    assert train([*args, f"run.dir={tmp_path / 'whole'}"], world)[0] == 0
    processes = start(ROOT / "launch" / "train.py", args, world)
    log = tmp_path / "run" / "log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 15:
        assert processes[0].poll() is None, processes[0].communicate()[0]
        time.sleep(0.02)
    processes[0].send_signal(number)
    code, text = finish(processes)
    assert code == 0, text
    stopped = max(rows(tmp_path / "run", "loss"))
    assert 15 <= stopped < 400 and f"stopped at step {stopped}" in text
    # Nobody validated the step that the signal came at.
    state = json.loads((tmp_path / f"run/checkpoints/step-{stopped:08d}/state.json").read_text())["progress"]
    assert state["val_loss"] is None and state["loss"] > 0 and state["best"].get("step") != stopped
    code, text = train(args, world)
    assert code == 0 and f"goes on from step {stopped}" in text
    assert rows(tmp_path / "run", "loss") == rows(tmp_path / "whole", "loss")


def test_bf16_trains_at_stage_1_and_is_refused_at_stage_0(small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set, dtype="bf16")
    code, text = train(options(path, 1))
    assert code == 0, text
    losses = list(rows(tmp_path / "run", "loss").values())
    assert losses[-1] < losses[0] - 1
    consolidate(tmp_path / "run", tmp_path / "model")
    code, text = train(options(path, 0, f"run.dir={tmp_path / 'other'}"))
    assert code == 2 and "bf16 at ZeRO stage 0" in text and "Traceback" not in text


def test_nano_ds_train_runs_two_processes_by_the_deepspeed_launcher(small_set: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    path = recipe(tmp_path, small_set, eval_every=0)
    command = [sys.executable, "-m", "nano_ds", "train", "-c", str(path), "--processes", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run", "loss")) == STEPS
    assert json.loads((tmp_path / "run/checkpoints/step-00000030/state.json").read_text())["world_size"] == 2


def test_damaged_checkpoints_are_skipped_with_the_reason(small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set, eval_every=0)
    assert train(options(path, 2))[0] == 0
    root = tmp_path / "run" / "checkpoints"
    shard = root / "step-00000030" / "zero" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, text = train(options(path, 2))
    assert code == 0 and "is damaged (its checksum differs)" in text and "goes on from step 15" in text
    (root / "step-00000030" / "COMMIT").unlink()
    (root / "step-00000015" / "state.json").unlink()
    code, text = train(options(path, 2))
    assert code == 2 and "never committed" in text and "state.json is missing" in text
    assert "Traceback" not in text


def test_a_resume_that_cannot_be_exact_is_refused(small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set, eval_every=0)
    assert train(options(path, 1))[0] == 0
    for override, word in (
        ("train.batch_size=16", "train.batch_size was 8, is 16"),
        ("model.n_layer=3", "model.n_layer was 2, is 3"),
        ("train.seed=1", "train.seed was 39, is 1"),
    ):
        code, text = train(options(path, 1, override, "train.max_steps=40"))
        assert code == 2 and word in text, text
    code, text = train([*options(path, 1), "--resume", "none"])
    assert code == 2 and "would lose them" in text
    code, text = train(options(path, 1))
    assert code == 0 and "already at step 30 of 30" in text
    # Going back within a run would mix two branches; a run of its own is the way.
    old = str(tmp_path / "run" / "checkpoints" / "step-00000015")
    code, text = train([*options(path, 1), "--resume", old])
    assert code == 2 and "give it a run.dir of its own" in text
    branch = tmp_path / "branch"
    code, text = train([*options(path, 1), "--resume", old, f"run.dir={branch}"])
    assert code == 0 and "goes on from step 15" in text
    wanted = {s: loss for s, loss in rows(tmp_path / "run", "loss").items() if s > 15}
    assert rows(branch, "loss") == wanted
