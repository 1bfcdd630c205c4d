"""Training over two real hosts gives the digits of two processes on one machine, whatever starts it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cluster import Cluster, require
from ranks import ROOT, train
from test_training import STEPS, options, recipe, rows

from nano_ds import checkpoint
from nano_ds.config import load_config

LAST = f"checkpoints/step-{STEPS:08d}"
NANO_DS = [sys.executable, "-m", "nano_ds", "train"]
DEEPSPEED = [sys.executable, "-m", "deepspeed.launcher.runner", "--master_addr", "10.77.0.1"]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where each host has a disk of its own."""
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def hosts(disk: Path) -> Iterator[Cluster]:
    require()
    with Cluster(2, {disk: "100m"}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def local(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes of this machine."""
    folder = tmp_path_factory.mktemp("local")
    code, text = train(options(recipe(folder, small_set), 1), 2)
    assert code == 0, text
    return folder / "run"


def start(hosts: Cluster, way: str, args: Sequence[str], port: int) -> str:
    """Runs the training to its end; everything that was printed on the first host."""
    env = {"PYTHONPATH": str(ROOT)}
    script = str(ROOT / "launch" / "train.py")
    env_file = hosts.folder / "deepspeed_env"
    env_file.write_text("OMP_NUM_THREADS=1\nOMP_WAIT_POLICY=passive\n")
    hostfile = ["--hostfile", str(hosts.hostfile())]
    plain = [*DEEPSPEED, *hostfile, "--master_port", str(port)]
    first = hosts.nodes[0]
    if "no ssh" in way:
        each = [
            [*plain, "--no_ssh", "--node_rank", str(r), script, *args]
            if "plain" in way
            else [*NANO_DS, *args, *hostfile, "--node_rank", str(r), "--master_port", str(port)]
            for r in range(2)
        ]
        processes = [node.popen(words, env) for node, words in zip(hosts.nodes, each, strict=True)]
        done = [p.communicate(timeout=200) for p in processes]
        assert [p.returncode for p in processes] == [0, 0], done
        return done[0][0] + done[0][1]
    if "plain" in way:
        words = [*plain, "--no_ssh_check", script, *args]
        env["DS_ENV_FILE"] = str(env_file)
    else:
        words = [*NANO_DS, *args, *hostfile, "--launcher", "openmpi" if "openmpi" in way else "pdsh"]
    out = first.run(words, env)
    assert out.returncode == 0, out.stdout + out.stderr
    return out.stdout + out.stderr


def nano_ds_options(path: Path, *more: str) -> list[str]:
    return ["-c", str(path), "--deepspeed_config", "ds_configs/zero1.json", *more]


@pytest.mark.parametrize(
    "way",
    [
        "pdsh",
        "openmpi, own disks",
        "no ssh, own disks",
        "plain deepspeed by pdsh",
        pytest.param("pdsh, own disks", marks=pytest.mark.full),
        pytest.param("openmpi", marks=pytest.mark.full),
        pytest.param("no ssh", marks=pytest.mark.full),
        pytest.param("plain deepspeed, no ssh", marks=pytest.mark.full),
    ],
)
def test_two_hosts_train_as_two_processes_do(
    way: str, hosts: Cluster, disk: Path, local: Path, small_set: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, small_set)
    own = "own disks" in way
    run = disk / "run" / way.replace(" ", "-") if own else tmp_path / "run"
    args = options(path, 1) if "plain" in way else nano_ds_options(path)
    prompt = 'train.sample_prompt=the "cat" sat $HOME 50% (it\'s *one*)'
    more = [prompt] if "plain" not in way else []  # DeepSpeed's own launcher mangles it
    text = start(hosts, way, [*args, f"run.dir={run}", *more], 29500)
    first, second = (node.path(run) for node in hosts.nodes)
    assert rows(first, "loss") == rows(local, "loss"), text
    assert rows(first, "val_loss") == rows(local, "val_loss")
    assert rows(first, "grad_norm") == rows(local, "grad_norm")
    # Every host ends with a whole checkpoint, that of the local run.
    commits = [json.loads((where / LAST / "COMMIT").read_text())["files"] for where in (first, second, local)]
    shards = [{n: entry for n, entry in files.items() if "optim_states" in n} for files in commits]
    assert len(shards[0]) == 2 and shards[0] == shards[2] and commits[0] == commits[1]
    assert all(checkpoint.inspect(where / LAST).state == "committed" for where in (first, second))
    assert (second / "log.jsonl").exists() == (not own)
    if more:
        assert load_config(first / "config.yaml").train.sample_prompt == prompt.partition("=")[2]
