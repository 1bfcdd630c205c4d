"""Commands and files on other machines, over ssh without a password.

Every node has the project in the same folder with the same virtual environment, as DeepSpeed's launcher wants it too.
PDSH_SSH_ARGS_APPEND, which pdsh reads, adds options to our own ssh as well (for example ``-F my_ssh_config``).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nano_ds.errors import RunFailure
from nano_ds.files import atomic_write
from nano_ds.nodes.hostfile import is_local

# Never a question, never a wait without end; a link that went silent is noticed after 30 s.
OPTIONS = ("-oBatchMode=yes", "-oConnectTimeout=10", "-oServerAliveInterval=10", "-oServerAliveCountMax=3")


def on_host(host: str, words: Sequence[str]) -> list[str]:
    """The command line that runs ``words`` on ``host`` in this working directory; plain ``words`` on this machine."""
    if is_local(host):
        return list(words)
    extra = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    there = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(words)}"
    return ["ssh", *OPTIONS, *extra, host, there]


def run(host: str, words: Sequence[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs ``words`` on ``host``; the result's code is 255 when ssh itself failed, 124 when the time was up."""
    command = on_host(host, words)
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {timeout:.0f} s")


def python(*words: str) -> list[str]:
    """``words`` as arguments of this very interpreter, which every node has at the same path."""
    return [sys.executable, *words]


def fetch(host: str, there: Path, here: Path) -> None:
    """Copies one file from ``host``; ``here`` appears whole or not at all.

    Raises:
        RunFailure: the host or the file cannot be reached.
    """
    with atomic_write(here, "wb") as f:
        command = on_host(host, ["cat", str(there)])
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.PIPE)
        if done.returncode:
            why = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
            raise RunFailure(f"{host}:{there}: cannot fetch it: {why}")
