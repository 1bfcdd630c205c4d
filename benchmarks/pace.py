"""What measuring the pace of a run costs: per collective, per step and per logged step, two ranks on this machine.

python benchmarks/pace.py [--steps 10]

The cost is too small for a difference of two noisy step times, so it is counted: collectives of a step times the cost
of measuring an empty one, and the time of a report.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
ROOT = Path(__file__).resolve().parent.parent


class Empty:
    """A backend whose collectives do nothing."""

    def all_reduce(self, **_: object) -> None:
        return None


def cost_of_one(calls: int = 20_000) -> float:
    """Seconds that measuring adds to one collective, median of 7."""
    import torch

    from nano_ds.waiting import Stopwatch, Waiting

    bare, counted, waiting = Empty(), Empty(), Waiting()
    waiting.attach(counted)
    waiting.watch = Stopwatch(torch.device("cpu"))
    costs = []
    for _ in range(7):
        seconds = []
        for backend in (bare, counted):
            began = time.process_time()
            for _ in range(calls):
                backend.all_reduce(async_op=False)
            seconds.append(time.process_time() - began)
        costs.append((seconds[1] - seconds[0]) / calls)
    return statistics.median(costs)


def rank(stage: int, steps: int) -> None:
    import torch

    from nano_ds import engine
    from nano_ds.config import Config, ModelConfig, RunConfig, TrainConfig
    from nano_ds.data import Batch
    from nano_ds.leaving import leave
    from nano_ds.model import Transformer
    from nano_ds.pace import Pace
    from nano_ds.waiting import WAITING

    model = ModelConfig(vocab_size=4096, n_layer=4, n_head=8, n_kv_head=4, n_embd=256, block_size=256)
    run = RunConfig(deepspeed_config=f"ds_configs/zero{stage}.json")
    config = Config(model=model, run=run, train=TrainConfig(batch_size=4, dtype="fp32"))
    world = engine.start(run)
    e = engine.Engine(Transformer(model), config, world)
    calls = [0]
    inside = WAITING.inside

    def counted():  # type: ignore[no-untyped-def]
        calls[0] += 1
        return inside()

    WAITING.inside = counted  # type: ignore[method-assign]
    pace = Pace(world, 1024)
    times, reports = [], []
    for s in range(steps + 2):
        ids = torch.randint(0, model.vocab_size, (2, model.block_size))
        calls[0] = 0
        began = time.perf_counter()
        with pace:
            e.step([Batch(ids, ids)], 1e-4)
        if s >= 2:
            times.append(time.perf_counter() - began)
            collectives = calls[0]
            torch.distributed.barrier()
            began = time.perf_counter()
            pace.report(1.0)
            reports.append(time.perf_counter() - began)
    if world.is_main:
        cost = cost_of_one()
        row = [collectives, cost, statistics.median(times), statistics.median(reports)]
        print("RESULT", json.dumps(row), flush=True)
    engine.finish()
    leave(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of is not None:
        rank(args.rank_of, args.steps)
        return
    from nano_ds.nodes.launcher import free_port

    print("| ZeRO | collectives a step | µs each | of the step | one report ms |")
    print("|---|---|---|---|---|")
    for stage in (1, 2, 3):
        common = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        common |= {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--rank-of", str(stage), "--steps", str(args.steps)]
        ranks = [
            subprocess.Popen(
                command,
                env={**os.environ, **common, "RANK": str(r), "LOCAL_RANK": str(r)},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for r in range(2)
        ]
        text = ranks[0].communicate()[0]
        ranks[1].communicate()
        found = [line for line in text.splitlines() if line.startswith("RESULT ")]
        if not found:
            raise SystemExit(f"stage {stage} failed:\n{text[-2000:]}")
        collectives, cost, step, report = json.loads(found[0].split(" ", 1)[1])
        share = collectives * cost / step
        print(f"| {stage} | {collectives} | {cost * 1e6:.2f} | {share:.4%} | {report * 1e3:.1f} |", flush=True)


if __name__ == "__main__":
    main()
