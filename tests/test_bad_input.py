"""What goes wrong for users ends in one line that names the file, the cause and the fix, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import ROOT, train
from test_training import options, recipe

from nano_ds.consolidate import consolidate


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=180)


def nano_ds(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "nano_ds", *args)


def complains(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Exactly one line on stderr, with these words, and this exit code."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], (word, lines[0])


@pytest.fixture(scope="module")
def tiny_run(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tiny run with its model directory and file."""
    folder = tmp_path_factory.mktemp("tiny")
    path = recipe(folder, small_set, eval_every=0, checkpoint_every=0)
    code, text = train(options(path, 1, "model.n_embd=64"))
    assert code == 0, text
    consolidate(folder / "run", folder / "run" / "model")
    assert nano_ds("export", folder / "run" / "model", "-o", folder / "run" / "model.bin").returncode == 0
    return folder


def test_recipes_hostfiles_and_ds_configs(small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set)
    complains(nano_ds("train", "-c", "recipes/dmeo.yaml"), 2, "recipes/dmeo.yaml", "did you mean recipes/demo.yaml")
    done = nano_ds("train", "-c", path, "train.max_step=3", "optim.lr=fast", "model.n_kv_head=3")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for word in ("did you mean train.max_steps?", "optim.lr: expected a number", "n_kv_head: 3 does not divide"):
        assert word in done.stderr
    complains(nano_ds("train", "-c", path, "--hostfile", "no-such"), 2, "no-such: no such hostfile")
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node1 slot=2\n")
    complains(nano_ds("train", "-c", path, "--hostfile", hostfile), 2, "hosts:1", "slots=")
    complains(nano_ds("train", "-c", path, "--deepspeed_config", "none.json"), 2, "none.json: no such file")
    bad = tmp_path / "ds.json"
    bad.write_text('{"zero_optimisation": {"stage": 1}, "gradient_clipping": 1.0}')
    done = nano_ds("train", "-c", path, "--deepspeed_config", bad)
    complains(done, 2, "did you mean 'zero_optimization'?", "belongs in the recipe: optim.grad_clip")
    for text, word in (
        ('{"zero_optimization": {"stage": true}}', "stage must be 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}', "offload_optimizer must be an object"),
        ('{"zero_optimization": {"stge": 2}}', "DeepSpeed refuses this configuration"),
        ('{"optimizer": {"type": "Foo"}}', "DeepSpeed refuses this configuration"),
    ):
        bad.write_text(text)
        done = nano_ds("train", "-c", path, "--deepspeed_config", bad)
        assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr, done.stderr
    complains(nano_ds("train", "-c", path, "run.dir="), 2, "run.dir: is empty")
    done = nano_ds("train", "-c", path, "--resume", "none", "train.max_step=3")
    complains(done, 2, "did you mean train.max_steps?")


def test_data_that_does_not_fit(small_set: Path, tiny_run: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set)
    complains(nano_ds("train", "-c", path, "model.block_size=4096"), 2, "fewer than model.block_size 4096")
    other = tmp_path / "tokenizer.json"
    text = tmp_path / "text.txt"
    text.write_text("another text for another vocabulary\n" * 50)
    assert nano_ds("tokenizer", "trie", "--text", text, "--vocab-size", "300", "-o", other).returncode == 0
    complains(nano_ds("train", "-c", path, f"data.tokenizer={other}"), 2, "tokenizer", "prepare")
    complains(nano_ds("train", "-c", path, "data.sets=[]"), 2, "data.sets")
    complains(nano_ds("train", "-c", path, "train.batch_size=6", "train.micro_batch_size=4"), 2, "does not divide")


def test_model_files_and_prompts(tiny_run: Path, nano_infer_binary: Path, tmp_path: Path) -> None:
    binary = tiny_run / "run" / "model.bin"
    cut = tmp_path / "cut.bin"
    data = binary.read_bytes()
    for size in (0, 7, 255, 256, 3000, len(data) - 1):
        cut.write_bytes(data[:size])
        complains(run(nano_infer_binary, "run", cut, "-i", "the"), 2, "cut.bin")
        complains(nano_ds("import", cut, "-o", tmp_path / "imported"), 2, "cut.bin")
    assert not (tmp_path / "imported").exists()
    complains(run(nano_infer_binary, "run", tmp_path / "none.bin", "-i", "x"), 2, "none.bin")
    long = "the cat " * 100
    complains(run(nano_infer_binary, "run", binary, "-i", long), 2, "context")
    generate = [sys.executable, "inference/generate.py", "-m", tiny_run / "run" / "model", "--seed", "1"]
    complains(run(*generate, long), 2, "the prompt has", "shorten")
    complains(run(*generate, "-t", "-1", "the"), 2, "temperature")
    complains(run(*generate[:2], "-m", tmp_path / "nothing", "--seed", "1", "x"), 2, "nothing")
    complains(nano_ds("consolidate", tmp_path / "nothing", "-o", tmp_path / "m"), 2, "nothing")
    complains(nano_ds("export", tiny_run / "run", "-o", tmp_path / "x.bin"), 2, "consolidate it first")
    assert not list(tmp_path.glob(".*tmp*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or run("mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder).returncode != 0:
        pytest.skip("needs root and a kernel that mounts tmpfs")
    yield folder
    run("umount", folder)


def test_a_full_disk_is_said_and_nothing_is_left(
    small_disk: Path, small_set: Path, tiny_run: Path, nano_infer_binary: Path, tmp_path: Path
) -> None:
    def empty_again() -> None:
        left = [p for p in small_disk.rglob("*") if p.is_file()]
        assert left == [], left

    complains(nano_ds("export", tiny_run / "run" / "model", "-o", small_disk / "m.bin"), 1, "No space left")
    empty_again()
    complains(nano_ds("consolidate", tiny_run / "run", "-o", small_disk / "model"), 1, "No space left")
    empty_again()
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat and then another cat came\n\n" * 20000)
    args = ["--text", text, "--tokenizer", small_set / "tokenizer.json", "--out", small_disk / "set"]
    complains(nano_ds("prepare", *args), 1, "No space left")
    empty_again()
    filler = small_disk / "filler"
    with pytest.raises(OSError), open(filler, "wb", buffering=0) as f:
        while True:
            f.write(bytes(1024))
    args = [tiny_run / "run" / "model.bin", "-i", "the cat", "-n", "1", "--logits", small_disk / "logits"]
    done = run(nano_infer_binary, "run", *args)
    assert done.returncode == 1 and "cannot write" in done.stderr
    filler.unlink()
    empty_again()

    path = recipe(tmp_path / "r", small_set, eval_every=0, checkpoint_every=10)
    code, text_out = train(options(path, 1, f"run.dir={small_disk / 'run'}"))
    assert code == 1 and "Traceback" not in text_out and "free some space" in text_out, text_out
    assert not list((small_disk / "run" / "checkpoints").glob("*step-*"))
    shutil.rmtree(small_disk / "run")
    # Room by the estimate, but not for the log and the rest: the second checkpoint fails half-way.
    run("mount", "-o", "remount,size=1600k", small_disk)
    code, text_out = train(
        options(path, 1, f"run.dir={small_disk / 'run'}", "train.keep_last=9", "train.max_steps=200")
    )
    assert code == 1 and "Traceback" not in text_out and "free some space" in text_out, text_out
    assert not list((small_disk / "run" / "checkpoints").glob(".step-*"))


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = nano_ds("train", "--debug", "-c", tmp_path / "none.yaml")
    assert "Traceback" in done.stderr


def test_help_of_every_command_teaches() -> None:
    done = nano_ds("--help")
    assert done.returncode == 0
    from nano_ds.cli import COMMANDS

    for command in COMMANDS:
        assert command in done.stdout
        text = nano_ds(command, "--help").stdout
        assert f"nano-ds {command}" in text and len(text) > 400, command
    complains(nano_ds("tran"), 2, "did you mean train?")
