"""Hostfiles: which machines train, and how many processes each runs."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

from nano_ds.errors import UserError

# Host names, and names of ~/.ssh/config. Nothing that ssh would take for an option, or pdsh and shells for a pattern.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SLOTS = re.compile(r"slots=0*([1-9][0-9]{0,5})")


def read_hostfile(path: str) -> dict[str, int]:
    """Processes by host. Raises UserError where DeepSpeed would ignore the file and quietly train on one machine."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()  # editors may begin it with a byte order mark
    except FileNotFoundError:
        raise UserError(f"{path}: no such hostfile; write lines like `node1 slots=2` (see hostfiles/)") from None
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot read the hostfile: {e}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        slots = _SLOTS.fullmatch(words[1]) if len(words) == 2 else None
        if slots is None:
            raise UserError(f"{path}:{number}: {line.strip()[:80]!r} is no host; write `NAME slots=PROCESSES`")
        if not is_host(words[0]):
            raise UserError(
                f"{path}:{number}: {words[0]!r} is no host name or address; names have letters, digits, `-`, `.` and "
                "`_` (a user or port goes into ~/.ssh/config)"
            )
        if words[0] in hosts:
            raise UserError(f"{path}:{number}: {words[0]} is named twice; give it one line with all its slots")
        hosts[words[0]] = int(slots[1])
    if not hosts:
        raise UserError(f"{path}: names no host; write lines like `node1 slots=2` (see hostfiles/)")
    return hosts


def is_host(name: str) -> bool:
    """Whether ``name`` can be a host's name, one of ~/.ssh/config, or an address."""
    if _NAME.fullmatch(name):
        return True
    address, percent, interface = name.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return not percent or bool(_NAME.fullmatch(interface))


def write_hostfile(path: Path, hosts: Mapping[str, int]) -> None:
    """A file that DeepSpeed and Open MPI read alike."""
    path.write_text("".join(f"{host} slots={slots}\n" for host, slots in hosts.items()), encoding="utf-8")


def is_local(host: str) -> bool:
    """Whether ``host`` names this machine: by its name or by an address of one of its interfaces."""
    if host in ("localhost", socket.gethostname()):
        return True
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    own = {a.address.split("%")[0] for entries in psutil.net_if_addrs().values() for a in entries}
    return bool(addresses & own)
