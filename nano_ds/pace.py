"""What the processes of a run do with their time: own work, waiting for others, and who is slower than the rest."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nano_ds.collectives import World, gather
from nano_ds.waiting import WAITING, Stopwatch

SLOWER = 1.25  # from this ratio to the rest on a rank is named
WORTH = 0.05  # and only when it costs the step at least this share


@dataclass(frozen=True)
class RankTime:
    """Seconds of one rank per measured step."""

    host: str
    step: float  # from the batch to the updated weights
    waiting: float  # of it inside collectives

    @property
    def busy(self) -> float:
        return max(self.step - self.waiting, 0.0)


class Pace:
    """Measures this rank's steps: ``with pace:`` around each, ``report`` at each logged one. One process: idle.

    On a CPU every step is measured, for two readings of the clock a collective. On a GPU, where the readings are
    events in the stream, one step between two reports is.
    """

    def __init__(self, world: World, tokens_per_step: int):
        self.world, self.tokens = world, tokens_per_step
        self.on = world.size > 1
        self.host = socket.gethostname()
        self.whole, self.inside = Stopwatch(world.device), Stopwatch(world.device)
        self.since: Any = None
        self.done = self.measured = 0  # steps since the last report
        self.interval = 1  # steps between the last two reports

    def __enter__(self) -> None:
        # The first step after a report begins with one rank still writing the log; the second is a usual one.
        if self.on and (not self.whole.cuda or self.done == min(1, self.interval - 1)):
            WAITING.watch = self.inside
            self.since = self.whole.now()

    def __exit__(self, *exception: object) -> None:
        if self.since is not None:
            self.whole.add(self.since)
            WAITING.watch = self.since = None
            self.measured += 1
        self.done += 1

    def report(self, step_s: float) -> dict[str, Any]:
        """``summary`` of the steps since the last report; every rank calls it, after the device was waited for.

        ``step_s`` is the wall-clock time of a step, which sets the throughput. Nothing for one process.
        """
        if not self.on or not self.measured:
            return {}
        mine = RankTime(self.host, self.whole.seconds() / self.measured, self.inside.seconds() / self.measured)
        self.interval, self.done, self.measured = self.done, 0, 0
        return summary(gather(mine, self.world), self.tokens / step_s)


def summary(ranks: Sequence[RankTime], tokens_per_s: float) -> dict[str, Any]:
    """What is logged of a step over all ranks.

    ``nodes/HOST/tokens_per_s``: this node's part of the throughput. ``nodes/HOST/busy``: the share of the step (0 to 1)
    that its ranks do their own work. ``comm/share``: the share of the step inside collectives, mean of the ranks;
    ``comm/wait_share``: the part of it that is waiting for slower ranks (the slowest rank's collectives begin at once,
    so its time is that of the transfer). ``straggler/ratio``: own work of the busiest rank ``straggler/rank`` to the
    median of the others. ``slow``: a sentence about that rank, only where it is notably slower.
    """
    step = statistics.fmean(r.step for r in ranks)
    waiting = [r.waiting for r in ranks]
    values: dict[str, Any] = {}
    for host in sorted({r.host for r in ranks}):
        here = [r for r in ranks if r.host == host]
        values[f"nodes/{host}/tokens_per_s"] = tokens_per_s * len(here) / len(ranks)
        values[f"nodes/{host}/busy"] = statistics.fmean(r.busy for r in here) / step
    values["comm/share"] = statistics.fmean(waiting) / step
    values["comm/wait_share"] = (statistics.fmean(waiting) - min(waiting)) / step
    slowest = max(range(len(ranks)), key=lambda i: ranks[i].busy)
    rest = statistics.median(r.busy for i, r in enumerate(ranks) if i != slowest)
    ratio = ranks[slowest].busy / rest if rest > 0 else 1.0
    values["straggler/ratio"], values["straggler/rank"] = ratio, slowest
    if ratio >= SLOWER and ranks[slowest].busy - rest >= WORTH * step:
        values["slow"] = f"rank {slowest} on {ranks[slowest].host} is {ratio:.1f}x slower than the rest"
    return values
