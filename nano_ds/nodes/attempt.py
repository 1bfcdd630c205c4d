"""One start of a run, watched to its end: lines passed on, signals passed on, a failure ends every process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import IO

from nano_ds.monitor import say
from nano_ds.nodes import ssh, wire
from nano_ds.nodes.hostfile import is_local
from nano_ds.nodes.launcher import Launch
from nano_ds.nodes.reap import send

LAST_LINES = 5
PREFIX = "nano-ds train: "
# Seconds from the first sign of a failure to the end of what is still alive: time for the others to say how they fare.
GRACE = 6.0
# The same after a signal that asked for a checkpoint, which may take long to write.
SAVING = 120.0

_PDSH_EXIT = re.compile(r"pdsh@[^:]+: (?P<host>[^:]+): ssh exited with exit code (?P<code>\d+)")
_LAUNCH_EXIT = re.compile(
    r"(?:(?P<host>[^\s:]+): )?\[.*\] \[ERROR\] \[launch\.py.* exits with return code = (?P<code>-?\d+)"
)
_MPI_SIGNAL = re.compile(
    r"mpirun noticed that process rank (?P<rank>\d+) with PID \d+ on node \S+ exited on signal (?P<signal>\d+)"
)
# It says so with many guesses and no name.
_MPI_LOST = re.compile(r"ORTE (was unable to reliably start|has lost communication)")
# What launchers say to those who maintain them; all of it stays in launch.log.
_NOISE = re.compile(
    r"(?:[^\s:]+: )?(?:"
    r"\[\d{4}-\d\d-\d\d [\d:,]+\] \[(?:INFO|WARNING|ERROR)\] \["
    r"|\[[WI]\d{4} [\d:.]+ "  # of torch's C++ side, whose errors stay: NCCL names causes there
    r"|\[E\d{4} [\d:.]+ (?:socket|TCPStore)\.cpp:"  # but who did not come, our own line says
    r"|Exception raised from |frame #\d+: |<omitting python frames>"
    r"|Detected VISIBLE_DEVICES="
    r"|Warning: Permanently added "
    r"|pdsh@[^:]+: |Killed by signal |Terminated$|Connection to \S+ closed"
    r"|mpirun: |\[\S+:\d+\] |\s*$)"
)
_RULE = re.compile(r"-{60,}")


@dataclass
class Rank:
    """What is known of one training process."""

    number: int
    host: str = ""
    pid: int = 0
    code: int | None = None  # as it said itself
    error: str = ""
    ended: float = 0.0
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: ``code`` 0 well, 2 by the user's mistake, 1 otherwise; ``stopped``: the signal, if any."""

    code: int
    cause: str = ""  # one line
    lines: tuple[str, ...] = ()  # the last ones of the process that failed
    stopped: int = 0


