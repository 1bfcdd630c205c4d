"""How long this process waits inside collectives: what it spends on others, not on its own work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

# What DeepSpeed's backend offers and training calls.
OPERATIONS = (
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)


class Stopwatch:
    """Adds up stretches of time: of the host clock, or of the device's stream where the device is a GPU.

    A GPU runs behind the host, so its stretches are pairs of events, read by ``seconds`` after the device has been
    waited for. A collective that the stream never waits for, because it overlaps with work, costs nothing here.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    def now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, since: Any) -> None:
        """Counts the time from ``since`` (a reading of ``now``) to this moment."""
        if self.cuda:
            self._events.append((since, self.now()))
        else:
            self._seconds += time.perf_counter() - since

    def seconds(self) -> float:
        """The sum since the last call; on a GPU only after a synchronisation."""
        total = self._seconds + sum(a.elapsed_time(b) for a, b in self._events) / 1e3
        self._seconds = 0.0
        self._events.clear()
        return total


class Waiting:
    """The stopwatch of this process's collectives; off (one comparison a collective) until ``watch`` is set."""

    def __init__(self) -> None:
        self.watch: Stopwatch | None = None
        self._inside = False

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Counts what the block takes; blocks within blocks count once."""
        watch = self.watch
        if watch is None or self._inside:
            yield
            return
        self._inside = True
        since = watch.now()
        try:
            yield
        finally:
            watch.add(since)
            self._inside = False

    def attach(self, backend: Any) -> None:
        """Counts every collective of DeepSpeed's ``backend`` object (``deepspeed.comm.comm.cdb``), once attached."""
        for name in OPERATIONS:
            method = getattr(backend, name, None)
            if method is not None and not hasattr(method, "counts_waiting"):
                setattr(backend, name, self._counted(method))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.watch is None:
                return method(*args, **kwargs)
            with self.inside():
                work = method(*args, **kwargs)
            # An asynchronous call returns at once; the waiting comes where its result is needed.
            return _CountedWork(work, self) if kwargs.get("async_op") and work is not None else work

        call.counts_waiting = True  # type: ignore[attr-defined]
        return call


class _CountedWork:
    """The handle of a collective under way, whose ``wait`` is counted."""

    def __init__(self, work: Any, waiting: Waiting):
        self._work, self._waiting = work, waiting

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        with self._waiting.inside():
            return self._work.wait(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


WAITING = Waiting()  # one process has one set of collectives
