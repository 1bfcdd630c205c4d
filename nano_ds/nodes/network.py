"""Addresses and interfaces: which of this machine's networks leads to the others."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, MutableMapping, Sequence

# What gloo and NCCL read.
SOCKET_IFNAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def own_addresses() -> dict[str, list[str]]:
    """IP addresses by interface."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    found = {
        name: [a.address.split("%")[0] for a in entries if a.family in families]
        for name, entries in psutil.net_if_addrs().items()
    }
    return {name: addresses for name, addresses in found.items() if addresses}


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def route_source(target: str) -> str | None:
    """The address of this machine that packets to ``target`` (a name or address) come from; None without a way."""
    try:
        entries = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, protocol, _, address in entries:
        try:
            with socket.socket(family, kind, protocol) as s:
                s.connect(address)  # datagrams: nothing is sent
                return str(s.getsockname()[0]).split("%")[0]
        except OSError:
            continue
    return None


def interface_towards(target: str, own: Mapping[str, Sequence[str]] | None = None) -> str | None:
    """The interface that owns ``target`` or leads to it; None when that is the loopback, or there is no way."""
    source = route_source(target)
    if source is None or is_loopback(source):
        # Packets to an address of this very machine go over the loopback, whoever owns the address.
        try:
            named = {str(entry[4][0]) for entry in socket.getaddrinfo(target, None)}
        except OSError:
            return None
    else:
        named = {source}
    wanted = {a for a in named if not is_loopback(a)}
    for name, addresses in (own if own is not None else own_addresses()).items():
        if wanted & set(addresses):
            return name
    return None


def choose_interface(env: MutableMapping[str, str]) -> None:
    """Points gloo and NCCL at the interface towards MASTER_ADDR, unless they are told already.

    Without it gloo takes the address of the host's own name, which is often 127.0.1.1, and nodes meet themselves.
    """
    if all(name in env for name in SOCKET_IFNAMES):
        return
    found = interface_towards(env["MASTER_ADDR"])
    if found:
        for name in SOCKET_IFNAMES:
            env.setdefault(name, found)


def subnet_of(address: str) -> str | None:
    """The network of the interface that owns ``address``, as 10.0.0.0/24."""
    import psutil

    for entries in psutil.net_if_addrs().values():
        for a in entries:
            if a.family == socket.AF_INET and a.address == address and a.netmask:
                return str(ipaddress.ip_network(f"{address}/{a.netmask}", strict=False))
    return None


def address_seen_by(others: Sequence[str]) -> str | None:
    """The address under which ``others`` (names or addresses) reach this machine."""
    for other in others:
        source = route_source(other)
        if source and not is_loopback(source):
            return source
    # Nobody else, or the others are on this machine too: any address that is not the loopback.
    every = [a for addresses in own_addresses().values() for a in addresses if not is_loopback(a)]
    return next((a for a in every if ":" not in a), None)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as s:
        s.bind(("", 0))
        port: int = s.getsockname()[1]
        return port


def resolve(host: str) -> str | None:
    """The first IPv4 (else IPv6) address of a name, or None."""
    try:
        entries = socket.getaddrinfo(host, None)
    except OSError:
        return None
    entries.sort(key=lambda e: e[0] != socket.AF_INET)
    return str(entries[0][4][0]) if entries else None
