"""Kills a run again and again at random moments, and has the same command go on each time."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import psutil

from cluster.bench import Bench, Going, Supervised
from nano_ds import checkpoint


@dataclass
class Chaos:
    """What was done to a run, and what came of it.

    Attributes:
        seed: of all random choices.
        moments: per kill, who died and when.
        inside: kills that hit an unfinished save.
        lost: steps that were done twice.
    """

    seed: int
    moments: list[str] = field(default_factory=list)
    inside: int = 0
    lost: int = 0


def rage(bench: Bench, kills: int, seed: int, only_saves: bool = False, supervised: bool = False) -> Chaos:
    """Kills the run ``kills`` times, once in each of as many equal parts of its steps, then lets it end.

    Half of the kills (all with ``only_saves``) wait for a save to begin and come some milliseconds later. A kill takes
    one of the ranks or all of the run's processes at once (with ``supervised``: `nano-ds train` and launchers too).

    Raises:
        AssertionError: a start did not go on from the newest whole checkpoint, or one that is not whole was published.
    """
    rng, done = random.Random(seed), Chaos(seed)
    start = bench.supervise if supervised else bench.start
    part = bench.last / (kills + 1)
    for i in range(kills):
        newest = max(bench.committed(), default=0)
        going = start()
        target = max(int(part * i) + rng.randrange(1, max(2, int(part) + 1)), newest + 1)
        in_save = only_saves or rng.random() < 0.5
        going.until(lambda g=going: "tensorboard --logdir" in g.text)  # until then the log is the last start's
        going.until(lambda t=target: bench.step() >= t)  # type: ignore[misc]
        if in_save:
            going.until(lambda: _saving(bench))
            time.sleep(rng.uniform(0, 0.06))
        inside = _saving(bench)
        victims = _victims(bench, going, rng, supervised)
        going.kill(*victims)
        end = going.end()
        step = bench.step()
        done.inside += inside
        done.moments.append(
            f"{len(victims)} of the processes at step {step}{', inside a save' if inside else ''}; code {end.code}"
        )
        assert end.code != 0, f"seed {seed}: killed and yet exit code 0\n{end.text}"
        assert end.resumed == newest, f"seed {seed}, kill {i}: from {end.resumed} rather than {newest}\n{end.text}"
        for folder in checkpoint.folders(bench.run / "checkpoints"):
            health = checkpoint.inspect(folder)
            assert health.state == "committed", f"seed {seed}, kill {i}: {folder.name} is {health.state}: {health.why}"
        done.lost += step - max(bench.committed(), default=0)
    newest = max(bench.committed(), default=0)
    end = start().end()
    assert end.code == 0 and end.resumed == newest, f"seed {seed}: {end.text}"
    assert not list((bench.run / "checkpoints").glob(".*")), "something of an interrupted save was left"
    return done


def _saving(bench: Bench) -> bool:
    return any((bench.run / "checkpoints").glob(".step-*.tmp"))


def _victims(bench: Bench, going: Going, rng: random.Random, supervised: bool) -> list[psutil.Process]:
    ranks = bench.alive()
    who = rng.randrange(3)
    if who < 2:
        return [ranks[who % len(ranks)]]
    if supervised:
        assert isinstance(going, Supervised)
        top = psutil.Process(going.process.pid)
        return [top, *top.children(recursive=True)]
    return ranks
