"""The first process of a node: gives the machine its name and its disks, then lives as long as its input is open.

Its process-id namespace dies with it, so nothing of a node outlives the test session, however that ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys


def main() -> None:
    spec = json.loads(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans of the node vanish when they end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    socket.sethostname(spec["name"])
    mount("-t", "sysfs", "sysfs", "/sys")  # the interfaces of this node
    for place, size in spec["disks"].items():
        mount("-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", place)
    for source, target in spec["files"].items():
        mount("--bind", source, target)
    print("ready", flush=True)
    sys.stdin.read()


def mount(*words: str) -> None:
    # Not by subprocess.run: with SIGCHLD ignored the exit code is lost, so the table of mounts is asked instead.
    subprocess.Popen(["mount", *words]).wait()
    target = os.path.realpath(words[-1])
    with open("/proc/self/mounts", encoding="utf-8") as f:
        if target not in [line.split()[1].replace("\\040", " ") for line in f]:
            sys.exit(f"cannot mount {target}")


if __name__ == "__main__":
    main()
