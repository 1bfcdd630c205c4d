"""The table of faults: what is done to a run, what must come of it, and the function that does it.

Each function harms a run, waits until all of it has ended, and has the same command go on; it returns what it saw. The
tests run the table (tests/test_cluster_faults.py) and record what came out; docs/reliability.md is made from that.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ranks import ROOT

from cluster.bench import ENV, Bench, End
from nano_ds import checkpoint

Wanted = Literal["goes on", "ends, goes on", "refused"]


@dataclass(frozen=True)
class Outcome:
    """What was seen.

    Attributes:
        code: exit code of the command that met the fault.
        line: the line that it said, or what it did about the fault.
        seconds: from the fault to the end of the last process of the run (of the run itself, where that went on).
        resumed: the step that the run went on from; None where there was no restart.
        exact: the run then ended with the unharmed run's losses and state files, byte for byte; None: not run on.
    """

    code: int
    line: str
    seconds: float
    resumed: int | None = None
    exact: bool | None = None


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        name: the fault, as the document has it.
        wanted: "goes on" without a restart, or restarted by the supervisor; "ends, goes on": a non-zero code and one
            line, and the same command goes on from the last checkpoint; "refused": before anything is started.
        work: does it.
        hosts: needs real hosts.
        own: the hosts have no shared disk.
        full: too slow for the quick suite.
        keys: of the recipe's section train.
    """

    name: str
    wanted: Wanted
    work: Callable[[Bench, Unharmed], Outcome]
    hosts: bool = False
    own: bool = False
    full: bool = False
    keys: Mapping[str, int] = field(default_factory=dict)


Unharmed = tuple[dict[int, float], dict[str, bytes]]  # as Bench.result has it


def then_go_on(bench: Bench, whole: Unharmed, first: End) -> Outcome:
    """The same command again, after the run ended by the fault."""
    newest = max(bench.committed(), default=0)
    again = bench.start().end()
    assert again.code == 0, again.text
    assert again.resumed == newest, f"resumed from {again.resumed}, the newest whole one was {newest}\n{again.text}"
    return Outcome(first.code, first.line, first.seconds, again.resumed, bench.result() == whole)


# On this machine alone


def rank_killed(bench: Bench, whole: Unharmed) -> Outcome:
    going = bench.supervise()
    going.until_step(random.Random(1).randrange(60, 150))
    going.kill(bench.alive()[-1])
    return then_go_on(bench, whole, going.end())


def rank_killed_in_save(bench: Bench, whole: Unharmed) -> Outcome:
    tmp = checkpoint.staging(bench.run / "checkpoints", 2 * bench.EVERY)
    going = bench.start()
    going.until(tmp.exists)
    going.kill(bench.alive()[0])
    return then_go_on(bench, whole, going.end())


def rank_killed_restarts(bench: Bench, whole: Unharmed) -> Outcome:
    going = bench.supervise("--restarts", "2", "--backoff", "0.5")
    going.until_step(100)
    going.kill(bench.alive()[0])
    end = going.end()
    return Outcome(end.code, said(end, "starts again"), end.seconds, end.resumed, bench.result() == whole)


def supervisor_killed(bench: Bench, whole: Unharmed) -> Outcome:
    going = bench.supervise()
    going.until_step(70)
    going.signal(signal.SIGKILL)
    out = then_go_on(bench, whole, going.end())
    # It can say nothing itself.
    line = f"(nothing; without it the processes saved step {out.resumed} and ended)" if out.resumed else ""
    return Outcome(out.code, line, out.seconds, out.resumed, out.exact)


def asked_to_stop(bench: Bench, whole: Unharmed) -> Outcome:
    going = bench.supervise()
    going.until_step(70)
    going.signal(signal.SIGTERM)
    end = going.end()
    out = then_go_on(bench, whole, end)
    return Outcome(out.code, said(end, "stopped at step"), out.seconds, out.resumed, out.exact)


@contextmanager
def small_disk(bench: Bench, size: str) -> Iterator[Path]:
    bench.run.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(bench.run)], check=True)
    try:
        yield bench.run
    finally:
        subprocess.run(["umount", "-l", str(bench.run)], check=True)


def disk_full(bench: Bench, whole: Unharmed) -> Outcome:
    """No room for the third checkpoint."""
    with small_disk(bench, "3m") as disk:
        end = bench.start("train.keep_last=9").end()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        return then_go_on(bench, whole, end)


