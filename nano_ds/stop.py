"""SIGINT and SIGTERM as a request that the training loop answers between two steps."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType

from nano_ds.nodes import wire
from nano_ds.nodes.ancestors import launchers, one_is_gone

# Set by `nano-ds train` for the processes that it starts: who waits for them.
SUPERVISOR = "NANO_DS_SUPERVISOR"


def supervisor_id() -> str:
    """This process, in words that mean nothing on another machine or in another container."""
    return f"{_machine()}:{os.getpid()}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename


class StopRequest:
    """SIGINT, SIGTERM, SIGHUP and the death of supervisor or launcher ask for a checkpoint.

    A second Ctrl-C ends at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._since = 0.0
        machine, _, pid = os.environ.get(SUPERVISOR, "").rpartition(":")
        self._supervisor = int(pid) if pid.isdigit() and machine == _machine() else 0
        self.launchers = [] if SUPERVISOR in os.environ else launchers()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    @property
    def asked(self) -> bool:
        return self._asked or self._orphaned()

    def _orphaned(self) -> bool:
        if wire.unheard():
            return True
        if not self._supervisor:
            return one_is_gone(self.launchers)
        try:
            os.kill(self._supervisor, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Launchers answer one Ctrl-C with several signals, so only a later SIGINT counts as impatience.
        if self._asked and number == signal.SIGINT and time.monotonic() - self._since > 1.0:
            raise KeyboardInterrupt
        if not self._asked:
            self._asked, self._since = True, time.monotonic()
