"""Which processes of a run see the same folder, and how files get from one disk to the others."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from nano_ds.checkpoint import Entry
from nano_ds.collectives import World, broadcast, gather
from nano_ds.files import atomic_write, sha256_file

CHUNK = 1 << 24  # bytes that travel at once


@dataclass(frozen=True)
class Disks:
    """The disks under one folder: one when all processes share it, else one per machine."""

    rank: int
    leader_of: tuple[int, ...]  # of each rank: the lowest rank on the same disk
    hosts: tuple[str, ...]  # host name of each rank
    group: Any = field(default=None, repr=False)  # process group of the leaders, None when there is one disk

    @property
    def shared(self) -> bool:
        return len(self.leaders) == 1

    @property
    def leaders(self) -> list[int]:
        """One rank per disk, in order."""
        return sorted(set(self.leader_of))

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for its disk."""
        return self.leader_of[self.rank] == self.rank

    @property
    def names(self) -> list[str]:
        """What to call each rank's machine: its host name, with the rank where two machines have the same."""
        doubled = [h for h in self.hosts if len({self.leader_of[r] for r, n in enumerate(self.hosts) if n == h}) > 1]
        return [f"{h} (rank {r})" if h in doubled else h for r, h in enumerate(self.hosts)]

    @property
    def members(self) -> list[int]:
        """The ranks on this rank's disk."""
        return [r for r, leader in enumerate(self.leader_of) if leader == self.leader_of[self.rank]]


def find_disks(folder: Path, world: World) -> Disks:
    """Every rank leaves a mark in ``folder`` and looks for those of the others. Every rank calls it."""
    hosts = tuple(gather(socket.gethostname(), world))
    if world.size == 1:
        return Disks(0, (0,), hosts)
    folder.mkdir(parents=True, exist_ok=True)
    word = broadcast(secrets.token_hex(8), world)
    mark = folder / f".seen-{word}-{world.rank}"
    mark.touch()
    gather(None, world)  # all marks are there
    seen = [r for r in range(world.size) if r == world.rank or (folder / f".seen-{word}-{r}").exists()]
    leader_of = tuple(gather(min(seen), world))
    mark.unlink(missing_ok=True)
    disks = Disks(world.rank, leader_of, hosts)
    if disks.shared:
        return disks
    return Disks(world.rank, leader_of, hosts, dist.new_group(disks.leaders, backend="gloo"))


def spread(folder: Path, have: Iterable[str], wanted: Mapping[str, Entry], disks: Disks) -> list[str]:
    """Brings every file of ``wanted`` to ``folder`` on every disk; the leaders of all disks call it together.

    A file travels from the first disk that has it and is checked on arrival. Returns the names that this disk still
    lacks: its own trouble (a full disk) or the sender's (a file that cannot be read any more).
    """
    if disks.shared:
        return [n for n in wanted if n not in set(have)]
    me = dist.get_rank(disks.group)
    lists: list[Any] = [None] * len(disks.leaders)
    dist.all_gather_object(lists, sorted(have), group=disks.group)
    holders = [set(names) for names in lists]
    failed = []
    for name, (size, digest) in sorted(wanted.items()):
        owners = [i for i, names in enumerate(holders) if name in names]
        if len(owners) == len(holders):
            continue
        if not owners:
            failed.append(name)
            continue
        source = disks.leaders[owners[0]]
        if me == owners[0]:
            _send(folder / name, size, source, disks.group)
        elif not _receive(folder / name, size, digest, source, disks.group, keep=name not in holders[me]):
            failed.append(name)
    return failed


def _send(path: Path, size: int, source: int, group: Any) -> None:
    """Sends exactly ``size`` bytes whatever happens: the receivers' check finds what is wrong with them."""
    left = size
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError:
        file = open(os.devnull, "rb")  # noqa: SIM115
    with file:
        while left > 0:
            want = min(CHUNK, left)
            data = b""
            with suppress(OSError):
                data = file.read(want)
            block = np.zeros(want, np.uint8)
            block[: len(data)] = np.frombuffer(data, np.uint8)
            dist.broadcast(torch.from_numpy(block), source, group=group)
            left -= want


def _receive(path: Path, size: int, digest: str, source: int, group: Any, keep: bool) -> bool:
    """Takes ``size`` bytes; True when they are what ``digest`` says and lie at ``path`` (or are not to be kept)."""
    left, sound = size, True
    blocks = (torch.zeros(min(CHUNK, left - at), dtype=torch.uint8) for at in range(0, left, CHUNK))
    if not keep:
        for block in blocks:
            dist.broadcast(block, source, group=group)
        return True
    try:
        with atomic_write(path, "wb") as f:
            for block in blocks:
                dist.broadcast(block, source, group=group)
                left -= len(block)
                if sound:
                    try:
                        f.write(block.numpy().tobytes())
                    except OSError:
                        sound = False
            f.flush()
            if not sound or sha256_file(Path(f.name)) != digest:
                raise OSError("the bytes that arrived are not those that were sent")
    except OSError:
        # The sender goes on to the end, so this side must too.
        for at in range(0, left, CHUNK):
            dist.broadcast(torch.zeros(min(CHUNK, left - at), dtype=torch.uint8), source, group=group)
        return False
    return True