def disk_fills_in_save(bench: Bench, whole: Unharmed) -> Outcome:
    """Somebody else writes the disk full while the files of a checkpoint are being written."""
    with small_disk(bench, "64m") as disk:
        tmp = checkpoint.staging(disk / "checkpoints", 2 * bench.EVERY)
        going = bench.start()
        going.until(tmp.exists)
        fill(disk / "filler")
        end = going.end()
        (disk / "filler").unlink()
        return then_go_on(bench, whole, end)


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as f:
        size = 1 << 22
        while size >= 4096:
            try:
                f.write(bytes(size))
            except OSError:
                size //= 2


def second_run(bench: Bench, whole: Unharmed) -> Outcome:
    going = bench.start("train.max_steps=100000", "train.checkpoint_every=0")
    going.until_step(20)
    words = bench.command()
    if bench.cluster is None:
        done = subprocess.run(words, cwd=ROOT, env={**os.environ, **ENV}, capture_output=True, text=True, timeout=300)
    else:
        done = bench.cluster.nodes[0].run(words, ENV)
    second = End(done.returncode, done.stdout + done.stderr, 0)
    going.until_step(bench.steps() + 20)  # the first is not disturbed
    going.kill(*bench.alive())
    going.end()
    return Outcome(second.code, second.line, 0)


def wrong_hostfile(bench: Bench, whole: Unharmed) -> Outcome:
    return refused(bench, bench.supervise("--hostfile", "hostfiles/two_nods").end())


def latest_wrong(bench: Bench, whole: Unharmed) -> Outcome:
    return _latest(bench, whole, lambda p: p.write_text("step-00009999\n"))


def latest_gone(bench: Bench, whole: Unharmed) -> Outcome:
    return _latest(bench, whole, Path.unlink)


def _latest(bench: Bench, whole: Unharmed, work: Callable[[Path], object]) -> Outcome:
    going = bench.start()
    going.until_step(90)
    going.kill(*bench.alive())
    going.end()
    work(bench.run / "checkpoints" / "latest")
    newest = max(bench.committed())
    end = bench.start().end()
    assert end.resumed == newest, end.text
    return Outcome(end.code, said(end, "goes on from step"), end.seconds, end.resumed, bench.result() == whole)


def damaged(bench: Bench, whole: Unharmed) -> Outcome:
    """Every file of a checkpoint, damaged in every way, each in another checkpoint; only the first ones stay whole."""
    end = bench.start().end()
    assert end.code == 0, end.text
    root = bench.run / "checkpoints"
    first, *rest = checkpoint.folders(root)
    names = sorted(p.relative_to(first).as_posix() for p in first.rglob("*") if p.is_file())
    ways = {"flipped byte": flip, "cut": cut, "missing": Path.unlink}
    assert {"COMMIT", "state.json", "rng-00001.pt"} < set(names) and len(rest) > len(names) * len(ways)
    own = bench.result()
    kept = {f.name: f for f in checkpoint.folders(root)}
    victims = list(kept)[-len(names) * len(ways) :]
    harms = [(name, way) for name in names for way in ways]
    for victim, (name, way) in zip(victims, harms, strict=True):
        ways[way](root / victim / name)
    newest = max(bench.committed())
    assert newest == int(victims[0].removeprefix("step-")) - 1
    end = bench.start().end()
    assert end.code == 0 and end.resumed == newest, end.text
    for victim, (name, way) in zip(victims, harms, strict=True):
        line = next(x for x in end.text.splitlines() if "skipped" in x and victim in x)
        word = name if name != "COMMIT" else "never committed" if way == "missing" else ""
        assert word in line, (name, way, line)
    line = f"{len(victims)} checkpoints skipped, each with its file and the reason: {len(names)} kinds of file, "
    return Outcome(end.code, line + ", ".join(ways), end.seconds, end.resumed, bench.result() == own)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(path.as_posix()).randrange(len(data))] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: random.Random(path.as_posix()).randrange(len(data))])


def refused(bench: Bench, end: End) -> Outcome:
    assert not bench.run.exists() or not (bench.run / "log.jsonl").exists(), "something was started"
    return Outcome(end.code, end.line, end.seconds)


