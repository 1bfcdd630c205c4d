"""One model, one answer: PyTorch and C agree on logits, ids and text of a model that was trained here."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import ROOT, train
from test_training import options, recipe

from nano_ds.cli import main as nano_ds
from nano_ds.consolidate import consolidate
from nano_ds.generate import stream
from nano_ds.interop.nano_bin import NanoBin
from nano_ds.interop.nano_bin_import import import_model
from nano_ds.loading import load_model
from nano_ds.model import Transformer
from nano_ds.sampling import SamplerParams
from nano_ds.tokenizer import StreamDecoder, Tokenizer

CPU = torch.device("cpu")
PROMPTS = [
    "", "the cat", "a mat", "and then", "it rained", "another cat came", "sat on", "there", "while it", "to sit",
    "on a mat", "猫", "坐在", "naïve", "café", "the 猫 sat", " ", "cat\n\n", "came to sit there", "😀 unseen ꀀ",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model trained for a few hundred steps, consolidated, and exported in every way that the C program reads."""
    folder = tmp_path_factory.mktemp("trained")
    path = recipe(folder, small_set, max_steps=150, eval_every=0, checkpoint_every=0)
    keys = ["model.block_size=256", "model.n_embd=128", "model.n_layer=3"]
    code, text = train(options(path, 1, *keys))
    assert code == 0, text
    consolidate(folder / "run", folder / "model")
    for version in ("2026.1", "2024.10"):
        for quant in ("f32", "q80"):
            out = folder / f"{version}-{quant}.bin"
            args = ["export", str(folder / "model"), "-o", str(out), "--quant", quant, "--bin-version", version]
            assert nano_ds(args) == 0
    model, tokenizer = load_model(folder / "model", CPU, torch.float32)
    greedy = SamplerParams(temperature=0, repetition_penalty=1.0)
    wanted = [generate(model, tokenizer, tokenizer.encode(p) or [tokenizer.eos_id], greedy, 200) for p in PROMPTS]
    return {"folder": folder, "model": model, "tokenizer": tokenizer, "greedy": wanted}


def nano_infer(binary: Path, *args: str | Path) -> dict[str, Any]:
    return infer([binary, "run", *args])


def infer(command: Sequence[str | Path]) -> dict[str, Any]:
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


