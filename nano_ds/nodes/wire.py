"""What a rank tells `nano-ds train`, which watches it: lines that name the rank, a first word and a last one.

The lines of all ranks come through one pipe, some of them by way of pdsh or mpirun. A rank that is watched (NANO_DS_RUN
is set) writes each line whole, behind a mark with its number; what libraries write past Python stays without a mark.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RUN = "NANO_DS_RUN"  # environment variable: the token of the run; every process of it has it, on every node
_MARK, _EVENT = "\x02", "\x03"
# Before it stands pdsh's "host: ", or what a library wrote without an end of line.
_LINE = re.compile(rf"{_MARK}(?P<rank>\d+)(?P<kind>[{_MARK}{_EVENT}])(?P<text>.*)", re.S)


@dataclass(frozen=True)
class Line:
    """One line of a rank; ``event`` is set where it is a message rather than text."""

    rank: int
    text: str
    event: Mapping[str, Any] | None = None


def parse(line: str) -> Line | None:
    """The rank's line in a line of output; None for what is no rank's."""
    found = _LINE.search(line)
    if not found:
        return None
    rank, text = int(found["rank"]), found["text"]
    if found["kind"] == _MARK:
        return Line(rank, text)
    try:
        event = json.loads(text)
    except ValueError:
        return Line(rank, text)
    return Line(rank, "", event if isinstance(event, dict) else {})


class Tagged(io.TextIOBase):
    """A text stream that writes whole lines to a descriptor, each marked with the rank."""

    encoding = "utf-8"

    def __init__(self, fd: int, rank: int):
        self.fd, self.rank, self.rest, self.broken = fd, rank, "", False

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        if lines:
            self._send("".join(f"{_MARK}{self.rank}{_MARK}{line}\n" for line in lines))
        return len(text)

    def event(self, facts: Mapping[str, Any]) -> None:
        self._send(f"{_MARK}{self.rank}{_EVENT}{json.dumps(dict(facts))}\n")

    def _send(self, text: str) -> None:
        data = text.encode("utf-8", errors="replace")
        try:
            while data:
                data = data[os.write(self.fd, data) :]
        except OSError:
            # Nobody listens any more: training goes on to its next step, where `unheard` asks for a checkpoint.
            self.broken = True

    def flush(self) -> None:
        """Lines go out as they end; an unfinished one waits for its end."""

    def close(self) -> None:
        if self.rest:
            self.write("\n")

    def fileno(self) -> int:
        return self.fd

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


_stream: Tagged | None = None


def begin(rank: int) -> None:
    """Marks this process's lines from now on and says that it is there; does nothing when nobody watches."""
    global _stream
    if RUN not in os.environ:
        return
    _stream = Tagged(2, rank)
    sys.stdout = sys.stderr = _stream
    _stream.event({"event": "start", "host": os.uname().nodename, "pid": os.getpid()})


def end(code: int, error: str = "") -> None:
    """Says how this process ends; only the first call counts."""
    global _stream
    if _stream is not None:
        _stream.close()
        _stream.event({"event": "end", "code": code, "error": error[:1000]})  # stays whole in the pipe
        _stream = None


def unheard() -> bool:
    """Whether this process was watched and its lines reach nobody now: whoever started the run is gone."""
    return _stream is not None and _stream.broken
