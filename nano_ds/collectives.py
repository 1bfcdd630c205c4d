"""Small messages between the processes of a run, on the host side: never a wait for the GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from nano_ds.errors import UserError
from nano_ds.waiting import WAITING


@dataclass(frozen=True)
class World:
    """This process among all that train together."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def any_rank(flag: bool, world: World) -> bool:
    """True on every rank when ``flag`` is true on one; costs one small message between hosts, never a device sync."""
    if world.size == 1:
        return flag
    value = torch.tensor([int(flag)])
    with WAITING.inside():
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=_host_group())
    return bool(value.item())


def gather(value: Any, world: World) -> list[Any]:
    """Every rank's ``value`` in rank order, on every rank."""
    if world.size == 1:
        return [value]
    out: list[Any] = [None] * world.size
    with WAITING.inside():
        dist.all_gather_object(out, value, group=_host_group())
    return out


def broadcast(value: Any, world: World) -> Any:
    """Rank 0's ``value`` on every rank."""
    if world.size == 1:
        return value
    box = [value]
    with WAITING.inside():
        dist.broadcast_object_list(box, src=0, group=_host_group())
    return box[0]


def agree(work: Callable[[], None], world: World, here: bool = True) -> None:
    """Runs ``work`` on the ranks where ``here`` is true; a UserError of one is raised on all. Every rank calls it."""
    problem = ""
    if here:
        try:
            work()
        except UserError as e:
            problem = str(e)
    problem = next((p for p in gather(problem, world) if p), "")
    if problem:
        raise UserError(problem)


# What gloo and NCCL say when the process at the other end is gone.
_LOST = re.compile(r"closed by peer|reset by peer|Broken pipe|Connection timed out|\bpair\.cc\b|remote process", re.I)


def peer_lost(e: BaseException) -> bool:
    """Whether a collective failed because another process of the run has ended or cannot be reached."""
    return isinstance(e, RuntimeError) and bool(_LOST.search(str(e)))


_HOST_GROUPS: list[Any] = []


def _host_group() -> Any:
    """A gloo group for control messages, so that they never wait for the GPU."""
    if dist.get_backend() == "gloo":
        return dist.group.WORLD
    if not _HOST_GROUPS:
        _HOST_GROUPS.append(dist.new_group(backend="gloo"))
    return _HOST_GROUPS[0]
