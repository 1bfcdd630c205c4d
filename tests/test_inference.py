"""The inference scripts as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import ROOT, train
from test_training import options, recipe

from nano_ds.consolidate import consolidate


@pytest.fixture(scope="module")
def run_dir(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inference")
    path = recipe(folder, small_set, max_steps=60, eval_every=0, checkpoint_every=0)
    code, text = train(options(path, 3, "model.block_size=48"))
    assert code == 0, text
    consolidate(folder / "run", folder / "run" / "model")
    return folder / "run"


def script(name: str, *args: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "inference" / name), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, input=stdin)


def test_deepspeed_says_the_same_from_model_directory_and_zero_checkpoint(run_dir: Path) -> None:
    how = ["-t", "0", "-n", "20", "--json", "the cat"]
    wanted = json.loads(script("generate.py", "-m", run_dir / "model", *how).stdout)
    assert len(wanted["ids"]) > 3
    for source in (run_dir, run_dir / "model"):
        done = script("ds_generate.py", "-m", source, *how)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == wanted
    done = script("ds_generate.py", "-m", run_dir, "--dtype", "bf16", *how)
    assert done.returncode == 0 and json.loads(done.stdout)["prompt_ids"] == wanted["prompt_ids"], done.stderr


def test_only_the_continuation_goes_to_stdout(run_dir: Path) -> None:
    how = ["-m", run_dir / "model", "--seed", "3", "-n", "8"]
    done = script("generate.py", *how, "--profile", "the cat")
    made = json.loads(script("generate.py", *how, "--json", "the cat").stdout)
    assert done.stdout == made["text"] + "\n"
    assert "tok/s" in done.stderr and len(done.stderr.splitlines()) == 1
    assert script("generate.py", *how, stdin="the cat\n").stdout == done.stdout
    assert len(json.loads(script("generate.py", *how, "-s", "10", "--json", "the cat").stdout)["ids"]) <= 10


def test_chat_answers_each_line(run_dir: Path) -> None:
    done = script("chat.py", "-m", run_dir / "model", "--seed", "1", "-n", "5", stdin="the cat\na mat\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 2


def test_eval_agrees_with_the_run(run_dir: Path, small_set: Path) -> None:
    command = [sys.executable, "-m", "nano_ds", "eval", str(run_dir), "--loss", str(small_set), "--batches", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    facts = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert 0.5 < float(facts["loss"].split()[0]) < 6 and set(facts) == {"tokens", "loss", "perplexity", "bits"}
