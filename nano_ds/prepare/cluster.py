"""`prepare` on the nodes of a hostfile: parts handed out, watched, fetched where disks are separate, joined.

There are as many parts as the hostfile has slots. Every node works on one part at a time with all its CPUs and takes
the next when it is done, so a fast machine does more of them. The vocabulary travels with the job.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from nano_ds.errors import RunFailure, UserError
from nano_ds.files import atomic_dir
from nano_ds.nodes import ssh
from nano_ds.nodes.hostfile import is_local
from nano_ds.prepare.documents import Progress
from nano_ds.prepare.parts import DATA, FACTS, Part, check_parts, join_checked, part_fault, parts_folder, remove_parts
from nano_ds.prepare.sets import SHARD_TOKENS, Result, SetPlan, alone, existing
from nano_ds.tokenizer import Tokenizer

Note = Callable[[str], object]  # takes a line for the user

PROGRAM = "nano-ds prepare"  # what the errors of a node begin with
GRACE = 20  # seconds that a node has to end by itself when its leash is gone
UNREACHABLE = 255  # the code of ssh when it cannot reach a host
ATTEMPTS = 2  # of a part, the second on another node where there is one


@dataclass(frozen=True)
class Failure:
    """An attempt at a part that did not work out."""

    host: str
    code: int
    line: str  # its last


@dataclass
class Board:
    """Which parts wait, run and failed; every access under ``changed``."""

    waiting: list[int]
    hosts: set[str]  # that still take parts
    note: Note
    changed: threading.Condition = field(default_factory=threading.Condition)
    running: dict[int, str] = field(default_factory=dict)  # part to host
    failures: dict[int, list[Failure]] = field(default_factory=dict)
    given_up: dict[int, Failure] = field(default_factory=dict)
    stopped: bool = False

    def take(self, host: str) -> int | None:
        """The next part for ``host``: None when there is nothing more to do for it."""
        with self.changed:
            while not self.stopped and host in self.hosts:
                fits = [p for p in self.waiting if self._may(host, p)]
                if fits:
                    self.waiting.remove(fits[0])
                    self.running[fits[0]] = host
                    return fits[0]
                if not self.waiting and not self.running:
                    break
                self.changed.wait()
            self.hosts.discard(host)
            self.changed.notify_all()
            return None

    def _may(self, host: str, part: int) -> bool:
        """A part that failed here is for another node, if there is one left."""
        failed = {f.host for f in self.failures.get(part, [])}
        return host not in failed or not self.hosts - failed

    def done(self, part: int) -> None:
        with self.changed:
            del self.running[part]
            self.changed.notify_all()

    def failed(self, part: int, failure: Failure) -> None:
        """Puts the part back or gives it up; a node that cannot be reached takes no further part while others are."""
        with self.changed:
            del self.running[part]
            if self.stopped:
                return  # it was ended, it did not fail
            tries = self.failures.setdefault(part, [])
            tries.append(failure)
            if failure.code == UNREACHABLE and len(self.hosts) > 1:
                self.hosts.discard(failure.host)
            if len(tries) < ATTEMPTS:
                self.waiting.insert(0, part)
                self.note(f"part {part} failed on {failure.host}, it is tried again: {failure.line}")
            else:
                self.given_up[part] = failure
                self.stopped |= failure.code == 2  # the input itself is at fault: nothing else will help
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


def prepare_on_nodes(
    inputs: Sequence[str],
    tokenizer: Tokenizer,
    out: str | Path,
    hosts: Mapping[str, int],
    *,
    val_fraction: float = 0.02,
    workers: int = 0,
    force: bool = False,
    progress: Progress = lambda n: None,
    joining: Progress = lambda n: None,
    note: Note = lambda line: None,
    shard_tokens: int = SHARD_TOKENS,
    again: str = "nano-ds prepare …",
) -> Result:
    """Makes the set at ``out`` on ``hosts`` (name to slots): the same bytes that ``prepare_set`` writes here.

    Parts of an earlier run that are still valid are kept; a part that fails is tried once more, on another node.
    ``progress`` is told of input encoded (a negative number where a part is begun anew), ``joining`` as in
    ``join_parts``, ``note`` of what did not go as it should.

    Raises:
        UserError: as ``prepare_set``, also when the text on a node is not the text here.
        RunFailure: a part failed twice; the others are kept for the next run.
    """
    plan = SetPlan.of(inputs, tokenizer, out, val_fraction, shard_tokens)
    with alone(plan.out):
        ready = existing(plan, force)
        if ready:
            remove_parts(plan.out)
            return ready
        count = _part_count(plan.out, sum(hosts.values()))
        wrong = check_parts(plan.sources, tokenizer, plan.out, count, range(1, count + 1))
        share = sum(s.size for s in plan.sources) // count
        progress(share * (count - len(wrong)))
        for number, why in wrong.items():
            if why != "missing":
                note(f"part {number} of an earlier run is {why}; it is made again")
        used: set[str] = set()
        try:
            if wrong:
                job = {"texts": list(inputs), "tokenizer": _text_of(tokenizer), "out": str(out), "workers": workers}
                used = _run(Board(list(wrong), set(hosts), note), {**job, "parts": count}, plan, progress)
            done = join_checked(plan, count, joining, again)
        except BaseException:
            with contextlib.suppress(OSError):
                parts_folder(plan.out).rmdir()
            raise
        for host in used:
            if not is_local(host):
                _remove(host, plan.out)
    return done


def _part_count(out: Path, slots: int) -> int:
    """One part per slot, or as many as an earlier run made, so that its parts are of use with other hosts too."""
    names = [p.name for p in parts_folder(out).glob("part-*-of-*")]
    found = Counter(int(name[-5:]) for name in names if re.fullmatch(r"part-\d{5}-of-\d{5}", name))
    return found.most_common(1)[0][0] if found else slots


def _text_of(tokenizer: Tokenizer) -> str:
    with tempfile.TemporaryDirectory() as tmp:
        tokenizer.save(Path(tmp) / "tokenizer.json")
        return (Path(tmp) / "tokenizer.json").read_text(encoding="utf-8")


def _run(board: Board, job: dict[str, Any], plan: SetPlan, progress: Progress) -> set[str]:
    """Makes the waiting parts; returns the hosts that worked on one. Leaves no process behind, whatever happens."""
    lock = threading.Lock()
    used: set[str] = set()
    children: dict[str, subprocess.Popen[bytes]] = {}
    broken: list[BaseException] = []

    def told(count: int) -> None:
        with lock:
            progress(count)

    def serve(host: str) -> None:
        try:
            while (number := board.take(host)) is not None:
                part = Part(number, job["parts"])
                failure = _make(host, part, job, plan, told, children, board)
                if failure is None or failure.code != UNREACHABLE:
                    used.add(host)
                if failure is None:
                    board.done(number)
                else:
                    board.failed(number, failure)
        except BaseException as e:  # such as a full disk here: nobody else can go on either
            broken.append(e)
            board.stop()

    threads = [threading.Thread(target=serve, args=(host,), daemon=True) for host in sorted(board.hosts)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
                if board.stopped:
                    break
    finally:
        board.stop()
        _let_go(children)
        for thread in threads:
            thread.join()
    if broken:
        raise broken[0]
    if board.given_up:
        raise _report(board.given_up, job["parts"])
    return used


def _make(
    host: str,
    part: Part,
    job: dict[str, Any],
    plan: SetPlan,
    progress: Progress,
    children: dict[str, subprocess.Popen[bytes]],
    board: Board,
) -> Failure | None:
    """One attempt at one part on one host, up to the part lying here."""
    command = ssh.on_host(host, ssh.python("-m", "nano_ds.prepare.node"))
    seen = 0
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile() as errors:
        with board.changed:
            if board.stopped:
                return Failure(host, 130, "stopped")
            # A session of its own: Ctrl-C comes from us, by the leash, here as there.
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
            children[host] = child
        assert child.stdin and child.stdout
        with contextlib.suppress(OSError, ValueError):  # it is gone already: its exit code says why
            child.stdin.write(json.dumps({**job, "part": part.number}).encode() + b"\n")
            child.stdin.flush()
        for line in child.stdout:
            last = _message(line) or last
            count = int(last.pop("consumed", 0))
            seen += count
            progress(count)
        code = child.wait()
        _close(child.stdin)
        line_of_error = _last_line(errors)
    if code or "done" not in last:
        progress(-seen)
        return Failure(host, code or 1, line_of_error or f"ended with code {code} and said nothing")
    progress(int(last["total"]) - seen)
    if last.get("note"):
        board.note(f"{host}: {last['note']}")
    failure = _bring(host, part, str(last["done"]), plan.out)
    fault = "" if failure else part_fault(part, plan.sources, plan.tokenizer, plan.out)
    return Failure(host, 1, f"the part from there is {fault}") if fault else failure


def _bring(host: str, part: Part, check: str, out: Path) -> Failure | None:
    """Copies a finished part here, unless the disk is shared and it is here."""
    folder = part.folder(out)
    with contextlib.suppress(OSError, ValueError, TypeError):
        if json.loads((folder / FACTS).read_bytes())["check"] == check:
            return None
    if is_local(host):
        return Failure(host, 1, f"{folder}: made and not there")
    try:
        with atomic_dir(folder) as tmp:
            for name in (DATA, FACTS):
                ssh.fetch(host, folder / name, tmp / name)
    except RunFailure as e:
        return Failure(host, UNREACHABLE, str(e))
    return None


def _message(line: bytes) -> dict[str, Any]:
    """A line of a node; what a login script may print besides is passed over."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix(f"{PROGRAM}: ") if lines else ""


def _let_go(children: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """Ends what still runs: the leash first, which works over ssh too; by force what does not follow."""
    for child in children.values():
        _close(child.stdin)
    for child in children.values():
        try:
            child.wait(GRACE + 5)
        except subprocess.TimeoutExpired:
            child.kill()


def _close(pipe: IO[bytes] | None) -> None:
    if pipe:
        with contextlib.suppress(OSError):
            pipe.close()


def _remove(host: str, out: Path) -> None:
    """Clears the parts on a node's own disk (on a shared one they are gone)."""
    job = json.dumps({"remove": str(out)}) + "\n"
    command = ssh.on_host(host, ssh.python("-m", "nano_ds.prepare.node"))
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, input=job.encode(), capture_output=True, timeout=60)


def _report(given_up: Mapping[int, Failure], count: int) -> Exception:
    number, failure = min(given_up.items())
    where = f"part {number}/{count} failed {ATTEMPTS} times, last on {failure.host}: {failure.line}"
    if len(given_up) > 1:
        where += f" (and {len(given_up) - 1} more parts)"
    if failure.code == 2:
        return UserError(where)
    return RunFailure(f"{where}; run it again, the parts that are done are kept")
