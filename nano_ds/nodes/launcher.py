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
from nano_ds.nodes.hostfile import is_local, read_hostfile
from nano_ds.stop import SUPERVISOR

SCRIPT = Path(__file__).resolve().parent.parent.parent / "launch" / "train.py"


def local_processes() -> int:
    """One per GPU of this machine, or one."""
    import torch

    return max(1, torch.cuda.device_count())


def command(args: Sequence[str], processes: int | None, hostfile: str | None) -> list[str]:
    """The command line that trains: the script itself for one process, else the deepspeed launcher."""
    if not SCRIPT.is_file():
        raise UserError(f"{SCRIPT}: not found; install from a checkout (`pip install -e .`) to train")
    if hostfile is not None:
        hosts = read_hostfile(hostfile)
        if not all(is_local(h) for h in hosts):
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
