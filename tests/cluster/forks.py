"""Ranks that start in a second: forks of a process that has imported DeepSpeed once, each running launch/train.py.

As a program it is the server. It takes lines of JSON: ``{"args", "world", "out"}`` starts a job and is answered with
the process ids; ``{"wait": seconds}`` is answered with the exit codes of the job, as Popen has them.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "launch" / "train.py"


class Forks:
    """The client: a context manager around the server. One job at a time."""

    def __enter__(self) -> Forks:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
        self.server = subprocess.Popen(
            [sys.executable, __file__], env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.server.communicate()

    def start(self, args: Sequence[str], world: int, out: Path) -> list[int]:
        """Starts the ranks; returns their process ids."""
        pids: list[int] = self._ask({"args": list(args), "world": world, "out": str(out)})
        return pids

    def wait(self, seconds: float) -> list[int | None]:
        """Exit codes by rank, None for those that have not ended within ``seconds``."""
        codes: list[int | None] = self._ask({"wait": seconds})
        return codes

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())


def rank_main(rank: int, job: dict[str, Any], port: int) -> None:
    """A rank from here on: what a launcher gives it, then the script as if it had been started alone."""
    out = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    world = str(job["world"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world, LOCAL_SIZE=world)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.argv = [str(SCRIPT), *job["args"]]
    code = 1
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(job: dict[str, Any]) -> list[int]:
    from nano_ds.nodes.network import free_port

    pids, port = [], free_port()
    for rank in range(job["world"]):
        pid = os.fork()
        if pid == 0:
            rank_main(rank, job, port)
        pids.append(pid)
    return pids


def wait(pids: Sequence[int], codes: dict[int, int], seconds: float) -> None:
    """Collects exit codes until all have ended or the time is over."""
    end = time.monotonic() + seconds
    while True:
        for pid in (p for p in pids if p not in codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if len(codes) == len(pids) or time.monotonic() > end:
            return
        time.sleep(0.005)


def serve() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever else prints must not be taken for an answer
    import deepspeed  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    import nano_ds.train  # noqa: F401

    gc.freeze()
    pids: list[int] = []
    codes: dict[int, int] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            wait(pids, codes, question["wait"])
            answer = [codes.get(p) for p in pids]
        else:
            codes = {}
            answer = pids = start(question)
        os.write(answers, (json.dumps(answer) + "\n").encode())
    for pid in (p for p in pids if p not in codes):
        os.kill(pid, 9)


if __name__ == "__main__":
    serve()
