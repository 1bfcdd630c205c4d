"""Every fault of the table ends in a clean recovery, or in one line and a non-zero exit; never in a silent restart."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from cluster import Cluster, require
from cluster.bench import Bench, read_json
from cluster.faults import FAULTS, Fault, Outcome, Unharmed
from ranks import ROOT

RECORD = Path(os.environ.get("NANO_DS_FAULTS", ROOT / "runs" / "faults.json"))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def hosts(disk: Path) -> Iterator[Cluster]:
    require()
    with Cluster(2, {disk: "24m"}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def unharmed(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Unharmed:
    bench = Bench(tmp_path_factory.mktemp("unharmed"), small_set)
    end = bench.start().end()
    assert end.code == 0, end.text
    losses, files = bench.result()
    assert len(losses) == Bench.STEPS and len(files) == 5
    return losses, files


def record(fault: Fault, outcome: Outcome) -> None:
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    tree = read_json(RECORD)
    tree[fault.name] = {"wanted": fault.wanted, "hosts": fault.hosts, **asdict(outcome)}
    RECORD.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, id=f.name, marks=[pytest.mark.full] if f.full else []) for f in FAULTS],
)
def test_a_fault_is_survived_or_said(
    fault: Fault, disk: Path, unharmed: Unharmed, small_set: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cluster = request.getfixturevalue("hosts") if fault.hosts else None
    if not fault.hosts and "disk" in fault.name and os.geteuid() != 0:
        pytest.skip("a small disk is a mount, which needs root")
    bench = Bench(tmp_path, small_set, cluster, disk / "run" if fault.own else None)
    try:
        outcome = fault.work(bench, unharmed)
    finally:
        for process in bench.every():
            process.kill()
        if fault.own:
            bench.forget()
    record(fault, outcome)
    if fault.wanted == "goes on":
        assert outcome.code == 0 and outcome.exact, outcome
    elif fault.wanted == "refused":
        assert outcome.code == 2 and outcome.line and "\n" not in outcome.line, outcome
    else:
        assert outcome.code not in (0, 2) and outcome.line and outcome.exact, outcome
        assert outcome.seconds < 40
