"""Every fault of the table ends in a clean recovery, or in one line and a non-zero exit; never in a silent restart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from cluster import Cluster, require
from cluster.bench import RECORD, Bench, write_record
from cluster.faults import FAULTS, Fault, Unharmed
from cluster.forks import Forks


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def hosts(disk: Path) -> Iterator[Cluster]:
    require()
    with Cluster(2, {disk: "24m"}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def unharmed(forks: Forks, small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Unharmed:
    bench = Bench(tmp_path_factory.mktemp("unharmed"), small_set, forks)
    end = bench.start().end()
    assert end.code == 0, end.text
    losses, files = bench.result()
    assert len(losses) == Bench.STEPS and len(files) == 5
    return losses, files


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, id=f.name, marks=[pytest.mark.full] if f.full else []) for f in FAULTS],
)
def test_a_fault_is_survived_or_said(
    fault: Fault,
    disk: Path,
    forks: Forks,
    unharmed: Unharmed,
    small_set: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    place = request.getfixturevalue("hosts") if fault.hosts else forks
    if not fault.hosts and "disk" in fault.name and os.geteuid() != 0:
        pytest.skip("a small disk is a mount, which needs root")
    bench = Bench(tmp_path, small_set, place, disk / "run" if fault.own else None, **fault.keys)
    try:
        outcome = fault.work(bench, unharmed)
    finally:
        for process in bench.every():
            process.kill()
        if fault.own:
            bench.forget()
    write_record(RECORD, "faults", fault.name, {"wanted": fault.wanted, "hosts": fault.hosts, **asdict(outcome)})
    if fault.wanted == "goes on":
        assert outcome.code == 0 and outcome.exact, outcome
    elif fault.wanted == "refused":
        assert outcome.code == 2 and outcome.line and "\n" not in outcome.line, outcome
    else:
        assert outcome.code not in (0, 2) and outcome.line and outcome.exact, outcome
        assert outcome.seconds < 40
