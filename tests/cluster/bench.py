"""One tiny run to be harmed: starts it, waits for its steps, says how it ended, compares it with the unharmed one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from ranks import ROOT
from test_training import recipe, rows

from cluster.forks import Forks
from cluster.hosts import Cluster, Process
from nano_ds import checkpoint

RECORD = Path(os.environ.get("NANO_DS_FAULTS", ROOT / "runs" / "faults.json"))
ENV = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


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
        causes = [x for x in found if "another process of the run" not in x] or found
        return max(causes, key=len).removeprefix("nano-ds train: ") if causes else ""

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
        place: hosts to run on, or what forks two processes of this machine.
        run: the run directory (default: in ``folder``).
        more: recipe keys as on the command line.
        keys: recipe keys of the section train.
    """

    STEPS, EVERY = 240, 40

    def __init__(
        self,
        folder: Path,
        data: Path,
        place: Cluster | Forks,
        run: Path | None = None,
        more: Sequence[str] = (),
        **keys: int,
    ):
        self.forks = place if isinstance(place, Forks) else None
        self.cluster = cluster = place if isinstance(place, Cluster) else None
        self.folder = folder
        self.run = run or folder / "run"
        self.run_dirs = [node.path(self.run) for node in cluster.nodes[:2]] if cluster else [self.run]
        keys = {"max_steps": self.STEPS, "eval_every": 0, "checkpoint_every": self.EVERY, **keys}
        self.last, self.more = keys["max_steps"], tuple(more)
        self.recipe = recipe(folder, data, **keys)
        self.forked: list[int] = []

    @property
    def log(self) -> Path:
        return self.run_dirs[0] / "log.jsonl"

    def command(self, *more: str) -> list[str]:
        """`nano-ds train`, supervised: on this machine, or on the hosts."""
        words = [sys.executable, "-m", "nano_ds", "train", *self.args(*more)]
        if self.cluster is None:
            return words if "--hostfile" in more else [*words, "--processes", "2"]
        return words if "--hostfile" in more else [*words, "--hostfile", str(self.cluster.hostfile())]

    def args(self, *more: str) -> list[str]:
        return ["-c", str(self.recipe), f"run.dir={self.run}", "model.dropout=0.1", *self.more, *more]

    def start(self, *more: str) -> Going:
        """Starts the run (again): by `nano-ds train` on the hosts, or as two bare processes of this machine."""
        return Forked(self, more) if self.forks else Supervised(self, more)

    def supervise(self, *more: str) -> Supervised:
        """Starts the run by `nano-ds train` on this machine too."""
        return Supervised(self, more)

    def alive(self) -> list[psutil.Process]:
        """Training processes of the run on every host, in the order of their starts; those that wait are not."""
        found = [p for p in self.every() if p.pid in self.forked or _trains(p)]
        return sorted(found, key=lambda p: p.pid)

    def every(self) -> list[psutil.Process]:
        """Those that wait for them too."""
        found = [p for p in psutil.process_iter() if str(self.recipe) in " ".join(_words(p))]
        for pid in self.forked:
            try:
                p = psutil.Process(pid)
                found += [p] if p.status() != psutil.STATUS_ZOMBIE else []
            except psutil.Error:
                continue
        return found

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

    def step(self) -> int:
        """The last step logged; 0 when there is none."""
        try:
            return int(json.loads(self.log.read_text().splitlines()[-1])["step"])
        except (OSError, ValueError, IndexError):
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
        last = self.run_dirs[0] / "checkpoints" / checkpoint.folder_name(self.last)
        files = sorted([*last.glob("zero/*.pt"), *last.glob("rng-*.pt")])
        return rows(self.run_dirs[0], "loss"), {f.relative_to(last).as_posix(): f.read_bytes() for f in files}

    def forget(self) -> None:
        """Removes the run."""
        for where in self.run_dirs:
            shutil.rmtree(where, ignore_errors=True)


class Going:
    """A run that was started."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self.began = self.harmed = time.monotonic()
        self.out = bench.folder / "output"
        self.out.write_text("")

    def code(self, seconds: float) -> int | None:
        """The exit code; None when it has not ended within ``seconds``."""
        raise NotImplementedError

    @property
    def text(self) -> str:
        return self.out.read_text(errors="replace")

    def until(self, condition: Callable[[], object], limit: float = 300) -> None:
        """Waits for a condition while the run goes on; the harm comes now."""
        end = time.monotonic() + limit
        while not condition():
            assert self.code(0) is None, f"ended too early\n{self.text}"
            assert time.monotonic() < end, f"never came\n{self.text}"
            time.sleep(0.003)
        self.harmed = time.monotonic()

    def until_step(self, step: int) -> None:
        self.until(lambda: self.bench.steps() >= step)

    def kill(self, *processes: psutil.Process) -> None:
        assert processes, "nobody there to be killed"
        self.harmed = time.monotonic()
        for p in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                p.kill()

    def end(self, limit: float = 300) -> End:
        """Waits for the end of the command and of every process of the run."""
        code = self.code(limit)
        if code is None:
            for p in self.bench.every():
                p.kill()
            raise AssertionError(f"no end within {limit} s\n{self.text}")
        seconds = self.bench.wait_for_end(self.harmed)
        return End(code, self.text, seconds)


class Forked(Going):
    """Bare processes, as a launcher would start them."""

    def __init__(self, bench: Bench, more: Sequence[str]):
        super().__init__(bench)
        assert bench.forks is not None
        bench.forked = bench.forks.start(bench.args(*more), 2, self.out)

    def code(self, seconds: float) -> int | None:
        assert self.bench.forks is not None
        codes = self.bench.forks.wait(seconds)
        found = [c for c in codes if c is not None]
        if len(found) < len(codes):
            return None
        # Of one that had time to say something, where there is one.
        return next((c for c in found if c > 0), next((c for c in found if c), 0))


class Supervised(Going):
    """`nano-ds train`, on this machine or on the first host."""

    def __init__(self, bench: Bench, more: Sequence[str]):
        super().__init__(bench)
        with open(self.out, "a") as out:
            if bench.cluster is None:
                self.process = subprocess.Popen(
                    bench.command(*more),
                    cwd=ROOT,
                    env={**os.environ, **ENV},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
            else:
                first = bench.cluster.nodes[0]
                self.process = first.popen(bench.command(*more), ENV, stdout=out, stderr=subprocess.STDOUT)

    def code(self, seconds: float) -> int | None:
        try:
            return self.process.wait(timeout=seconds) if seconds else self.process.poll()
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: int) -> None:
        """Sends a signal to `nano-ds train` itself."""
        self.harmed = time.monotonic()
        if isinstance(self.process, Process):
            self.process.kill_inside(number)
        else:
            self.process.send_signal(number)


def _trains(p: psutil.Process) -> bool:
    return any(w.endswith("launch/train.py") for w in _words(p)[1:3])


def _words(p: psutil.Process) -> list[str]:
    try:
        return p.cmdline()
    except psutil.Error:
        return []


def write_record(path: Path, kind: str, name: str, facts: Mapping[str, object]) -> None:
    """Adds what was seen to the record that docs/reliability.md is made from."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        tree = {}
    tree.setdefault(kind, {})[name] = dict(facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