def said(end: End, word: str) -> str:
    return next((x.strip() for x in end.text.splitlines() if word in x), end.line).removeprefix("nano-ds train: ")


# Over real hosts


def host_rank_killed(bench: Bench, whole: Unharmed) -> Outcome:
    assert bench.cluster is not None
    going = bench.start()
    going.until_step(70)
    going.kill(*_trainers(bench, 1))
    return then_go_on(bench, whole, going.end())


def host_rank_killed_restarts(bench: Bench, whole: Unharmed) -> Outcome:
    going = bench.supervise("--restarts", "2", "--backoff", "0.5")
    going.until_step(100)
    going.kill(*_trainers(bench, 1))
    end = going.end()
    return Outcome(end.code, said(end, "starts again"), end.seconds, end.resumed, bench.result() == whole)


def rank_killed_before_meeting(bench: Bench, whole: Unharmed) -> Outcome:
    going = bench.start()
    going.until(lambda: _trainers(bench, 1))
    going.kill(*_trainers(bench, 1))
    return then_go_on(bench, whole, going.end())


def host_dies(bench: Bench, whole: Unharmed) -> Outcome:
    """All processes of the second host, its ssh connections too."""
    assert bench.cluster is not None
    going = bench.start()
    going.until_step(100)
    going.harmed = time.monotonic()
    second = bench.cluster.nodes[1]
    second.refuse_ssh()
    second.kill_all()
    end = going.end()
    second.serve_ssh()
    return then_go_on(bench, whole, end)


def bad_network(bench: Bench, whole: Unharmed) -> Outcome:
    """50 ms and a tenth of the packets lost for a while, then nothing at all for some seconds, then all is well."""
    assert bench.cluster is not None
    going = bench.start()
    going.until_step(50)
    bench.cluster.slow(50, 10)
    time.sleep(5)
    slow = bench.steps()
    bench.cluster.slow()
    bench.cluster.unplug(bench.cluster.nodes[1])
    time.sleep(5)
    bench.cluster.plug(bench.cluster.nodes[1])
    end = going.end()
    line = f"went on: at step {slow} after the slow part"
    return Outcome(end.code, line if not end.code else end.line, end.seconds, None, bench.result() == whole)


def cable_pulled(bench: Bench, whole: Unharmed) -> Outcome:
    assert bench.cluster is not None
    going = bench.start()
    going.until_step(70)
    second = bench.cluster.nodes[1]
    bench.cluster.unplug(second)
    going.harmed = time.monotonic()
    try:
        assert going.code(200) is not None, going.text
        here = time.monotonic() - going.harmed
        bench.wait_for_end(time.monotonic(), limit=60)  # the host in the dark has to see it by itself
        there = time.monotonic() - going.harmed
    finally:
        bench.cluster.plug(second)
    end = going.end()
    out = then_go_on(bench, whole, End(end.code, end.text, here))
    return Outcome(out.code, f"{out.line} (the host in the dark: {there:.0f} s)", here, out.resumed, out.exact)


def ssh_refused(bench: Bench, whole: Unharmed) -> Outcome:
    assert bench.cluster is not None
    bench.cluster.nodes[1].refuse_ssh()
    try:
        return refused(bench, bench.start().end())
    finally:
        bench.cluster.nodes[1].serve_ssh()


def wrong_key(bench: Bench, whole: Unharmed) -> Outcome:
    assert bench.cluster is not None
    second = bench.cluster.nodes[1]
    second.refuse_ssh()
    second.serve_ssh(keys="/dev/null")
    try:
        return refused(bench, bench.start().end())
    finally:
        second.refuse_ssh()
        second.serve_ssh()


def other_version(bench: Bench, whole: Unharmed) -> Outcome:
    assert bench.cluster is not None
    import nano_ds

    theirs = Path(nano_ds.__file__)
    other = bench.recipe.parent / "other.py"
    other.write_text(theirs.read_text().replace(nano_ds.__version__, "9.9.9"))
    with bench.cluster.nodes[1].replaced(theirs, other):
        return refused(bench, bench.start().end())


def missing_package(bench: Bench, whole: Unharmed) -> Outcome:
    assert bench.cluster is not None
    import deepspeed

    empty = bench.recipe.parent / "empty"
    empty.mkdir()
    with bench.cluster.nodes[1].replaced(Path(deepspeed.__file__).parent, empty):
        return refused(bench, bench.start().end())


