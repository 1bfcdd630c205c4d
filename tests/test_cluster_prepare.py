"""Preparing text on several real hosts, each with its own disk for what it makes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, require
from cluster.bench import ENV
from ranks import ROOT


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def hosts(disk: Path) -> Iterator[Cluster]:
    require()
    with Cluster(2, {disk: "24m"}) as cluster:
        yield cluster


def test_hosts_make_the_set_that_one_machine_makes(
    hosts: Cluster, disk: Path, text_dir: Path, small_set: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "nano_ds", "prepare", "--text", str(text_dir)]
    words += ["--tokenizer", str(small_set / "tokenizer.json"), "--val-fraction", "0.2"]
    alone = tmp_path / "alone"
    subprocess.run([*words, "--out", str(alone)], cwd=ROOT, check=True, capture_output=True)
    hostfile = tmp_path / "hosts"
    hostfile.write_text("".join(f"{node.name} slots=2\n" for node in hosts.nodes))
    first = hosts.nodes[0]
    done = first.run([*words, "--out", str(disk / "set"), "--hostfile", str(hostfile)], ENV)
    assert done.returncode == 0, done.stdout + done.stderr
    sums = "cd {} && sha256sum *"
    here = subprocess.run(["sh", "-c", sums.format(alone)], capture_output=True, text=True).stdout
    there = first.run(["sh", "-c", sums.format(disk / "set")], {}).stdout
    assert there == here and len(here.splitlines()) == len(list(alone.iterdir())) > 3
