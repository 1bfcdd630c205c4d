"""One tiny run to be harmed: starts it, waits for its steps, says how it ended, compares it with the unharmed one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from cluster.hosts import Cluster, Node
from ranks import ROOT
from test_training import recipe, rows

from nano_ds import checkpoint

ENV = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
Command = Sequence[str]


@dataclass(frozen=True)
class End:
    """How a command ended."""

    code: int
    text: str  # all that it printed
    seconds: float  # from the harm (or the start) until no process of the run was left

    @property
    def line(self) -> str:
        """The line that says why."""
        found = [x.strip() for x in self.text.splitlines() if x.startswith("nano-ds train: ")]
        return found[-1].removeprefix("nano-ds train: ") if found else ""

    @property
    def resumed(self) -> int:
        """The step that it went on from (the last, where it restarted by itself); 0: it began afresh."""
        steps = re.findall(r"goes on from step (\d+)", self.text)
        return int(steps[-1]) if steps else 0


class Bench:
    """A recipe with dropout, so that random states matter too, and its unharmed losses.

    Args:
        folder: for everything of this run.
        data: a prepared set.
        cluster: hosts to run on; None: two processes of this machine.
    """

    STEPS, EVERY = 240, 40

    def __init__(self, folder: Path, data: Path, cluster: Cluster | None = None, run: Path | None = None):
        self.cluster = cluster
        self.run = run or folder / "run"
        self.run_dirs = [node.path(self.run) for node in cluster.nodes[:2]] if cluster else [self.run]
        self.recipe = recipe(folder, data, max_steps=self.STEPS, eval_every=0, checkpoint_every=self.EVERY)

    @property
    def log(self) -> Path:
        return self.run_dirs[0] / "log.jsonl"

    def command(self, *more: str) -> list[str]:
        words = [sys.executable, "-m", "nano_ds", "train", "-c", str(self.recipe), f"run.dir={self.run}"]
        words += ["model.dropout=0.1", *more]
        if self.cluster is None:
            return [*words, "--processes", "2"]
        return words if "--hostfile" in more else [*words, "--hostfile", str(self.cluster.hostfile())]

    def start(self, *more: str, node: Node | None = None) -> Going:
        """Starts the run, or another one of the same recipe, by itself or on the first host."""
        return Going(self, self.command(*more), node)

    def alive(self) -> list[psutil.Process]:
        """Processes of the run on every host, in the order of their starts; those that wait for them are not."""
        return [p for p in self.every() if any(w.endswith("launch/train.py") for w in _words(p)[1:3])]

    def every(self) -> list[psutil.Process]:
        found = [p for p in psutil.process_iter() if str(self.recipe) in " ".join(_words(p))]
        return sorted(found, key=lambda p: p.pid)

    def wait_for_end(self, since: float, limit: float = 90) -> float:
        """Seconds from ``since`` until no process of the run is left on any host."""
        while left := self.every():
            assert time.monotonic() - since < limit, [_words(p) for p in left]
            time.sleep(0.05)
        return time.monotonic() - since

    def steps(self) -> int:
        """Steps logged so far."""
        try:
            return len(self.log.read_text().splitlines())
        except OSError:
            return 0

    def committed(self) -> list[int]:
        """Steps whose checkpoints are whole on one of the disks, every byte read."""
        return sorted(
            {
                int(f.name.removeprefix("step-"))
                for where in self.run_dirs
                for f in checkpoint.folders(where / "checkpoints")
                if checkpoint.inspect(f).state == "committed"
            }
        )

    def result(self) -> tuple[dict[int, float], dict[str, bytes]]:
        """All losses, and the files of the last checkpoint that hold state, byte for byte."""
        last = self.run_dirs[0] / "checkpoints" / checkpoint.folder_name(self.STEPS)
        files = sorted([*last.glob("zero/*.pt"), *last.glob("rng-*.pt")])
        return rows(self.run_dirs[0], "loss"), {f.relative_to(last).as_posix(): f.read_bytes() for f in files}

    def forget(self) -> None:
        """Removes the run."""
        for where in self.run_dirs:
            shutil.rmtree(where, ignore_errors=True)


class Going:
    """A run that was started."""

    def __init__(self, bench: Bench, command: Command, node: Node | None = None):
        self.bench = bench
        self.began = self.harmed = time.monotonic()
        out = open(bench.recipe.parent / "output", "w+")  # noqa: SIM115
        self.out = out
        if bench.cluster is None:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **ENV},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        else:
            where = node or bench.cluster.nodes[0]
            self.process = where.popen(command, ENV, stdout=out, stderr=subprocess.STDOUT)

    @property
    def text(self) -> str:
        return Path(self.out.name).read_text()

    def until(self, condition: Callable[[], object], limit: float = 120) -> Going:
        """Waits for a condition while the run goes on."""
        end = time.monotonic() + limit
        while not condition():
            assert self.process.poll() is None, f"ended too early with {self.process.returncode}\n{self.text}"
            assert time.monotonic() < end, f"never came\n{self.text}"
            time.sleep(0.005)
        self.harmed = time.monotonic()
        return self

    def until_step(self, step: int) -> Going:
        return self.until(lambda: self.bench.steps() >= step)

    def kill(self, *processes: psutil.Process) -> None:
        self.harmed = time.monotonic()
        for p in processes:
            p.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """SIGKILL to the supervising process and everything it started, wherever it put itself."""
        self.harmed = time.monotonic()
        for pid in [self.process.pid, *(p.pid for p in psutil.Process(self.process.pid).children(recursive=True))]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def end(self, limit: float = 200) -> End:
        """Waits for the end of the command and of every process of the run."""
        try:
            self.process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            for p in self.bench.every():
                p.kill()
            self.process.kill()
            raise AssertionError(f"no end within {limit} s\n{self.text}") from None
        seconds = self.bench.wait_for_end(self.harmed)
        text = self.text
        self.out.close()
        return End(self.process.returncode, text, seconds)


def _words(p: psutil.Process) -> list[str]:
    try:
        return p.cmdline()
    except psutil.Error:
        return []


def read_json(path: Path) -> dict[str, dict[str, object]]:
    try:
        tree: dict[str, dict[str, object]] = json.loads(path.read_text())
    except (OSError, ValueError):
        tree = {}
    return tree
