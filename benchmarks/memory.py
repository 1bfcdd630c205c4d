"""Memory per rank of training steps, measured in fresh processes, against `nano-ds estimate`'s formulas.

python benchmarks/memory.py [--stages 0 1 2 3] [--worlds 1 2] [--dtypes fp32 bf16] [--offload optimizer both] [--json]

Measured is the largest resident set of the heaviest rank over three steps, from building the model on, less the
resident set before it. A tiny model is trained first with the same settings, so that libraries loaded late count as
imports. glibc is told to give freed blocks back at once (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_): what it keeps
for itself otherwise, up to a few bytes per parameter, depends on the order of sizes and is no property of training.
Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OFFLOAD = {"optimizer": ["offload_optimizer"], "both": ["offload_optimizer", "offload_param"]}
STEPS = 3


@dataclass(frozen=True)
class Case:
    """One measurement; the model has about 28 million parameters by default."""

    stage: int
    world: int
    dtype: str
    offload: str = ""  # "", "optimizer" or "both"
    width: int = 512
    layers: int = 8
    vocabulary: int = 4096
    length: int = 64
    micro_batch: int = 1
    bucket: int = 0  # reduce_bucket_size; 0: DeepSpeed's own

    def tree(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage}
        zero |= {key: {"device": "cpu"} for key in OFFLOAD.get(self.offload, [])}
        if self.bucket:
            zero["reduce_bucket_size"] = self.bucket
        return {"zero_optimization": zero}

    def model(self) -> Any:
        from nano_ds.config import ModelConfig

        return ModelConfig(
            vocab_size=self.vocabulary,
            n_layer=self.layers,
            n_head=8,
            n_kv_head=8,
            n_embd=self.width,
            block_size=self.length,
        )

    def predicted(self) -> float:
        """Bytes per rank; host and device are one memory on a CPU."""
        from nano_ds.estimate import predict

        memory = predict(self.model(), self.tree(), self.world, self.dtype == "bf16", self.micro_batch, gpu=False)
        return memory.device + memory.host


def _resident(key: str) -> int:
    """VmRSS (now) or VmHWM (largest since the last reset) of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status")


def _rank(case: Case) -> None:
    """Trains a little and prints the bytes that it took; one process per rank runs this."""
    import torch

    from nano_ds import engine
    from nano_ds.config import Config, RunConfig, TrainConfig
    from nano_ds.data import Batch
    from nano_ds.leaving import leave
    from nano_ds.model import Transformer

    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump(case.tree(), f)
        f.flush()
        config = Config(
            model=case.model(),
            run=RunConfig(deepspeed_config=f.name),
            train=TrainConfig(batch_size=case.micro_batch * case.world, dtype=case.dtype),
        )
        world = engine.start(config.run)

        def train(c: Config) -> None:
            e = engine.Engine(Transformer(c.model), c, world)
            for _ in range(STEPS):
                ids = torch.randint(0, c.model.vocab_size, (case.micro_batch, c.model.block_size))
                e.step([Batch(ids, ids)], 1e-3)
            e.ds.destroy()

        train(replace(config, model=replace(config.model, vocab_size=64, n_layer=1, n_embd=16, n_head=1, n_kv_head=1)))
        gc.collect()
        base = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the largest resident set so far
        train(config)
        print("RESULT", _resident("VmHWM") - base, flush=True)
    engine.finish()
    leave(0)


def measure(case: Case, timeout: float = 600) -> float:
    """Bytes of the heaviest rank; raises SystemExit with what the processes said when one fails."""
    from nano_ds.nodes.launcher import free_port

    port = str(free_port())
    processes = []
    for rank in range(case.world):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(case.world),
            "LOCAL_SIZE": str(case.world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536",
        }
        command = [sys.executable, str(Path(__file__).resolve()), "--rank-of", json.dumps(case.__dict__)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=env, cwd=ROOT, **pipes))  # type: ignore[call-overload]
    found = []
    try:
        for p in processes:
            text = p.communicate(timeout=timeout)[0]
            results = [line.split()[1] for line in text.splitlines() if line.startswith("RESULT ")]
            if not results:
                raise SystemExit(f"{case} failed:\n{text[-3000:]}")
            found.append(float(results[0]))
    finally:
        for p in processes:
            p.kill()
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--offload", nargs="*", default=[], choices=list(OFFLOAD), help="stages 2 and 3 again, so")
    parser.add_argument("--length", type=int, default=64, help="tokens of a sequence (default: 64)")
    parser.add_argument("--micro-batch", type=int, default=1, help="sequences at once (default: 1)")
    parser.add_argument("--bucket", type=int, default=0, help="reduce_bucket_size (default: DeepSpeed's own)")
    parser.add_argument("--json", action="store_true", help="one JSON object per case instead of the table")
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        _rank(Case(**json.loads(args.rank_of)))
        return
    from nano_ds.model import parameter_count

    common = {"length": args.length, "micro_batch": args.micro_batch, "bucket": args.bucket}
    grid = [(s, w, d) for d in args.dtypes for s in args.stages for w in args.worlds if s or d == "fp32"]
    cases = [Case(*key, **common) for key in grid]
    cases += [
        Case(s, w, d, offload, **common)
        for offload in args.offload
        for s, w, d in grid
        if s == 3 or (s == 2 and offload == "optimizer")
    ]
    total = parameter_count(cases[0].model())["total"]
    if not args.json:
        print(f"{total:,} parameters, {args.micro_batch} x {args.length} tokens a step and rank; bytes per parameter")
        print("| numbers | ZeRO | ranks | offload | measured MB | predicted MB | per parameter | error |")
        print("|---|---|---|---|---|---|---|---|")
    for case in cases:
        measured, predicted = measure(case), case.predicted()
        row = {"dtype": case.dtype, "stage": case.stage, "world": case.world, "offload": case.offload}
        if args.json:
            print(json.dumps({**row, "measured": measured, "predicted": predicted}), flush=True)
            continue
        print(
            f"| {case.dtype} | {case.stage} | {case.world} | {case.offload or '–'} | {measured / 1e6:,.0f} | "
            f"{predicted / 1e6:,.0f} | {measured / total:.1f} | {predicted / measured - 1:+.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
