"""Measures the network between the nodes with a real all-reduce, one process on each.

Runs on a node as: python -m nano_ds.nodes.allreduce '{"rank": 0, "size": 2, "address": …, "port": …, "folder": …}'
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from nano_ds.leaving import leave
from nano_ds.nodes import ssh

SMALL, LARGE = 8, 64 << 20  # bytes


@dataclass(frozen=True)
class Measured:
    """What the nodes found together, or why they could not.

    Attributes:
        latency: median seconds of an all-reduce of 8 bytes.
        bandwidth: bytes per second that each node sends, and receives, in an all-reduce of 64 MB.
        backend: gloo or nccl.
        disks: for each node the nodes whose files it sees in the folder of the run.
        problem: empty, or which node said what.
    """

    latency: float = 0.0
    bandwidth: float = 0.0
    backend: str = ""
    disks: tuple[tuple[int, ...], ...] = ()
    problem: str = ""
    host: str = ""  # the node of the problem


def measure(hosts: Sequence[str], address: str, port: int, folder: str, timeout: float = 90) -> Measured:
    """Starts a process on each of ``hosts`` over ssh; the first one sits at ``address``."""
    token = secrets.token_hex(4)

    def one(entry: tuple[int, str]) -> tuple[str, dict[str, Any], str]:
        rank, host = entry
        job = {"rank": rank, "size": len(hosts), "address": address, "port": port, "folder": folder, "token": token}
        words = ssh.python("-m", "nano_ds.nodes.allreduce", json.dumps(job))
        done = ssh.run(host, words, timeout=timeout, even_here=True)
        try:
            return host, json.loads(done.stdout.strip().splitlines()[-1]), ""
        except (ValueError, IndexError):
            return host, {}, (done.stderr.strip().splitlines() or ["no answer"])[-1]

    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        answers = list(pool.map(one, enumerate(hosts)))
    problems = [(host, found.get("problem") or error) for host, found, error in answers if error or "problem" in found]
    if problems:
        # The first node keeps the list of who came, so it knows best.
        return Measured(host=problems[0][0], problem=problems[0][1])
    first = answers[0][1]
    disks = tuple(tuple(found["sees"]) for _, found, _ in answers)
    return Measured(first["latency"], first["bandwidth"], first["backend"], disks)


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """This node's part."""
    os.environ.update(
        RANK=str(job["rank"]),
        WORLD_SIZE=str(job["size"]),
        LOCAL_RANK="0",
        MASTER_ADDR=job["address"],
        MASTER_PORT=str(job["port"]),
    )
    import torch
    import torch.distributed as dist

    from nano_ds.nodes.network import choose_interface
    from nano_ds.nodes.rendezvous import meet

    choose_interface(os.environ)
    gpu = torch.cuda.is_available()
    device, backend = (torch.device("cuda", 0), "nccl") if gpu else (torch.device("cpu"), "gloo")
    meet(os.environ, backend, timedelta(seconds=60), timedelta(seconds=40), device)

    def seconds(size: int) -> float:
        data = torch.zeros(size // 4, device=device)
        begin = time.perf_counter()
        dist.all_reduce(data)
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    for size in (SMALL, LARGE):
        seconds(size)  # connections are made at the first use
    latency = statistics.median(seconds(SMALL) for _ in range(50))
    took = statistics.median(seconds(LARGE) for _ in range(3))
    # A ring sends each byte on 2 (n - 1) / n times.
    volume = LARGE * 2 * (job["size"] - 1) / job["size"]
    sees = _look(Path(job["folder"]), job["token"], job["rank"], job["size"], dist.barrier)
    dist.destroy_process_group()
    return {"latency": latency, "bandwidth": volume / took, "backend": backend, "sees": sees}


def _look(folder: Path, token: str, rank: int, size: int, barrier: Any) -> list[int]:
    """The ranks whose files appear in ``folder`` here; the folder is left as it was."""
    made = not folder.exists()
    mine = folder / f".probe-{token}-{rank}"
    with contextlib.suppress(OSError):  # a disk that cannot be written to has a row of its own
        folder.mkdir(parents=True, exist_ok=True)
        mine.touch()
    barrier()
    sees = [r for r in range(size) if (folder / f".probe-{token}-{r}").exists()]
    barrier()
    mine.unlink(missing_ok=True)
    if made:
        with contextlib.suppress(OSError):  # another node's file may still be in it
            folder.rmdir()
    return sees


def main() -> int:
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        answer = run(json.loads(sys.argv[1]))
    except Exception as e:
        answer = {"problem": (str(e).splitlines() or [type(e).__name__])[0]}
    print(json.dumps(answer), file=out, flush=True)
    return 0


if __name__ == "__main__":
    leave(main())
