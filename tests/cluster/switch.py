"""The network of a cluster: a switch between the nodes' eth0, with bad cables on request.

python switch.py PID PORT_NAME …; makes a TAP device eth0 in the network namespace of each process, then obeys lines on
its input until that ends: `slow MILLISECONDS LOSS_PERCENT` or `slow 0 0`, `unplug NAME`, `plug NAME`.

A program rather than `tc netem`: kernels of small virtual machines come without that module, and what works on one
machine only is no test.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
LARGEST = 1 << 16


def tap(pid: int) -> int:
    """A TAP device named eth0 in the network namespace of ``pid``; gone when the descriptor is closed."""
    libc = ctypes.CDLL(None, use_errno=True)
    home, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if libc.setns(there, 0):
            raise OSError(ctypes.get_errno(), "setns")
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI))
        return fd
    finally:
        libc.setns(home, 0)
        os.close(home)
        os.close(there)


class Switch:
    def __init__(self, ports: dict[int, str]):
        self.ports = ports  # descriptor: name
        self.where: dict[bytes, int] = {}  # hardware address: descriptor
        self.unplugged: set[str] = set()
        self.delay, self.loss = 0.0, 0.0
        self.waiting: list[tuple[float, int, int, bytes]] = []  # due, number, descriptor, frame
        self.count = 0

    def run(self) -> None:
        while True:
            timeout = max(0.0, self.waiting[0][0] - time.monotonic()) if self.waiting else None
            readable, _, _ = select.select([0, *self.ports], [], [], timeout)
            for fd in readable:
                if fd == 0:
                    line = os.read(0, 4096).decode()
                    if not line:
                        return
                    for command in line.splitlines():
                        self.obey(command)
                        print("done", flush=True)
                else:
                    self.forward(fd)
            while self.waiting and self.waiting[0][0] <= time.monotonic():
                _, _, fd, frame = heapq.heappop(self.waiting)
                self.send(fd, frame)

    def obey(self, command: str) -> None:
        word, *rest = command.split()
        if word == "slow":
            self.delay, self.loss = float(rest[0]) / 1000, float(rest[1]) / 100
        elif word == "unplug":
            self.unplugged.add(rest[0])
        elif word == "plug":
            self.unplugged.discard(rest[0])

    def forward(self, source: int) -> None:
        try:
            frame = os.read(source, LARGEST)
        except OSError:
            return  # the device is down
        if self.ports[source] in self.unplugged:
            return
        to, self.where[frame[6:12]] = frame[:6], source
        targets = [self.where[to]] if to in self.where else [fd for fd in self.ports if fd != source]
        for fd in targets:
            if self.ports[fd] in self.unplugged or (self.loss and random.random() < self.loss):
                continue
            if self.delay:
                self.count += 1
                heapq.heappush(self.waiting, (time.monotonic() + self.delay, self.count, fd, frame))
            else:
                self.send(fd, frame)

    def send(self, fd: int, frame: bytes) -> None:
        with contextlib.suppress(OSError):  # the device is down: the frame is lost, as on a cable
            os.write(fd, frame)


def main() -> None:
    words = sys.argv[1:]
    ports = {tap(int(pid)): name for pid, name in zip(words[::2], words[1::2], strict=True)}
    # Ahead of what trains: on a machine with few cores the cable must not be what is slow.
    os.setpriority(os.PRIO_PROCESS, 0, -10)
    print("done", flush=True)
    Switch(ports).run()


if __name__ == "__main__":
    main()
