"""Commands and files on other machines, over ssh without a password.

Every node has the project in the same folder with the same virtual environment, as DeepSpeed's launcher wants it too.
PDSH_SSH_ARGS_APPEND, which pdsh reads, adds options to our own ssh as well (for example ``-F my_ssh_config``).
"""

from __future__ import annotations

import os
import re
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


def on_host(host: str, words: Sequence[str], even_here: bool = False) -> list[str]:
    """The command line that runs ``words`` on ``host`` in this working directory.

    On this machine that is plain ``words``, unless ``even_here`` wants ssh tried as launchers use it.
    """
    if not even_here and is_local(host):
        return list(words)
    extra = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    there = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(words)}"
    return ["ssh", *OPTIONS, *extra, host, there]


def run(
    host: str, words: Sequence[str], timeout: float = 60, even_here: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs ``words`` on ``host``; the result's code is 255 when ssh itself failed, 124 when the time was up."""
    command = on_host(host, words, even_here)
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


def diagnose(host: str, done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """Why a Python command did not run on ``host``, in a few words, and what to do about it."""
    said = done.stderr.strip()
    last = said.splitlines()[-1] if said else "no reason given"
    where = os.getcwd()
    if done.returncode == 124:
        return "no answer", f"{host}: look at its load and the network; `ssh {host} true` should take a second"
    for word, short, fix in _SSH_WORDS:
        if done.returncode == 255 and word in said:
            return short, fix.format(host=host)
    if done.returncode == 255:
        return "ssh failed", f"`ssh {host} true` has to work without a question; it says: {last}"
    if "cd: " in said or "can't cd to" in said:
        return "no such folder", f"put the project at {where} on {host} too (same path, same revision)"
    if done.returncode in (126, 127):
        return "no such Python", f"make the same environment on {host}: {sys.executable} is missing or cannot run"
    missing = re.search(r"No module named '?([\w.]+)", said)
    if missing and missing[1].split(".")[0] == "nano_ds":
        return "no nano_ds", f"{host}: run `{sys.executable} -m pip install -e {where}`, at the same revision as here"
    if missing:
        package = missing[1].split(".")[0]
        return f"no {package}", f"{host}: run `{sys.executable} -m pip install -r {where}/requirements.txt` ({package})"
    return "failed", f"{host}: {last}"


_SSH_WORDS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "host key changed",
        "if {host} was really reinstalled: `ssh-keygen -R {host}`, then `ssh {host}` once",
    ),
    ("Host key verification failed", "host unknown", "say yes to its key once: `ssh {host} true`"),
    ("Permission denied", "key refused", "let this machine in without a password: `ssh-copy-id {host}`"),
    (
        "Too many authentication failures",
        "key refused",
        "name the right key for {host} in ~/.ssh/config (IdentityFile)",
    ),
    ("Connection refused", "ssh refused", "start the ssh server on {host}: `systemctl start ssh`, and check its port"),
    ("Could not resolve", "no such name", "{host} has no address: correct the hostfile, or add it to /etc/hosts"),
    (
        "Name or service not known",
        "no such name",
        "{host} has no address: correct the hostfile, or add it to /etc/hosts",
    ),
    ("timed out", "unreachable", "{host} does not answer: is it up, and on this network? (`ping {host}`)"),
    ("No route to host", "unreachable", "there is no way to {host}: is it up, and on this network? (`ping {host}`)"),
    ("Network is unreachable", "unreachable", "there is no way to {host}: look at this machine's network"),
    ("Connection closed", "ssh refused", "the ssh server on {host} hung up: look at its log (`journalctl -u ssh`)"),
    ("Connection reset", "ssh refused", "the ssh server on {host} hung up: look at its log (`journalctl -u ssh`)"),
)
