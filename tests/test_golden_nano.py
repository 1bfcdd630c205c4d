"""Files that Nano's own programs wrote, and what those programs answered: Python and C must answer the same.

The files are not ours to ship: the environment variable NANO_GOLDEN names a folder that holds them.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nano_ds import lora
from nano_ds.generate import position_wise, stream
from nano_ds.interop.nano_bin import NanoBin
from nano_ds.interop.nano_bin_import import import_model
from nano_ds.loading import load_model
from nano_ds.model import Transformer
from nano_ds.sampling import SamplerParams
from nano_ds.tokenizer import Tokenizer

MODELS = (
    "v2024_10/base_f32.bin",
    "v2024_10/base_q80.bin",
    "v2026_1/base_f32.bin",
    "v2026_1/base_q80.bin",
    "v2026_1/v1_h_q4k.bin",
    "quirks/e64_f32.bin",
    "quirks/e64_q80.bin",
    "quirks/base_q4k_BROKEN_w2.bin",
    "quirks/sort6_2025.12_f32.bin",
)
GREEDY = SamplerParams(temperature=0, repetition_penalty=1.0)


@pytest.fixture(scope="session")
def answers(nano_golden: Path) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = json.loads((nano_golden / "outputs.json").read_text())
    return answers


@pytest.fixture(scope="session")
def models(nano_golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Transformer, Tokenizer]]:
    """Every golden model, imported and loaded."""
    out = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp("golden") / "model"
        import_model(NanoBin(nano_golden / name, causal="sort6" not in name), folder)
        model, tokenizer = load_model(folder, torch.device("cpu"), torch.float32)
        assert tokenizer is not None
        out[name] = (model, tokenizer)
    return out


def fp32_cases(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was answered greedily by fp32 models (Nano quantises activations too where weights are quantised)."""
    return [a for a in answers if "_f32" in a["file"] and a["temperature"] == 0]


def wanted_logits(golden: Path, case: dict[str, Any], vocab_size: int) -> np.ndarray:
    return np.fromfile(golden / case["logits_file"], "<f4").reshape(len(case["prompt_ids"]), vocab_size)


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_pytorch_gives_nanos_logits_and_text(
    nano_golden: Path, models: dict[str, tuple[Transformer, Tokenizer]], answers: list[dict[str, Any]]
) -> None:
    seen = 0
    for case in fp32_cases(answers):
        model, tokenizer = models[case["file"]]
        assert tokenizer.encode(case["prompt"], allow_special=True) == case["prompt_ids"]
        if case["lora"]:
            lora.load(model, nano_golden / case["lora"])
        try:
            if case["logits_file"]:
                with torch.no_grad():
                    got = model(torch.tensor([case["prompt_ids"]]))[0].numpy()
                close(got, wanted_logits(nano_golden, case, model.config.vocab_size))
            new = list(stream(model, case["prompt_ids"], GREEDY, len(case["output_ids"])))
            assert new == case["output_ids"], case["prompt"]
        finally:
            lora.remove(model)
        seen += 1
    assert seen >= 15


def test_quantised_files_are_near_the_fp32_ones(models: dict[str, tuple[Transformer, Tokenizer]]) -> None:
    for exact, quantised in (
        ("v2026_1/base_f32.bin", "v2026_1/base_q80.bin"),
        ("v2024_10/base_f32.bin", "v2024_10/base_q80.bin"),
        ("quirks/e64_f32.bin", "quirks/e64_q80.bin"),
    ):
        for (name, a), (_, b) in zip(
            models[exact][0].named_parameters(), models[quantised][0].named_parameters(), strict=True
        ):
            # A wrong group size would shift the scales and put whole rows off.
            assert (a - b).abs().max() <= a.abs().max() / 127 * 0.51, name


def test_the_sorter_sorts(models: dict[str, tuple[Transformer, Tokenizer]]) -> None:
    model, tokenizer = models["quirks/sort6_2025.12_f32.bin"]
    assert tokenizer.decode(position_wise(model, tokenizer.encode("251212"))) == "112225"


def nano_infer(binary: Path, *args: str | Path) -> dict[str, Any]:
    done = subprocess.run([binary, "run", *args, "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


def test_c_gives_nanos_logits_and_text(
    nano_golden: Path, nano_infer_binary: Path, answers: list[dict[str, Any]], tmp_path: Path
) -> None:
    for case in fp32_cases(answers):
        args = ["-i", case["prompt"], "--special", "-t", "0", "-r", "1", "-n", str(len(case["output_ids"]))]
        if case["lora"]:
            args += ["-l", str(nano_golden / case["lora"])]
        if case["logits_file"]:
            args += ["--logits", str(tmp_path / "logits")]
        got = nano_infer(nano_infer_binary, nano_golden / case["file"], *args)
        assert got["prompt_ids"] == case["prompt_ids"]
        assert got["ids"] == case["output_ids"], case["prompt"]
        if case["logits_file"]:
            close(
                np.fromfile(tmp_path / "logits", "<f4").reshape(len(case["prompt_ids"]), -1),
                wanted_logits(nano_golden, case, 4096),
            )


@pytest.mark.parametrize("name", MODELS)
def test_c_gives_the_logits_of_the_dequantised_weights(
    name: str,
    nano_golden: Path,
    nano_infer_binary: Path,
    models: dict[str, tuple[Transformer, Tokenizer]],
    tmp_path: Path,
) -> None:
    model, tokenizer = models[name]
    text = "251212" if "sort6" in name else "精神分析的 abc"
    ids = tokenizer.encode(text)
    how = ["--no-causal"] if "sort6" in name else ["-n", "1", "-t", "0"]
    how += [] if "f32" in name else ["--kernels", "exact"]  # the others round activations to 8 bits
    got = nano_infer(nano_infer_binary, nano_golden / name, "-i", text, "--logits", tmp_path / "logits", *how)
    assert got["prompt_ids"] == ids
    with torch.no_grad():
        wanted = model(torch.tensor([ids]))[0].numpy()
    logits = np.fromfile(tmp_path / "logits", "<f4").reshape(wanted.shape)
    if "BROKEN" in name:
        return  # damaged by its writer: both programs read it, its numbers mean nothing
    assert np.abs(logits - wanted).max() <= (1e-4 if "f32" in name else 1e-3) * np.abs(wanted).max()
