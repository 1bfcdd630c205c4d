"""Signals every process of a run on this machine, found by the token in its environment.

python -m nano_ds.nodes.reap TOKEN [--signal N] [--trainers]

Without --signal they are ended for good (SIGKILL). Prints the process ids as a JSON list.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys

import psutil

from nano_ds.nodes.wire import RUN


def members(token: str, trainers: bool = False) -> list[psutil.Process]:
    """Processes of the run; ``trainers``: only those that train, not the launchers above them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.environ().get(RUN) != token:
                continue
            if trainers and not _trains(process.cmdline()):
                continue
        except (psutil.Error, OSError):
            continue
        found.append(process)
    return found


def _trains(words: list[str]) -> bool:
    if any("deepspeed.launcher" in w or w.endswith("/deepspeed") for w in words):
        return False
    if not words or not os.path.basename(words[0]).startswith("python"):
        return False
    return any(w.endswith("launch/train.py") for w in words)


def send(token: str, number: int, trainers: bool = False) -> list[int]:
    """Sends signal ``number``; returns the process ids that got it."""
    reached = []
    # A launcher that is still alive would start nothing new, but it would answer for its children: it goes first.
    for process in sorted(members(token, trainers), key=lambda p: p.pid):
        try:
            process.send_signal(number)
            reached.append(process.pid)
        except psutil.Error:
            continue
    return reached


def main() -> int:
    parser = argparse.ArgumentParser(prog="nano_ds.nodes.reap", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("token")
    parser.add_argument("--signal", type=int, default=int(signal.SIGKILL))
    parser.add_argument("--trainers", action="store_true", help="leave launchers alone")
    args = parser.parse_args()
    print(json.dumps(send(args.token, args.signal, args.trainers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
