"""Runs a script as the processes that a launcher would start, on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nano_ds.nodes.launcher import free_port

ROOT = Path(__file__).resolve().parent.parent


def start(script: Path, args: Sequence[str], world: int = 1) -> list[subprocess.Popen[str]]:
    """One process per rank, with the environment of a launcher; ``{rank}`` in an argument becomes its number."""
    port = str(free_port())
    processes = []
    for rank in range(world):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(script), *(a.replace("{rank}", str(rank)) for a in args)],
                env=env,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def finish(processes: Sequence[subprocess.Popen[str]], timeout: float = 180) -> tuple[int, str]:
    """The worst exit code and everything that was printed; the rest is killed once a process failed."""
    end = time.monotonic() + timeout
    texts = []
    with contextlib.suppress(subprocess.TimeoutExpired):
        for p in processes:
            texts.append(p.communicate(timeout=max(1.0, end - time.monotonic()))[0])
            if p.returncode:
                end = min(end, time.monotonic() + 10)  # the others notice by themselves
    for p in processes:
        p.kill()
    for p in processes[len(texts) :]:
        texts.append(p.communicate()[0])
    return max((abs(p.returncode) for p in processes), default=0), "\n".join(texts)


def train(args: Sequence[str], world: int = 1, timeout: float = 180) -> tuple[int, str]:
    return finish(start(ROOT / "launch" / "train.py", args, world), timeout)
