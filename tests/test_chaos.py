"""A run that is killed again and again ends as one that was left alone: bit for bit, and no torn checkpoint is used."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cluster.bench import RECORD, Bench, write_record
from cluster.chaos import rage
from cluster.forks import Forks
from safetensors.torch import load_file

from nano_ds.consolidate import consolidate

STEPS = 200
FULL = pytest.mark.full


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


def seed() -> int:
    """A new one each time; NANO_DS_SEED repeats what a failed test printed."""
    return int(os.environ.get("NANO_DS_SEED", random.SystemRandom().randrange(1 << 32)))


@pytest.mark.parametrize(
    ("kills", "stage", "only_saves", "supervised"),
    [
        (4, 1, False, False),
        pytest.param(25, 1, False, True, marks=FULL),
        pytest.param(30, 1, True, False, marks=FULL),
        pytest.param(25, 0, False, False, marks=FULL),
        pytest.param(25, 2, False, False, marks=FULL),
        pytest.param(25, 3, False, False, marks=FULL),
    ],
)
def test_a_run_killed_at_random_moments_ends_as_if_nothing_had_happened(
    kills: int, stage: int, only_saves: bool, supervised: bool, forks: Forks, small_set: Path, tmp_path: Path
) -> None:
    every = 4 if kills > 10 else 16
    more = (f"run.deepspeed_config=ds_configs/zero{stage}.json",)
    whole = Bench(tmp_path / "whole", small_set, forks, more=more, max_steps=STEPS, checkpoint_every=every)
    end = whole.start().end()
    assert end.code == 0, end.text
    bench = Bench(tmp_path / "chaos", small_set, forks, more=more, max_steps=STEPS, checkpoint_every=every)
    number = seed()
    print(f"seed {number}")
    done = rage(bench, kills, number, only_saves, supervised)
    print(*done.moments, sep="\n")
    losses, files = bench.result()
    assert losses == whole.result()[0] and list(losses) == list(range(1, STEPS + 1))
    assert files and files == whole.result()[1]
    models = []
    for b in (whole, bench):
        consolidate(b.run, b.folder / "model")
        models.append(load_file(b.folder / "model" / "model.safetensors"))
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][n], models[1][n]) for n in models[0])
    name = f"{kills} kills, ZeRO {stage}" + ", only inside saves" * only_saves + ", by `nano-ds train`" * supervised
    write_record(RECORD, "chaos", name, {"seed": number, "inside": done.inside, "steps_done_again": done.lost})
