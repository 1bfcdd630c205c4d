"""Command lines that start `launch/train.py`: alone, by DeepSpeed on this machine, or by DeepSpeed over a hostfile."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nano_ds.errors import UserError
from nano_ds.nodes.environment import DEFAULTS, for_nodes, write_env_file
from nano_ds.nodes.hostfile import is_host, is_local, read_hostfile, write_hostfile
from nano_ds.nodes.network import address_seen_by, free_port, is_loopback, resolve, subnet_of
from nano_ds.nodes.wire import RUN
from nano_ds.stop import SUPERVISOR, supervisor_id

__all__ = ["SCRIPT", "Launch", "Place", "free_port", "local_processes", "place_of", "prepare"]

SCRIPT = Path(__file__).resolve().parent.parent.parent / "launch" / "train.py"
DEFAULT_PORT = 29500
# A node that went dark is noticed by its ssh connection after 20 s: three questions, 5 s each, after 5 s of silence.
KEEPALIVE = "-oBatchMode=yes -oServerAliveInterval=5 -oServerAliveCountMax=3"
PROGRAMS = {"pdsh": ("pdsh", "pdsh"), "openmpi": ("ompi_info", "openmpi-bin")}  # program, Debian package


@dataclass(frozen=True)
class Place:
    """Where a run's processes are started, and how.

    ``hosts`` is empty for this machine alone. ``node_rank`` is set where every node starts its own (no ssh).
    """

    hosts: Mapping[str, int] = field(default_factory=dict)
    processes: int = 1  # on this machine, without hosts
    launcher: str = "pdsh"
    node_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None

    @property
    def world(self) -> int:
        return sum(self.hosts.values()) or self.processes

    @property
    def remote(self) -> list[str]:
        """Hosts that processes are started on over ssh."""
        return list(self.hosts) if self.node_rank is None else []


@dataclass(frozen=True)
class Launch:
    """One start: what to run, in which environment, and the token that its processes carry."""

    command: list[str]
    env: dict[str, str]
    token: str
    place: Place


def local_processes() -> int:
    """One per GPU of this machine, or one."""
    import torch

    return max(1, torch.cuda.device_count())


def place_of(
    hostfile: str | None,
    *,
    processes: int | None = None,
    launcher: str | None = None,
    node_rank: int | None = None,
    master_addr: str | None = None,
    master_port: int | None = None,
    min_nodes: int | None = None,
) -> Place:
    """Where a run with these options has its processes; a hostfile that names this machine only is a local run.

    Raises:
        UserError: the hostfile cannot be used, or an option has no meaning with it.
    """
    of_nodes = {"launcher": launcher, "node_rank": node_rank, "master_addr": master_addr, "master_port": master_port}
    if hostfile is None:
        for name, value in {**of_nodes, "min_nodes": min_nodes}.items():
            if value is not None:
                raise UserError(f"--{name}: makes sense with --hostfile only (see hostfiles/)")
        return Place(processes=processes or local_processes())
    hosts = read_hostfile(hostfile)
    if processes is not None:
        raise UserError("--processes: over a hostfile the numbers of processes are its slots=")
    if node_rank is not None and node_rank >= len(hosts):
        raise UserError(f"--node_rank: {hostfile} names {len(hosts)} nodes, so the last one is {len(hosts) - 1}")
    if min_nodes is not None and (node_rank is not None or min_nodes > len(hosts)):
        why = "cannot be used with --node_rank" if node_rank is not None else f"{hostfile} names fewer nodes"
        raise UserError(f"--min_nodes: {why}")
    if master_addr is not None and not is_host(master_addr):
        raise UserError(f"--master_addr: {master_addr!r} is no host name or address")
    if all(is_local(h) for h in hosts):
        for name, value in of_nodes.items():
            if value is not None:
                raise UserError(
                    f"--{name}: {hostfile} names this machine only, so there is nothing to reach; leave it out"
                )
        # DeepSpeed would want ssh to this very machine.
        return Place(processes=sum(hosts.values()))
    return Place(hosts, 1, launcher or "pdsh", node_rank, master_addr, master_port)


def check_launcher(place: Place) -> None:
    """Raises UserError when the program that reaches the other nodes is not there, or paths would not survive it."""
    if not place.remote:
        return
    program, package = PROGRAMS[place.launcher]
    if shutil.which(program) is None:
        other = {"pdsh": "openmpi", "openmpi": "pdsh"}[place.launcher]
        raise UserError(
            f"--launcher {place.launcher}: {program} is not installed; `apt-get install {package}`, or use "
            f"--launcher {other}, or start on each node with --node_rank"
        )
    for path in (os.getcwd(), sys.executable, str(SCRIPT)):
        if not re.fullmatch(r"[\w@%+=:,./-]+", path):
            raise UserError(
                f"{path}: DeepSpeed's launcher cannot carry this path to other nodes; use one without blanks"
            )


def prepare(args: Sequence[str], place: Place, folder: Path) -> Launch:
    """The command and environment of one start; ``folder`` takes the files that the launcher reads."""
    if not SCRIPT.is_file():
        raise UserError(f"{SCRIPT}: not found; install from a checkout (`pip install -e .`) to train")
    token = secrets.token_hex(16)
    more = {RUN: token, SUPERVISOR: supervisor_id()}
    env = {**DEFAULTS, **os.environ, **more}
    if not place.hosts:
        return Launch(_local(args, place.processes), env, token, place)
    check_launcher(place)
    hostfile = folder / "hostfile"
    write_hostfile(hostfile, place.hosts)
    address = place.master_addr or master_address(list(place.hosts))
    port = str(place.master_port or DEFAULT_PORT)
    words = [*_deepspeed(), "--hostfile", str(hostfile), "--master_addr", address, "--master_port", port]
    if place.node_rank is not None:
        return Launch([*words, "--no_ssh", "--node_rank", str(place.node_rank), str(SCRIPT), *args], env, token, place)
    words += ["--no_ssh_check", "--force_multi", "--launcher", place.launcher]
    if place.launcher == "openmpi":
        more |= {"MASTER_ADDR": address, "MASTER_PORT": port}
        words += [f"--launcher_args={_mpi_args(address, env)}"]
        if os.geteuid() == 0:
            env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    else:
        args = [for_pdsh(a) for a in args]
        env["PDSH_SSH_ARGS_APPEND"] = f"{env.get('PDSH_SSH_ARGS_APPEND', '')} {KEEPALIVE}".strip()
    env_file = folder / "deepspeed_env"
    write_env_file(env_file, for_nodes(os.environ, more))
    env["DS_ENV_FILE"] = str(env_file)
    return Launch([*words, str(SCRIPT), *args], env, token, place)


def _local(args: Sequence[str], processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-u", str(SCRIPT), *args]
    # The hostfile that DeepSpeed would find by itself must not turn a local run into a remote one, and its fixed port
    # would forbid two runs on one machine.
    local = ["--hostfile", os.devnull, "--num_gpus", str(processes), "--master_port", str(free_port())]
    return [*_deepspeed(), *local, str(SCRIPT), *args]


def master_address(hosts: Sequence[str]) -> str:
    """The first host's address as the others see it, as well as this machine can tell.

    Raises:
        UserError: the name has no address, or only a loopback one.
    """
    first = hosts[0]
    if is_local(first):
        # Its own name often stands for 127.0.1.1 here.
        address = address_seen_by(hosts[1:])
    else:
        address = resolve(first)
    if address is None or is_loopback(address):
        raise UserError(f"{first}: has no address that the other nodes could reach; name it with --master_addr ADDRESS")
    return address


def for_pdsh(arg: str) -> str:
    """An argument as DeepSpeed's pdsh way must get it to arrive unchanged.

    DeepSpeed puts double quotes around arguments with blanks, and nothing around others; pdsh takes % for its own.
    """
    if " " in arg:
        arg = re.sub(r"([\\$`])", r"\\\1", arg)
    else:
        arg = shlex.quote(arg)
    return arg.replace("%", "%%")


def _mpi_args(address: str, env: Mapping[str, str]) -> str:
    """Open MPI finds its networks by subnet, so that interfaces may be named differently on each node."""
    words = []
    subnet = subnet_of(address) or (subnet_of(own) if (own := address_seen_by([address])) else None)
    if subnet:
        words += ["--mca", "oob_tcp_if_include", subnet, "--mca", "btl_tcp_if_include", subnet]
    ssh_args = f"{env.get('PDSH_SSH_ARGS_APPEND', '')} {KEEPALIVE}".strip()
    return shlex.join([*words, "--mca", "plm_rsh_args", ssh_args])


def _deepspeed() -> list[str]:
    return [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet"]


def workplace() -> tempfile.TemporaryDirectory[str]:
    """A folder for the launcher's files that vanishes with the run."""
    return tempfile.TemporaryDirectory(prefix="nano-ds-")
