"""Starts `launch/train.py` on this machine or over a hostfile, passes signals on and waits for the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from nano_ds.errors import UserError
from nano_ds.stop import SUPERVISOR

SCRIPT = Path(__file__).resolve().parent.parent / "launch" / "train.py"


def local_processes() -> int:
    """One per GPU of this machine, or one."""
    import torch

    return max(1, torch.cuda.device_count())


def read_hostfile(path: str) -> dict[str, int]:
    """Processes by host. Raises UserError where DeepSpeed would ignore the file and quietly train on one machine."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such hostfile; write lines like `node1 slots=2` (see hostfiles/)") from None
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot read the hostfile: {e}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not words[1].startswith("slots=") or not words[1][6:].isdigit() or words[1] == "slots=0":
            raise UserError(f"{path}:{number}: {line.strip()!r} is no host; write `NAME slots=PROCESSES`")
        hosts[words[0]] = int(words[1][6:])
    if not hosts:
        raise UserError(f"{path}: names no host; write lines like `node1 slots=2` (see hostfiles/)")
    return hosts


def command(args: Sequence[str], processes: int | None, hostfile: str | None) -> list[str]:
    """The command line that trains: the script itself for one process, else the deepspeed launcher."""
    if not SCRIPT.is_file():
        raise UserError(f"{SCRIPT}: not found; install from a checkout (`pip install -e .`) to train")
    if hostfile is not None:
        hosts = read_hostfile(hostfile)
        if set(hosts) - {"localhost", "127.0.0.1", socket.gethostname()}:
            return [*_deepspeed(), "--hostfile", hostfile, str(SCRIPT), *args]
        # DeepSpeed would want ssh to this very machine.
        processes = processes or sum(hosts.values())
    processes = processes or local_processes()
    if processes == 1:
        return [sys.executable, str(SCRIPT), *args]
    # The hostfile that DeepSpeed would find by itself must not turn a local run into a remote one, and its fixed port
    # would forbid two runs on one machine.
    local = ["--hostfile", os.devnull, "--num_gpus", str(processes), "--master_port", str(free_port())]
    return [*_deepspeed(), *local, str(SCRIPT), *args]


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _deepspeed() -> list[str]:
    return [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet"]


def is_multiple(command: Sequence[str]) -> bool:
    """Whether a launcher starts several processes."""
    return "deepspeed.launcher.runner" in command


def run(command: Sequence[str]) -> int:
    """Runs the command; SIGINT and SIGTERM reach the training processes alone. Returns the exit code.

    The launcher sits in a session of its own: it would kill the processes before they have saved.
    """
    env = {"OMP_WAIT_POLICY": "passive", "DS_SKIP_CUDA_CHECK": "1", **os.environ, SUPERVISOR: str(os.getpid())}
    child = subprocess.Popen(command, env=env, start_new_session=True)

    passed_on: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        passed_on.append(number)
        for pid in _trainers(child.pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    code = child.wait()
    if code and passed_on:
        return 128 + passed_on[0]
    return 128 - code if code < 0 else code


def _trainers(root: int) -> list[int]:
    """Process ids below ``root`` (itself included) that run the training script rather than a launcher."""
    import psutil

    try:
        parent = psutil.Process(root)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    found = []
    for process in family:
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if str(SCRIPT) in words and not any("deepspeed.launcher" in w or w.endswith("/deepspeed") for w in words):
            found.append(process.pid)
    return found
