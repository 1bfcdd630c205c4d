"""How the processes of a run find each other: within a time limit, and saying who is missing."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from nano_ds.errors import RunFailure


def meet(env: Mapping[str, str], backend: str, timeout: timedelta, patience: timedelta, device: torch.device) -> None:
    """Makes the default process group of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in ``env``.

    Args:
        env: the launcher's variables.
        backend: gloo or nccl.
        timeout: of collectives later on.
        patience: how long to wait for all to come.
        device: of this process.

    Raises:
        RunFailure: rank 0 cannot be reached, or not all came in time.
    """
    rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
    host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    where, limit = f"{host}:{port}", f"{patience.total_seconds():.0f} s"
    try:
        store = dist.TCPStore(host, port, size, rank == 0, timeout=patience, wait_for_workers=False)
    except (dist.DistError, RuntimeError, ValueError) as e:
        if rank == 0:
            why = _first_line(e)
            raise RunFailure(f"the processes cannot meet at {where}, name another MASTER_PORT: {why}") from e
        raise RunFailure(
            f"rank {rank} on {os.uname().nodename} did not reach rank 0 at {where} within {limit}: rank 0 did not "
            "start, or a firewall or a wrong --master_addr is in between"
        ) from e
    store.set(_seat(rank), os.uname().nodename)
    if rank == 0:
        _wait_for_all(store, size, patience, limit)
        store.set("nano_ds/go", "1")
    else:
        try:
            store.wait(["nano_ds/go"], patience + timedelta(seconds=5))  # rank 0 says it better
        except (dist.DistError, RuntimeError) as e:
            raise RunFailure(f"rank {rank}: not all of the {size} processes came to {where} within {limit}") from e
    # As DeepSpeed does it: NCCL then splits communicators instead of making new ones.
    bound = device if device.type == "cuda" and size > 1 else None
    try:
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("nano_ds", store),
            rank=rank,
            world_size=size,
            timeout=timeout,
            device_id=bound,
        )
    except (dist.DistError, RuntimeError) as e:
        interface = env.get("GLOO_SOCKET_IFNAME", "its default interface")
        raise RunFailure(f"rank {rank} cannot connect to the others over {interface}: {_first_line(e)}") from e


def _wait_for_all(store: dist.TCPStore, size: int, patience: timedelta, limit: str) -> None:
    end = time.monotonic() + patience.total_seconds()
    missing = list(range(size))
    while missing:
        with contextlib.suppress(dist.DistError, RuntimeError):
            missing = [r for r in missing if not store.check([_seat(r)])]
        if missing and time.monotonic() > end:
            came = [r for r in range(size) if r not in missing]
            hosts = sorted({store.get(_seat(r)).decode(errors="replace") for r in came})
            raise RunFailure(
                f"only {len(came)} of {size} processes came within {limit}, those on {', '.join(hosts)}; missing: "
                f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} (--rendezvous_timeout waits longer)"
            )
        if missing:
            time.sleep(0.05)


def _seat(rank: int) -> str:
    return f"nano_ds/rank/{rank}"


def _first_line(e: BaseException) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]