def host_disk_full(bench: Bench, whole: Unharmed) -> Outcome:
    """Only the second host's own disk."""
    filler = bench.run_dirs[1].parent / "filler"
    going = bench.start()
    going.until_step(50)
    fill(filler)
    end = going.end()
    filler.unlink()
    return then_go_on(bench, whole, end)


def host_disk_lost(bench: Bench, whole: Unharmed) -> Outcome:
    """The second host comes back with an empty disk."""
    going = bench.start()
    going.until_step(70)
    going.kill(*_trainers(bench, 1))
    end = going.end()
    shutil.rmtree(bench.run_dirs[1])
    return then_go_on(bench, whole, end)


def first_disk_lost(bench: Bench, whole: Unharmed) -> Outcome:
    """The first host, which alone has the log, comes back with an empty disk: only the losses after that are logged."""
    going = bench.start()
    going.until_step(70)
    going.kill(*_trainers(bench, 1))
    end = going.end()
    shutil.rmtree(bench.run_dirs[0])
    newest = max(bench.committed())
    again = bench.start().end()
    assert again.code == 0 and again.resumed == newest, again.text
    losses, files = bench.result()
    exact = files == whole[1] and losses == {s: x for s, x in whole[0].items() if s > newest}
    return Outcome(end.code, end.line, end.seconds, again.resumed, exact)


def _trainers(bench: Bench, node: int) -> list:  # type: ignore[type-arg]
    assert bench.cluster is not None
    mine = set(bench.cluster.nodes[node].processes("launch/train.py"))
    return [p for p in bench.alive() if p.pid in mine]


EVERY_STEP = {"max_steps": 40, "checkpoint_every": 1, "keep_last": 99}

FAULTS = (
    Fault("SIGKILL of a rank at a random step", "ends, goes on", rank_killed),
    Fault("SIGKILL of a rank inside a save", "ends, goes on", rank_killed_in_save),
    Fault("SIGKILL of a rank, with --restarts", "goes on", rank_killed_restarts),
    Fault("SIGKILL of nano-ds train itself", "ends, goes on", supervisor_killed, full=True),
    Fault("SIGTERM to nano-ds train", "goes on", asked_to_stop, full=True),
    Fault("a disk without room for the next checkpoint", "ends, goes on", disk_full, full=True),
    Fault("a disk that fills up inside a save", "ends, goes on", disk_fills_in_save),
    Fault("two runs started on one run directory", "refused", second_run),
    Fault("a wrong hostfile path", "refused", wrong_hostfile),
    Fault("`latest` names a checkpoint that is not there", "goes on", latest_wrong, full=True),
    Fault("`latest` is missing", "goes on", latest_gone, full=True),
    Fault("a file of a checkpoint is damaged", "goes on", damaged, keys=EVERY_STEP),
    Fault("a rank on another host is killed", "ends, goes on", host_rank_killed, True),
    Fault("a rank on another host is killed, with --restarts", "goes on", host_rank_killed_restarts, True, full=True),
    Fault("a rank dies before the hosts have met", "ends, goes on", rank_killed_before_meeting, True, full=True),
    Fault("all processes of a host die", "ends, goes on", host_dies, True, full=True),
    Fault("a network with delay and loss, then none for 5 s", "goes on", bad_network, True, full=True),
    Fault("the network cable of a host is pulled", "ends, goes on", cable_pulled, True),
    Fault("a host refuses ssh", "refused", ssh_refused, True),
    Fault("a host does not take the ssh key", "refused", wrong_key, True),
    Fault("a host has another version", "refused", other_version, True),
    Fault("a host lacks a package", "refused", missing_package, True),
    Fault("SIGKILL of nano-ds train, over hosts", "ends, goes on", supervisor_killed, True, full=True),
    Fault("SIGTERM to nano-ds train, over hosts", "goes on", asked_to_stop, True, full=True),
    Fault("two runs over hosts on one run directory", "refused", second_run, True, full=True),
    Fault("the own disk of one host is full", "ends, goes on", host_disk_full, True, True),
    Fault("a host comes back with an empty disk", "ends, goes on", host_disk_lost, True, True, full=True),
    Fault("the first host comes back with an empty disk", "ends, goes on", first_disk_lost, True, True, full=True),
)
