"""Executed instructions per token on an ARM core do not grow: the one measure of speed there that repeats exactly."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from bin_helpers import random_tensors
from ranks import ROOT

from nano_ds.cli import main as nano_ds
from nano_ds.config import ModelConfig
from nano_ds.interop.vocabulary import Vocabulary
from nano_ds.model_dir import new_meta, write_model_dir

# Millions per decoded and per prefilled token of the model below. When work on the kernels makes them fewer, write the
# new figures here; docs/performance.md has those of a real model.
RECORDED = {
    ("q4_0", "cortex-a76"): (0.3827, 0.2962),
    ("q8_0", "cortex-a76"): (0.3228, 0.2906),
    ("q4_0", "cortex-a72"): (0.7069, 0.6818),
}
MAY_GROW = 1.03


@pytest.mark.parametrize(("quant", "core"), RECORDED)
def test_instructions_per_token_do_not_grow(quant: str, core: str, tmp_path: Path) -> None:
    if not shutil.which("qemu-aarch64") or not shutil.which("gcc"):
        pytest.skip("no qemu-aarch64 with plugins (apt-get install qemu-user), or no gcc")
    if not (ROOT / "runtime_c" / "build-aarch64" / "nano-infer").exists():
        pytest.skip("`make -C runtime_c aarch64` has not run")
    config = ModelConfig(
        n_layer=2, n_embd=256, n_head=4, n_kv_head=2, n_hidden=768, vocab_size=512, block_size=256, norm_eps=1e-5
    )
    tensors = random_tensors(config)
    vocabulary = Vocabulary(["<|unknown|>", *(chr(0x4E00 + i) for i in range(511))], [0])
    with write_model_dir(tmp_path / "model", config, vocabulary, new_meta()) as writer:
        for name in writer.names:
            writer.write(name, tensors[name])
    assert nano_ds(["export", str(tmp_path / "model"), "-o", str(tmp_path / "m.gguf"), "--quant", quant]) == 0
    done = subprocess.run(
        [ROOT / "benchmarks" / "arm" / "instructions.sh", tmp_path / "m.gguf", core],
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"([\d.]+) M instructions per decoded token, ([\d.]+) M per prefilled", done.stdout)
    assert found, done.stdout
    for now, then, step in zip(
        map(float, found.groups()), RECORDED[quant, core], ("decoded", "prefilled"), strict=True
    ):
        assert now <= then * MAY_GROW, f"{now} M instructions per {step} token, {then} were recorded"