class Attempt:
    """Starts the launcher and watches it; ``run`` returns when every process of the run has ended."""

    def __init__(self, launch: Launch, log: Path | None):
        self.launch = launch
        self.log_path = log
        self.log: IO[str] | None = None
        self.ranks: dict[int, Rank] = {}
        self.exits: dict[str, int] = {}  # by host, in the order of their ends: what the launcher there reported
        self.loose: dict[str, deque[str]] = {}  # by host: lines of no rank
        self.killed: set[int] = set()
        self.signals: list[int] = []
        self.impatient = False
        self.early = False  # told to stop before the training began
        self._asked_at = 0.0
        self.failed_at: float | None = None
        # As the hostfile names them, which is how launchers speak of them too; ranks are given out line by line.
        self._hosts = dict(enumerate(h for h, slots in launch.place.hosts.items() for _ in range(slots)))
        self.dark: set[str] = set()  # hosts that ssh lost
        self.mpi_signals: dict[int, int] = {}
        self.mpi_lost = False
        self._shown: dict[str, int] = {}  # the lines shown lately, and which rank said them
        self._in_rule = False

    def run(self) -> Outcome:
        launch = self.launch
        with self._logging(), self._signals():
            # A session of its own: the terminal's Ctrl-C would make launchers kill what has not saved yet.
            child = subprocess.Popen(
                launch.command,
                env=launch.env,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            try:
                self._watch(child)
            except BaseException:
                self._end_all()
                raise
            return self._outcome(child.returncode)

    @property
    def _stopped(self) -> int:
        return self.signals[0] if self.signals else 0

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        if self.log_path is not None:
            try:
                self.log_path.parent.mkdir(parents=True, exist_ok=True)
                self.log = open(self.log_path, "a", encoding="utf-8")  # noqa: SIM115
                self.log.write(f"# {datetime.now().isoformat(timespec='seconds')} {' '.join(self.launch.command)}\n")
            except OSError:
                self.log = None  # a disk that cannot take this will be said by the run itself
        try:
            yield
        finally:
            if self.log is not None:
                with contextlib.suppress(OSError):
                    self.log.close()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        before = {n: signal.signal(n, self._on_signal) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signals and number == signal.SIGINT and time.monotonic() - self._asked_at > 1.0:
            self.impatient = True
            return
        if not self.signals:
            self._asked_at = time.monotonic()
        self.signals.append(number)

    def _watch(self, child: subprocess.Popen[str]) -> None:
        lines: queue.Queue[str | None] = queue.Queue()
        assert child.stdout is not None
        threading.Thread(target=_pump, args=(child.stdout, lines), daemon=True).start()
        passed_on = 0
        reaped = False
        gone: float | None = None
        while True:
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:
                pass
            else:
                if line is None:
                    break
                self._take(line)
            if self.impatient and not reaped:
                reaped = True
                self._end_all()
            if passed_on < len(self.signals):
                if self._all_there():
                    self._pass_on(self.signals[passed_on])
                elif not reaped:
                    # Nobody trains before all are there: there is nothing to save, and some would not hear it.
                    self.early = reaped = True
                    self._end_all()
                passed_on += 1
            now = time.monotonic()
            if child.poll() is not None and gone is None:
                gone = now
                if not self._all_well():
                    self.failed_at = self.failed_at or now
            hurry = bool(self.dark) and not self.signals  # the others hang, and what hangs has nothing to say
            grace = SAVING if self.signals else GRACE
            if self.failed_at is not None and not reaped and (hurry or now - self.failed_at > grace):
                reaped = True
                self._end_all()
            if gone is not None and now - gone > grace + 2:
                break  # something that is not ours holds the pipe
            if reaped and self.failed_at is not None and now - self.failed_at > grace + 14 and gone is None:
                # Every trainer that could be reached is dead; a launcher that waits for a node in the dark is not.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        # Whatever the launcher's code: DeepSpeed's runner ends with 0 when a signal killed its pdsh.
        if not reaped and not self._all_well():
            if self.signals and not self.impatient:
                self._let_them_save()
            self._end_all()

    def _let_them_save(self) -> None:
        """Waits for trainers that were told to stop but whose launcher got the signal too, so that nothing is heard."""
        end = time.monotonic() + SAVING
        command = self._reap_command(0)  # reaches whoever is there, and does nothing to them
        while time.monotonic() < end and not self.impatient:
            answers = _everywhere([h for h in self.launch.place.remote if not is_local(h)], command)
            if not send(self.launch.token, 0, trainers=True) and all(a.strip() in ("", "[]") for a in answers):
                return
            time.sleep(0.5)

    def _reap_command(self, number: int) -> list[str]:
        return ssh.python("-m", "nano_ds.nodes.reap", self.launch.token, "--signal", str(number), "--trainers")

    def _all_there(self) -> bool:
        """Whether every rank that this program starts has said that it is there; from then on it answers signals."""
        place = self.launch.place
        wanted = place.world if place.node_rank is None else list(place.hosts.values())[place.node_rank]
        return len(self.ranks) == wanted

    def _all_well(self) -> bool:
        """Whether every rank of the run said that it ended well."""
        return self._all_there() and all(r.code == 0 for r in self.ranks.values())

    def _take(self, raw: str) -> None:
        raw = raw.rstrip("\r\n")
        line = wire.parse(raw)
        if line is None:
            self._write(raw)
            self._loose_line(raw)
            return
        rank = self.ranks.setdefault(line.rank, Rank(line.rank))
        if line.event is not None:
            self._write(f"[rank {line.rank}] {json.dumps(dict(line.event))}")
            self._event(rank, line)
            return
        self._write(f"[rank {line.rank}] {line.text}")
        if line.text.strip():
            rank.lines.append(line.text)
        if line.text.startswith(PREFIX):
            return  # said once, at the end
        if self._shown.get(line.text, line.rank) != line.rank:
            return  # another rank said the same
        self._show(line.text, line.rank)

    def _event(self, rank: Rank, line: wire.Line) -> None:
        event = line.event or {}
        if event.get("event") == "start":
            rank.host = self._hosts.get(rank.number, str(event.get("host", "")))
            rank.pid = int(event.get("pid", 0))
        elif event.get("event") == "end":
            rank.code, rank.error = int(event.get("code", 1)), str(event.get("error", ""))
            rank.ended = time.monotonic()
            if rank.code:
                self.failed_at = self.failed_at or rank.ended

    def _loose_line(self, raw: str) -> None:
        host = ""
        if found := (_PDSH_EXIT.search(raw) or _LAUNCH_EXIT.search(raw)):
            host, code = found["host"] or "", int(found["code"])
            self.exits.setdefault(host, code)
            if found.re is _PDSH_EXIT and code == 255:
                self.dark.add(host)
            self.failed_at = self.failed_at or time.monotonic()
            return
        if found := _MPI_SIGNAL.search(raw):
            self.mpi_signals.setdefault(int(found["rank"]), int(found["signal"]))
            self.failed_at = self.failed_at or time.monotonic()
        if _MPI_LOST.match(raw):
            self.mpi_lost = True
            self.dark.update(h for h in self.launch.place.hosts if not is_local(h))
            self.failed_at = self.failed_at or time.monotonic()
        if _RULE.fullmatch(raw):
            self._in_rule = not self._in_rule and self.launch.place.launcher == "openmpi"
            return
        if self._in_rule or _NOISE.match(raw) or not raw.strip():
            return
        host, _, text = raw.partition(": ")
        if host not in self.launch.place.hosts:
            host, text = "", raw
        self.loose.setdefault(host, deque(maxlen=LAST_LINES)).append(text)
        self._show(text)

    def _show(self, text: str, rank: int = -1) -> None:
        self._shown[text] = rank
        if len(self._shown) > 200:
            del self._shown[next(iter(self._shown))]
        say(text)

    def _write(self, text: str) -> None:
        if self.log is not None:
            try:
                self.log.write(text + "\n")
                self.log.flush()
            except OSError:
                self.log = None

    def _pass_on(self, number: int) -> None:
        """To the trainers alone: launchers would kill them before they have saved. One is enough, ranks agree."""
        if send(self.launch.token, number, trainers=True):
            return
        _everywhere([h for h in self.launch.place.remote if not is_local(h)], self._reap_command(number))

    def _end_all(self) -> None:
        """SIGKILL to all that is left of the run, on every node that answers."""
        self.killed.update(end_run(self.launch))

    def _outcome(self, returncode: int) -> Outcome:
        if self.impatient:
            return Outcome(128 + signal.SIGINT, "ended at once by a second Ctrl-C", (), self._stopped or signal.SIGINT)
        if self.early:
            return Outcome(128 + self._stopped, "stopped before the training began", (), self._stopped)
        if self._all_well():
            return Outcome(0, stopped=self._stopped)  # whatever happened to the launcher
        bad = [r for r in self.ranks.values() if r.code not in (0, None)]
        bad.sort(key=lambda r: r.ended)
        mistakes = [r for r in bad if r.code == 2]
        if mistakes:
            return Outcome(2, mistakes[0].error, (), self._stopped)
        if self._stopped and not bad and not self.exits:
            saved = "its processes were told to save, which --resume auto will find"
            return Outcome(1, f"the launcher got the signal too, so the end was not heard; {saved}", (), self._stopped)
        silent = [r for r in self.ranks.values() if r.code is None and r.pid not in self.killed]
        order = {host: i for i, host in enumerate(self.exits)}
        silent.sort(key=lambda r: (order.get(r.host, len(order)), r.number))
        lost = [h for h, code in self.exits.items() if code == 255]
        if self.mpi_lost:
            far = " or ".join(h for h in self.launch.place.hosts if not is_local(h))
            how = "the connection to {} was lost" if self.ranks else "Open MPI could not start its daemon on {}"
            return Outcome(1, how.format(far), (), self._stopped)
        if silent:
            rank = silent[0]
            others = [r for r in silent[1:] if r.host == rank.host]
            cause = f"{self._who([rank, *others])} {self._how(rank)}"
            lines = rank.lines or self.loose.get(rank.host) or self.ranks.get(0, rank).lines
            return Outcome(1, cause, tuple(lines), self._stopped)
        if lost:
            where = ", ".join(lost)
            return Outcome(1, f"the connection to {where} was lost", self._lines_of_host(lost[0]), self._stopped)
        if bad:
            # The first to fail is the cause; the others failed because it was gone.
            rank = bad[0]
            said = tuple(line for line in rank.lines if not line.startswith(PREFIX))
            return Outcome(1, f"{self._who([rank])} failed: {rank.error}", said, self._stopped)
        for host, code in self.exits.items():
            where = f" on {host}" if host else ""
            cause = f"the launcher{where} ended with code {code} before the training began"
            return Outcome(1, cause, self._lines_of_host(host), self._stopped)
        cause = f"the launcher ended with code {returncode} while its processes were running"
        return Outcome(1, cause, self._lines_of_host(""), self._stopped)

    def _lines_of_host(self, host: str) -> tuple[str, ...]:
        if host in self.loose:
            return tuple(self.loose[host])
        return tuple(line for r in self.ranks.values() if r.host == host for line in r.lines)[-LAST_LINES:]

    def _who(self, ranks: Sequence[Rank]) -> str:
        numbers = ", ".join(str(r.number) for r in ranks)
        where = f" on {ranks[0].host}" if ranks[0].host else ""
        return f"rank{'s' * (len(ranks) > 1)} {numbers}{where}"

    def _how(self, rank: Rank) -> str:
        code = self.exits.get(rank.host, self.exits.get("", 0))
        number = self.mpi_signals.get(
            rank.number, -code if code < 0 else code - 128 if code > 128 and code != 255 else 0
        )
        if code == 255:
            return "was lost: its node went away, or everything on it was killed"
        if number:
            try:
                name = signal.Signals(number).name
            except ValueError:
                name = f"signal {number}"
            more = " (out of memory? `dmesg` there knows)" if number == signal.SIGKILL else ""
            return f"was ended by {name}{more}"
        # The launcher tells the code of one process a host: of another one, if that said so itself.
        other = any(r.host == rank.host and r.code == code for r in self.ranks.values())
        return f"ended without a word{f' (code {code})' if code and not other else ', killed or crashed'}"


def end_run(launch: Launch) -> set[int]:
    """Ends every process of the run on every node that answers; returns their ids."""
    dead = set(send(launch.token, signal.SIGKILL))
    hosts = [h for h in launch.place.remote if not is_local(h)]
    for text in _everywhere(hosts, ssh.python("-m", "nano_ds.nodes.reap", launch.token)):
        with contextlib.suppress(ValueError, TypeError):
            dead.update(json.loads(text))
    return dead


def _everywhere(hosts: Sequence[str], command: Sequence[str]) -> list[str]:
    """Runs a command on hosts at the same time; what each printed."""
    out: list[str] = []

    def one(host: str) -> None:
        out.append(ssh.run(host, command, timeout=6).stdout)

    threads = [threading.Thread(target=one, args=(h,)) for h in hosts]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return out


def _pump(source: IO[str], lines: queue.Queue[str | None]) -> None:
    with contextlib.suppress(ValueError):
        for line in source:
            lines.put(line)
    lines.put(None)


def report(outcome: Outcome, log: Path | None) -> None:
    """The readable summary of a failure, on stderr."""
    if outcome.code == 0:
        return
    if outcome.code == 2:
        print(outcome.cause if outcome.cause.startswith(PREFIX) else PREFIX + outcome.cause, file=sys.stderr)
        return
    print(f"{PREFIX}{outcome.cause}; all processes of the run were ended", file=sys.stderr)
    if outcome.lines:
        print("  its last lines:", file=sys.stderr)
        for line in outcome.lines:
            print(f"    {line}", file=sys.stderr)
    if log is not None and log.exists():
        print(f"  everything that was printed: {log}", file=sys.stderr)
