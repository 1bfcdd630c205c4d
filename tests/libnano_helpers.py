"""A small model of random weights for the tests of the C library from Python: fixtures, and what compares logits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nano_ds import generate_script, lora
from nano_ds.cli import guard
from nano_ds.cli import main as nano_ds
from nano_ds.config import ModelConfig
from nano_ds.generate_args import parser
from nano_ds.interop.vocabulary import Vocabulary
from nano_ds.libnano import Model, native
from nano_ds.loading import load_model
from nano_ds.model_dir import expected_shapes, new_meta, write_model_dir
from nano_ds.sampling import SamplerParams
from nano_ds.tokenizer import TrieTokenizer

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "runtime_c" / "include" / "nano.h"
CPU = torch.device("cpu")
GREEDY = SamplerParams(temperature=0, repetition_penalty=1.0)
TEXT = "the cat sat on a mat 猫 坐 naïve café"


@pytest.fixture(scope="session", autouse=True)
def shared_library(nano_infer_binary: Path) -> Path:
    """Built by `make`, as the program is."""
    path = nano_infer_binary.with_name(native.NAME)
    if not path.exists():
        subprocess.run(["make", "-s", "-C", str(ROOT / "runtime_c")], check=True)
    return path


@pytest.fixture(scope="module")
def files(tokenizer: TrieTokenizer, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model of random weights, large enough that its logits differ well, as a directory and as files; an adapter."""
    folder = tmp_path_factory.mktemp("libnano")
    rng = np.random.default_rng(3)
    for name, causal in (("model", True), ("full", False)):
        shape = {"block_size": 96, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "n_hidden": 128}
        config = ModelConfig(vocab_size=tokenizer.vocab_size, is_causal=causal, **shape)
        with write_model_dir(
            folder / name, config, Vocabulary(tokenizer.tokens, [*tokenizer.special.values()]), new_meta(step=1)
        ) as writer:
            for tensor, dims in expected_shapes(config).items():
                writer.write(tensor, rng.normal(0, 0.3, dims).astype(np.float32))
    model, _ = load_model(folder / "model", CPU, torch.float32)
    torch.manual_seed(1)
    lora.inject(model, 4, 8.0)
    for _, layer in lora.adapted(model):
        torch.nn.init.normal_(layer.lora_b, std=0.3)
    lora.save(model, folder / "adapter")
    for args in (
        ["model", "-o", "model.bin"],
        ["model", "-o", "model-q80.bin", "--quant", "q80"],
        ["model", "-o", "model.gguf"],
        ["model", "--lora", "adapter", "-o", "adapter.bin"],
        ["model", "--lora", "adapter", "-o", "adapter.gguf"],
        ["full", "-o", "full.bin", "--allow-noncausal"],
    ):
        named = [str(folder / a) if re.match(r"[mfa]", a) else a for a in args]
        assert nano_ds(["export", *named]) == 0
    made = {path.name.replace(".", "_").replace("-", "_"): path for path in folder.iterdir()}
    return SimpleNamespace(folder=folder, **made)


@pytest.fixture(scope="module")
def model(files: SimpleNamespace) -> Model:
    return Model.open(files.model_bin)


@pytest.fixture(scope="module")
def reference(files: SimpleNamespace) -> Any:
    return load_model(files.model, CPU, torch.float32)[0]


def torch_logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        out: np.ndarray = model(torch.tensor([ids]))[0].numpy()
    return out


def close_to(got: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max())


def run_script(which: str, capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """generate.py or ds_generate.py with these arguments, in this process."""
    deepspeed = which == "ds_generate"
    made = generate_script.add_prompt(parser("", engines=not deepspeed), engines=not deepspeed)
    parsed = made.parse_args(list(map(str, args)))
    capsys.readouterr()
    code = guard("generate", lambda: generate_script.run(parsed, deepspeed))
    said = capsys.readouterr()
    return code, said.out, said.err


def python(code: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the code in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT)