def logits_of(model: Transformer, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        out: np.ndarray = model(torch.tensor([ids]))[0].numpy()
    return out


def generate(model: Transformer, tokenizer: Tokenizer, ids: list[int], params: SamplerParams, n: int) -> dict[str, Any]:
    stop = [i for name, i in tokenizer.special.items() if name in ("<|eos|>", "<|padding|>")]
    made = list(stream(model, ids, params, n, stop))
    decoder = StreamDecoder(tokenizer)
    return {"ids": made, "text": "".join([decoder.feed(i) for i in made]) + decoder.finish()}


@pytest.mark.parametrize("version", ["2026.1", "2024.10"])
def test_greedy_text_and_logits_are_the_same_in_pytorch_and_c(
    version: str, trained: dict[str, Any], nano_infer_binary: Path, tmp_path: Path
) -> None:
    model, tokenizer = trained["model"], trained["tokenizer"]
    lengths = []
    for prompt, wanted in zip(PROMPTS, trained["greedy"], strict=True):
        ids = tokenizer.encode(prompt) or [tokenizer.eos_id]
        file = trained["folder"] / f"{version}-f32.bin"
        how = ["-i", prompt, "-t", "0", "-r", "1", "-n", "200", "--logits", tmp_path / "logits"]
        got = nano_infer(nano_infer_binary, file, *how)
        assert got["prompt_ids"] == ids
        assert (got["ids"], got["text"]) == (wanted["ids"], wanted["text"])
        reference = logits_of(model, ids)
        logits = np.fromfile(tmp_path / "logits", "<f4").reshape(reference.shape)
        assert np.abs(logits - reference).max() <= 1e-4 * np.abs(reference).max()
        lengths.append(len(got["ids"]))
    assert max(lengths) == 200


@pytest.mark.parametrize("version", ["2026.1", "2024.10"])
def test_q80_logits_are_those_of_the_dequantised_weights(
    version: str, trained: dict[str, Any], nano_infer_binary: Path, tmp_path: Path
) -> None:
    file = trained["folder"] / f"{version}-q80.bin"
    import_model(NanoBin(file), tmp_path / "dequantised")
    model, tokenizer = load_model(tmp_path / "dequantised", CPU, torch.float32)
    assert tokenizer is not None
    exact = logits_of(trained["model"], tokenizer.encode(PROMPTS[1]))
    for prompt in PROMPTS:
        how = ["-i", prompt, "-t", "0", "-n", "1", "--logits", tmp_path / "logits"]
        got = nano_infer(nano_infer_binary, file, "--kernels", "exact", *how)
        reference = logits_of(model, got["prompt_ids"])
        logits = np.fromfile(tmp_path / "logits", "<f4").reshape(reference.shape)
        assert np.abs(logits - reference).max() <= 1e-3 * np.abs(reference).max()
        nano_infer(nano_infer_binary, file, *how[:-1], tmp_path / "rounded")  # activations of 8 bits
        rounded = np.fromfile(tmp_path / "rounded", "<f4").reshape(reference.shape)
        assert np.sqrt(np.mean((rounded - reference) ** 2)) <= 0.06 * reference.std()
    assert not np.allclose(exact, logits_of(model, tokenizer.encode(PROMPTS[1])), rtol=0, atol=1e-6)


def command_of(kernels: str, native: Path) -> list[str | Path]:
    """The C program for a machine with these kernels: this one, or an ARM core that qemu plays."""
    core = {"neon": "cortex-a72", "dotprod": "cortex-a76", "i8mm": "max"}.get(kernels)
    if core is None or platform.machine() == "aarch64":
        refused = subprocess.run([native, "run", "nothing.bin", "-i", "x", "--kernels", kernels], capture_output=True)
        if b"no kernels" in refused.stderr:
            pytest.skip(f"this machine has no {kernels}")
        return [native]
    program, qemu = ROOT / "runtime_c" / "build-aarch64" / "nano-infer", shutil.which("qemu-aarch64-static")
    if not qemu or not program.exists():
        pytest.skip("no qemu-aarch64-static, or `make -C runtime_c aarch64` has not run")
    return [qemu, "-cpu", core, program]


@pytest.mark.parametrize("kernels", ["avx512", "avxvnni", "avx2", "scalar", "neon", "dotprod", "i8mm"])
def test_every_machine_says_the_same(
    kernels: str, trained: dict[str, Any], nano_infer_binary: Path, tmp_path: Path
) -> None:
    command, logits = command_of(kernels, nano_infer_binary), {}
    for quant in ("f32", "q80"):
        file = trained["folder"] / f"2026.1-{quant}.bin"
        for prompt, wanted in zip(PROMPTS[1:4], trained["greedy"][1:4], strict=True):
            how: list[str | Path] = ["-i", prompt, "-t", "0", "-r", "1", "-n", "60", "--logits", tmp_path / "logits"]
            got = infer([*command, "run", file, *how, "--kernels", kernels])
            found = np.fromfile(tmp_path / "logits", "<f4")
            if quant == "f32":
                assert got["ids"] == wanted["ids"][:60]
                reference = logits_of(trained["model"], got["prompt_ids"]).ravel()
                assert np.abs(found - reference).max() <= 1e-4 * np.abs(reference).max()
                logits[prompt] = found
            else:  # 8 bits, of weights and of activations
                assert np.sqrt(np.mean((found - logits[prompt]) ** 2)) <= 0.06 * logits[prompt].std()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.0},
        {"temperature": 1.5, "top_k": 40, "repetition_penalty": 1.3},
        {"temperature": 0, "repetition_penalty": 1.5},
        {"top_k": 0, "top_p": 0.3, "seed": 0},
    ],
)
def test_one_seed_gives_one_text_everywhere(
    options: dict[str, float], trained: dict[str, Any], nano_infer_binary: Path
) -> None:
    for seed in (1, 2**63 + 5):
        params = SamplerParams(**{"seed": seed, **options})  # type: ignore[arg-type]
        how = ["-t", params.temperature, "-k", params.top_k, "-p", params.top_p, "-r", params.repetition_penalty]
        how += ["--seed", params.seed]
        for prompt in PROMPTS[:4]:
            ids = trained["tokenizer"].encode(prompt) or [trained["tokenizer"].eos_id]
            wanted = generate(trained["model"], trained["tokenizer"], ids, params, 40)
            file = trained["folder"] / "2026.1-f32.bin"
            got = nano_infer(nano_infer_binary, file, "-i", prompt, "-n", "40", *map(str, how))
            assert got["ids"] == wanted["ids"], (params, prompt)


def test_tokenizers_agree_on_any_text(trained: dict[str, Any], nano_infer_binary: Path) -> None:
    rng = np.random.default_rng(0)
    file = trained["folder"] / "2026.1-f32.bin"
    alphabet = [*"the cat sat  \n\t<|eos|>é猫坐在😀ꀀ\u200b\x01\x7f", "<|bos|>", "another", "it rained"]
    for _ in range(60):
        text = "".join(rng.choice(alphabet, rng.integers(1, 40)))
        for special in (False, True):
            command = [nano_infer_binary, "tokenize", file, text, *(["--special"] if special else [])]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert list(map(int, done.stdout.split())) == trained["tokenizer"].encode(text, allow_special=special)
