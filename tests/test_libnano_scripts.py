"""The scripts and `nano-ds eval` with the C library: they say what they say with PyTorch."""

# ruff: noqa: F811 (fixtures are imported, then named as parameters)

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bin_helpers import make_model_dir
from libnano_helpers import GREEDY, ROOT, files, model, reference, run_script, shared_library  # noqa: F401 (fixtures among them)

from nano_ds import chat
from nano_ds.cli import main as nano_ds
from nano_ds.evaluate import cross_entropy, mean_loss, mean_loss_c
from nano_ds.generate import stream
from nano_ds.generate_base import Timing
from nano_ds.libnano import Model
from nano_ds.libnano.engine import CEngine
from nano_ds.tokenizer import TrieTokenizer

# ---- the scripts


def test_generate_says_the_same_in_c(files: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def generate(*args: object) -> str:
        code, out, err = run_script("generate", capsys, *args)
        assert code == 0, err
        return out

    for how in (
        ["--seed", 7, "-n", 30, "the cat"],
        ["-t", 0, "-n", 20, "-s", 15, "naïve 猫"],
        ["--seed", 3, "-i", "-n", 20, "the cat <|eos|>"],
        ["--seed", 3, "--special", "-n", 20, "the cat<|eos|>"],
        ["-t", 0.8, "-k", 40, "-p", 0.9, "-r", 1.1, "--seed", 5, ""],
    ):
        wanted = generate("-m", files.model, "--json", *how)
        assert generate("-m", files.model_bin, "--json", *how) == wanted
        assert len(json.loads(wanted)["ids"]) > 1
        assert generate("-m", files.model_bin, "--engine", "c", *how) == json.loads(wanted)["text"] + "\n"
        assert generate("-m", files.model_gguf, "--json", *how) == wanted
        adapted = generate("-m", files.model, "-l", files.adapter, "--json", *how)
        assert generate("-m", files.model_gguf, "-l", files.adapter_gguf, "--json", *how) == adapted
        assert generate("-m", files.model_bin, "-l", files.adapter_bin, "-j", 1, "--json", *how) == adapted != wanted
    full = generate("-m", files.full, "the cat")
    assert generate("-m", files.full_bin, "--no-causal", "the cat") == full
    code, _, err = run_script("generate", capsys, "-m", files.model_bin, "-n", 3, "-j", 2, "--profile", "the")
    assert code == 0 and "tok/s" in err and "C engine, 2 threads" in err and err.splitlines()[0].startswith("seed ")


def test_what_does_not_go_with_an_engine_is_refused(
    files: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for which, args, wanted in (
        ("generate", ["-m", files.model, "--engine", "c"], f"nano-ds export {files.model} -o model.bin"),
        ("generate", ["-m", files.model_bin, "--engine", "torch"], f"nano-ds import {files.model_bin} -o DIR"),
        ("ds_generate", ["-m", files.model_bin], f"nano-ds import {files.model_bin} -o DIR"),
        ("generate", ["-m", tmp_path / "no.bin"], "no such file"),
        ("generate", ["-m", files.model_bin, "--dtype", "bf16"], "--dtype: belongs to PyTorch"),
        ("generate", ["-m", files.model_bin, "--device", "cuda"], "--device: belongs to PyTorch"),
        ("generate", ["-m", files.model, "--no-causal"], "--no-causal: belongs to model files"),
        ("generate", ["-m", files.model_bin, "-l", files.adapter], "nano-ds export BASE_MODEL_DIR --lora"),
        ("generate", ["-m", files.model_bin, "-l", files.model_bin], "this is a model"),
        ("generate", ["-m", files.adapter_bin], "adapter"),
        ("generate", ["-m", files.model_bin, "-j", "0"], "-j: 0 is out of range"),
        ("generate", ["-m", files.model_bin, "-s", "3"], "shorten the prompt"),
    ):
        code, out, err = run_script(which, capsys, *args, "--seed", "1", "the cat sat on a mat")
        assert (code, out) == (2, "") and wanted in err and err.count("\n") == 1, (args, err)


def test_the_c_engine_needs_no_pytorch(files: SimpleNamespace, tmp_path: Path) -> None:
    """The scripts as a user runs them, where importing torch fails."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for name, stdin in (("generate.py", "the cat"), ("chat.py", "the cat\na mat\n")):
        command = [sys.executable, f"inference/{name}", "-m", str(files.model_bin), "--seed", "1", "-n", "5"]
        how = {"capture_output": True, "text": True, "timeout": 120, "input": stdin, "cwd": ROOT, "env": environment}
        done = subprocess.run(command, **how)  # type: ignore[call-overload]
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
        done = subprocess.run([*command[:3], str(files.model), "--seed", "1"], **how)  # type: ignore[call-overload]
        assert done.returncode == 1 and "no torch here" in done.stderr


def test_the_example_of_the_c_readme_runs(files: SimpleNamespace) -> None:
    found = re.findall(r"```python\n(.*?)```", (ROOT / "runtime_c" / "README.md").read_text(), re.S)
    assert len(found) == 1
    done = subprocess.run(
        [sys.executable, "-c", found[0]],
        capture_output=True, text=True, timeout=60, cwd=files.folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and len(done.stdout) > 5, done.stderr


def test_chat_says_the_same_in_c(
    files: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for source in (files.model, files.model_bin):
        questions = iter(["the cat", "a mat", "it rained", "sat on"])
        monkeypatch.setattr("builtins.input", lambda prompt, q=questions: next(q, ""))
        monkeypatch.setattr("sys.argv", ["chat.py", "-m", str(source), "--seed", "4", "-n", "12"])
        assert chat.main("") == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and said[0].count("\n") >= 4


def test_a_prompt_that_goes_on_computes_only_what_is_new(model: Model, reference: Any) -> None:
    engine = CEngine(model, threads=1)
    ids = model.tokenize("the cat sat")
    made = list(islice(engine.stream(ids, GREEDY, 60), 6))
    assert made == list(stream(reference, ids, GREEDY, 6))

    def ask(prompt: list[int]) -> tuple[list[int], int]:
        timing = Timing()
        answer = list(engine.stream(prompt, GREEDY, 4, timing=timing))
        assert answer == list(stream(reference, prompt, GREEDY, 4))
        return answer, timing.prompt_tokens

    longer = [*ids, *made, 5, 6]
    answer, computed = ask(longer)
    assert computed == 2  # all that was yielded is there
    assert ask(longer) == (answer, 0)  # the session holds more than this, which is dropped
    assert ask([*longer, *answer])[1] == 0
    assert ask([*ids, 9])[1] == 1
    engine.position_wise([7, *ids])
    assert ask([*ids, 9, 9])[1] == len(ids) + 2
    assert list(islice(engine.stream(ids, GREEDY, 90), 6)) == made  # more room than the session had


# ---- nano-ds eval


def test_eval_of_a_file_agrees_with_pytorch(
    files: SimpleNamespace, model: Model, reference: Any, tokenizer: TrieTokenizer, small_set: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for batches, size, block in ((0, 3, 0), (2, 2, 0), (0, 8, 20)):
        wanted = mean_loss(reference, tokenizer, str(small_set), batches, size, block)
        got = mean_loss_c(model, str(small_set), batches, size, block, threads=1)
        assert got.tokens == wanted.tokens > 100
        assert abs(got.loss - wanted.loss) < 1e-5
        assert abs(got.bits_per_byte - wanted.bits_per_byte) < 1e-5
    printed = []
    for source in (files.model, files.model_bin, files.model_q80_bin, files.model_gguf):
        assert nano_ds(["eval", str(source), "--loss", str(small_set), "--batches", "0", "-j", "1"]) == 0
        printed.append(dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines()))
    assert printed[0] == printed[1] == printed[3] != printed[2]
    assert abs(float(printed[2]["perplexity"]) / float(printed[1]["perplexity"]) - 1) < 0.2


def test_eval_refuses_a_set_of_another_vocabulary(
    model: Model, small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: SimpleNamespace
) -> None:
    make_model_dir(tmp_path / "small")
    assert nano_ds(["export", str(tmp_path / "small"), "-o", str(tmp_path / "small.bin")]) == 0
    capsys.readouterr()
    assert nano_ds(["eval", str(tmp_path / "small.bin"), "--loss", str(small_set)]) == 2
    assert "made with a vocabulary of 400 tokens" in capsys.readouterr().err
    assert nano_ds(["eval", str(files.model_bin), "--loss", str(small_set), "--dtype", "bf16"]) == 2
    assert "--dtype: belongs to PyTorch" in capsys.readouterr().err
    for source in (files.model, files.model_bin):
        assert nano_ds(["eval", str(source), "--loss", str(small_set), "--block-size", "97"]) == 2
        assert "--block-size: 97 is more than the model's context of 96" in capsys.readouterr().err
    assert nano_ds(["eval", str(tmp_path / "none.bin"), "--loss", str(small_set)]) == 2
    assert "no such file" in capsys.readouterr().err


def test_cross_entropy_is_exact_for_large_logits() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 300, (6, 50)).astype(np.float32)
    targets = np.array([3, -100, 7, 49, 0, -100])
    wanted = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(targets), reduction="none", ignore_index=-100
    ).numpy()
    np.testing.assert_allclose(cross_entropy(logits, targets), wanted[targets >= 0], rtol=1e-12)
