"""Runs training jobs as forked processes, one per rank: DeepSpeed is imported once instead of once per process.

Used as a program it is the server: it reads a job as a line of JSON (``world``, ``args``, ``save``, ``back``), forks
its ranks, waits for them and answers with ``{"code", "text"}``. Nothing may start a thread in it before a fork.

With ``save`` every rank first writes the state that it holds after start-up (DeepSpeed's files, as a checkpoint has)
to that folder, then trains. With ``back`` it trains, goes back to that checkpoint and trains from there once more.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class ForkedRanks:
    """The client: a context manager around the server."""

    def __enter__(self) -> ForkedRanks:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        self.server = subprocess.Popen(
            [sys.executable, __file__], env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.server.kill()
        self.server.wait()

    def train(self, args: list[str], world: int, save: Path | None = None, back: Path | None = None) -> tuple[int, str]:
        """Like ``ranks.train``: an exit code and all that was printed."""
        assert self.server.stdin and self.server.stdout
        job = {"world": world, "args": args, "save": str(save or ""), "back": str(back or "")}
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        return answer["code"], answer["text"]


def rank_main(args: list[str], save: str, back: str) -> int:
    """What launch/train.py does, with a look at the state in between."""
    from nano_ds import checkpoint, engine
    from nano_ds.cli import guard, take_overrides
    from nano_ds.stop import StopRequest
    from nano_ds.train import Run
    from nano_ds.train_args import config_of, parser
    from nano_ds.zero_shards import Layout

    made = parser("train")
    parsed, rest = made.parse_known_args(args)
    take_overrides(made, parsed, rest)

    def work() -> int:
        config = config_of(parsed)
        world = engine.start(config.run)
        try:
            run = Run(config, parsed.resume, world, Path(config.run.dir), StopRequest(), contextlib.ExitStack())
            if save:
                run.engine.save(Path(save))
            code = run.go()
            if back:
                found = checkpoint.open_checkpoint(Path(back))
                run.engine.load(found.path, Layout.of(found.state), found.step)
                run.progress.step = found.step
                code = run.go()
            return code
        finally:
            engine.finish()

    return guard("train", work, False)


def fork(job: dict[str, Any], out: int) -> int:
    """Forks the ranks of a job; returns the exit code of the first that failed, or 0."""
    from nano_ds.nodes.launcher import free_port

    world, port = job["world"], str(free_port())
    left = set()
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_SIZE=str(world))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            code = 1
            try:
                code = rank_main(job["args"], job["save"], job["back"])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        left.add(pid)
    worst, end = 0, time.monotonic() + 1800  # room for compiling DeepSpeed's Adam once
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            left.discard(pid)
            worst = worst or abs(os.waitstatus_to_exitcode(status))  # of the first that failed: the others are killed
            if worst:
                end = min(end, time.monotonic() + 10)  # the others have this long to say why
        if time.monotonic() > end:
            worst = worst or 124
            for other in left:
                os.kill(other, 9)
        time.sleep(0.01)
    return worst


def serve() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever else prints must not be taken for an answer
    import deepspeed  # noqa: F401

    import nano_ds.train  # noqa: F401

    for line in sys.stdin:
        with tempfile.TemporaryFile() as out:
            code = fork(json.loads(line), out.fileno())
            out.seek(0)
            text = out.read().decode(errors="replace")
        os.write(answers, (json.dumps({"code": code, "text": text}) + "\n").encode())


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    serve()
