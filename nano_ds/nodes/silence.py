"""Notices that the other end of a connection has gone silent: its power, its cable, its network.

TCP alone waits a quarter of an hour for an answer to what it sent, and for ever when it only listens; a rank that waits
in a collective only listens.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress

LIMIT = 20  # seconds without a sign of life until a connection counts as lost; shorter pauses are survived
PROBE = 5  # seconds between probes of an idle connection


def limit_silence() -> int:
    """Makes every TCP connection of this process fail after LIMIT seconds of silence; returns how many there are.

    Call it again when new ones have been made. The libraries that own the connections offer no such setting.
    """
    count = 0
    with suppress(FileNotFoundError):  # no /proc: not Linux
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError, ValueError):
                if stat.S_ISSOCK(os.stat(int(name)).st_mode):
                    count += _limit(int(name))
    return count


def _limit(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as s:
        if s.type != socket.SOCK_STREAM or s.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        s.getpeername()  # raises OSError for one that only listens
        s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, LIMIT // PROBE - 1)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LIMIT * 1000)
    return True
