"""What a run of several processes shows of its pace: shares of waiting, throughput per node, the slow rank."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from ranks import ROOT, finish, start, train
from test_training import recipe

from nano_ds.pace import RankTime, summary


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_arithmetic_of_nodes_waiting_and_stragglers() -> None:
    # Three ranks on two nodes; rank 2 works 0.9 s of a step of 1 s, the others 0.5 s and wait for it.
    ranks = [RankTime("a", 1.0, 0.5), RankTime("a", 1.0, 0.5), RankTime("b", 1.0, 0.1)]
    values = summary(ranks, 300.0)
    assert values["nodes/a/tokens_per_s"] == pytest.approx(200) and values["nodes/b/tokens_per_s"] == pytest.approx(100)
    assert values["nodes/a/busy"] == pytest.approx(0.5) and values["nodes/b/busy"] == pytest.approx(0.9)
    assert values["comm/share"] == pytest.approx(1.1 / 3)
    assert values["comm/wait_share"] == pytest.approx(1.1 / 3 - 0.1)
    assert values["straggler/rank"] == 2 and values["straggler/ratio"] == pytest.approx(1.8)
    assert values["slow"] == "rank 2 on b is 1.8x slower than the rest"


def test_nobody_is_named_for_a_trifle() -> None:
    # Twice the work of the others, but a hundredth of the step.
    values = summary([RankTime("a", 1.0, 0.98), RankTime("b", 1.0, 0.99)], 100.0)
    assert values["straggler/ratio"] == pytest.approx(2) and "slow" not in values
    # A fifth more than the others is within the noise of shared machines.
    assert "slow" not in summary([RankTime("a", 1.0, 0.3), RankTime("b", 1.0, 0.16)], 100.0)


@pytest.mark.parametrize("stage", [1, *(pytest.param(s, marks=pytest.mark.full) for s in (0, 2, 3))])
def test_a_slow_rank_is_named(stage: int, small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set, max_steps=8, log_every=4, eval_every=0, checkpoint_every=0)
    args = ["-c", str(path), "--deepspeed", "--deepspeed_config", f"ds_configs/zero{stage}.json"]
    code, text = finish(start(ROOT / "tests" / "slow_rank.py", ["1", "0.3", *args], 2))
    assert code == 0, text
    last = log(tmp_path / "run")[-1]
    host = socket.gethostname()
    assert last["straggler/rank"] == 1
    assert last["slow"] in text and re.fullmatch(
        rf"rank 1 on {re.escape(host)} is .*x slower than the rest", last["slow"]
    )
    # Rank 0 waits for most of the step, rank 1 hardly.
    assert 0.3 < last["comm/share"] < 0.6 and last["comm/wait_share"] > 0.25
    assert last[f"nodes/{host}/tokens_per_s"] == pytest.approx(last["tokens_per_s"])

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert {f"nodes/{host}/busy", "comm/share", "comm/wait_share", "straggler/ratio"} <= set(board.Tags()["scalars"])


def test_one_process_shows_none_of_it(small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set, max_steps=4, eval_every=0, checkpoint_every=0)
    code, text = train(["-c", str(path), "--deepspeed"])
    assert code == 0, text
    assert not any("/" in key or key == "slow" for row in log(tmp_path / "run") for key in row)


@pytest.mark.parametrize("stage", [2, *(pytest.param(s, marks=pytest.mark.full) for s in (0, 1, 3))])
def test_the_table_of_collectives_on_request(stage: int, small_set: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, small_set, max_steps=4, eval_every=0, checkpoint_every=0)
    tree = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
    for enabled in (True, False):
        ds = tmp_path / f"{enabled}.json"
        ds.write_text(json.dumps({**tree, "comms_logger": {"enabled": enabled}}))
        args = ["-c", str(path), "--deepspeed", "--deepspeed_config", str(ds), f"run.dir={tmp_path / str(enabled)}"]
        code, text = train(args, 2)
        assert code == 0, text
        # Once: one rank speaks for all.
        assert text.count("Total Latency(ms)") == int(enabled), text
        assert text.count("Total straggler(ms)") == int(enabled), text
    # To measure collectives does not change what is learned.
    with_table, without = ([r["loss"] for r in log(tmp_path / str(e))] for e in (True, False))
    assert with_table == without
