"""Memory per rank: the formulas by hand, and against the memory that real training takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import ROOT

from nano_ds.cli import main
from nano_ds.config import ModelConfig
from nano_ds.estimate import activation_bytes, predict
from nano_ds.model import parameter_count

MODEL = ModelConfig(vocab_size=1000, n_layer=3, n_head=4, n_kv_head=2, n_embd=64, block_size=8)
P = parameter_count(MODEL)["total"]


def zero(stage: int, **keys: object) -> dict[str, object]:
    return {"zero_optimization": {"stage": stage, **keys}}


def test_what_is_kept_is_that_of_the_paper() -> None:
    """bf16: 2 of weights, 12 of states; stage 1 divides the states, 3 the weights too (gradients are transient)."""
    for ranks in (1, 4, 64):
        one, two, three = (predict(MODEL, zero(s), ranks, True, 1, gpu=False) for s in (1, 2, 3))
        assert one.weights == two.weights == 2 * P and three.weights == 2 * P / ranks
        assert one.states == two.states == three.states == 12 * P / ranks
        assert three.gradients == 4 * P / ranks
    none = predict(MODEL, zero(0), 4, False, 1, gpu=False)
    assert none.kept == 12 * P


def test_buckets_are_whole_on_a_gpu_and_follow_the_configuration() -> None:
    whole = predict(MODEL, zero(2), 64, True, 1, gpu=True)
    small = predict(MODEL, zero(2, reduce_bucket_size=10_000), 64, True, 1, gpu=True)
    assert whole.backward - small.backward == pytest.approx(2 * (500_000_000 - 10_000) + 2 * (P - 10_000))
    assert predict(MODEL, zero(2), 64, True, 1, gpu=False).backward < whole.backward / 100


def test_offload_moves_bytes_to_the_host() -> None:
    cpu = {"device": "cpu"}
    here = predict(MODEL, zero(3), 2, True, 1, gpu=False)
    there = predict(MODEL, zero(3, offload_optimizer=cpu, offload_param=cpu), 2, True, 1, gpu=False)
    assert there.weights == there.states == there.gradients == 0
    # DeepSpeed holds the gradients twice there: one flat buffer, and what the optimiser reads.
    assert there.host == here.weights + here.states + 2 * here.gradients


def test_activations_grow_with_tokens_layers_and_bytes() -> None:
    one = activation_bytes(MODEL, 1, 4)
    assert activation_bytes(MODEL, 6, 4) == 6 * one
    assert activation_bytes(replace(MODEL, block_size=16), 3, 4) == 6 * one
    assert activation_bytes(MODEL, 1, 2) == pytest.approx(one / 2, rel=0.05)
    layer = activation_bytes(replace(MODEL, n_layer=4), 1, 4) - one
    # 6 C + 5 H D + 4 F numbers of four bytes, and a sum per head and norm, for each of 8 tokens.
    assert layer == 8 * (4 * (6 * 64 + 5 * 64 + 4 * MODEL.hidden) + 4 * (4 + 2))


def test_the_command_prints_every_stage_and_offload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {n_embd: 64, n_head: 4, n_kv_head: 4, n_layer: 2}")
    assert main(["estimate", "-c", str(recipe), "--devices", "4", "train.batch_size=8"]) == 0
    out = capsys.readouterr().out
    assert "4 device(s) (CPU), 2 x 256 tokens at once" in out
    for row in ("  0 ", "  1 ", "  2 ", "  3 ", "  2, offload of optimizer", "  3, offload of optimizer and param"):
        assert row in out
    assert main(["estimate", "-c", str(recipe), "--devices", "3", "train.batch_size=8"]) == 2


def measured(*options: str) -> list[dict[str, float]]:
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--json", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from /proc")
FULL = pytest.mark.full


@LINUX
@pytest.mark.parametrize(
    "options",
    [
        "--stages 2 --worlds 2 --dtypes bf16",
        pytest.param("", marks=FULL, id="every-stage"),
        pytest.param("--worlds 2 --stages 1 2 3 --bucket 4000000", marks=FULL, id="small-buckets"),
        pytest.param("--worlds 1 --stages 1 --length 512 --micro-batch 4", marks=FULL, id="activations"),
        pytest.param("--worlds 1 --stages 2 3 --dtypes bf16 --offload optimizer both", marks=FULL, id="offload"),
    ],
)
def test_real_training_takes_what_is_predicted(options: str) -> None:
    """28 million parameters in fresh processes, to 15 %."""
    rows = measured(*options.split())
    assert rows
    wrong = [r for r in rows if abs(r["predicted"] / r["measured"] - 1) > 0.15]
    assert not wrong, wrong
