"""What our loop costs over plain DeepSpeed, and what a checkpoint costs beyond writing its bytes.

python benchmarks/overhead.py [--rounds 9] [--steps 10] [--ranks 1 2] [--stages 0 1] [--saves 6] [--only step|save]

Step: `nano_ds.train.train` as a run does it (loader, monitor, guards, a log line every ten steps) against
`deepspeed.initialize` with the same JSON, parameter groups and model, in a bare loop over batches read beforehand. Both
live in one process group and alternate, ours first, in stretches of --steps; a stretch ends with a barrier.

Save: a run of the shape of recipes/nano_56m.yaml (short sequences: what is saved stays the same) that saves at every
second step. The stall is the time of a step with a save less the median of those without. After each save the same
bytes are written again, each rank its own files: as they are (write, fsync) and as objects (torch.save, fsync).

Both hook into the loop by the one question that it asks after each step: whether it was told to stop.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.distributed as dist
from training import TEXT, configs

from nano_ds import checkpoint, engine
from nano_ds.collectives import World
from nano_ds.config import Config, DataConfig, DataSet, load_config
from nano_ds.data import BlockStream, Loader
from nano_ds.ds_config import join, read_ds_config
from nano_ds.files import sha256_file
from nano_ds.leaving import leave
from nano_ds.model import Transformer, parameter_count
from nano_ds.nodes.launcher import free_port
from nano_ds.prepare import prepare_set
from nano_ds.schedule import learning_rate
from nano_ds.shards import TokenSet
from nano_ds.stop import StopRequest
from nano_ds.tokenizer.build import build_trie
from nano_ds.tokenizer.trie import TrieTokenizer
from nano_ds.train import train
from nano_ds.train_args import share_cores

ROOT = Path(__file__).resolve().parent.parent
OWNER = re.compile(r"(?:pp_rank_|rng-)(\d+)")  # of a file in a checkpoint; rank 0 writes those without


class Turns(StopRequest):
    """Calls ``after`` with the number of each finished step; the time it takes is kept out of what it measures."""

    def __init__(self, after: Callable[[int], None]):
        super().__init__()
        self.after, self.step = after, 0

    @property
    def asked(self) -> bool:
        self.step += 1
        self.after(self.step)
        return super().asked


# ── what the ranks do ─────────────────────────────────────────────────────────────────────────────


def together(work: Callable[[], object]) -> float:
    """Seconds until every rank has done ``work``."""
    dist.barrier()
    began = time.perf_counter()
    work()
    dist.barrier()
    return time.perf_counter() - began


def plain(config: Config, world: World, steps: int) -> Callable[[], None]:
    """A stretch of ``steps`` steps of DeepSpeed alone."""
    import deepspeed

    torch.manual_seed(config.train.seed)
    model = Transformer(config.model).to(world.device)
    o = config.optim
    groups = engine.parameter_groups(model, o)
    optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=True)
    tree = read_ds_config(config.run.deepspeed_config)
    full = {**join(tree, config, world.size, bf16=False), "gradient_clipping": o.grad_clip}
    ds, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, model_parameters=groups, config=full, dist_init_required=False
    )
    sets = [TokenSet.open(s.dir, "train") for s in config.data.sets]
    stream = BlockStream(sets, config.model.block_size, seed=config.train.seed)
    micro = full["train_micro_batch_size_per_gpu"]
    with Loader(
        stream, rank=world.rank, world=world.size, micro_batch=micro, batch_size=config.train.batch_size
    ) as loader:
        batches = [batch for _ in range(steps) for batch in loader.next_step()]
    done = 0

    def stretch() -> None:
        nonlocal done
        ds.train()
        for x, y, *_ in batches:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(o, done, config.train.max_steps)
            loss = ds(x.to(world.device), y.to(world.device))
            ds.backward(loss)
            ds.step()
            done += 1
        loss.item()

    return stretch


def measure_step(config: Config, world: World, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of each stretch, ours and plain; the first round warms up."""
    took: dict[str, list[float]] = {"ours": [], "plain": []}
    stretch = plain(config, world, steps)
    began = 0.0

    def after(step: int) -> None:
        nonlocal began
        if step % steps:
            return
        dist.barrier()
        took["ours"].append(time.perf_counter() - began)
        took["plain"].append(together(stretch))
        began = time.perf_counter()

    run(config, world, after)
    return {name: [t / steps for t in times[1:]] for name, times in took.items()}


def measure_save(config: Config, world: World) -> dict[str, Any]:
    """Seconds of steps with and without a save, and of writing the same files again."""
    took: dict[str, list[float]] = {"step": [], "step and save": [], "write": [], "torch.save": [], "checksums": []}
    root = Path(config.run.dir) / "checkpoints"
    again = {kind: Again(Path(config.run.dir) / f"{kind}-{world.rank}") for kind in ("write", "torch.save")}
    began, size = 0.0, 0

    def after(step: int) -> None:
        nonlocal began, size
        dist.barrier()
        saved = step > 1 and (step - 1) % config.train.checkpoint_every == 0
        took["step and save" if saved else "step"].append(time.perf_counter() - began)
        if saved:
            every = [p for p in checkpoint.folders(root)[-1].rglob("*") if p.is_file()]
            own = [p for p in every if int((OWNER.search(p.name) or [0, 0])[1]) == world.rank]
            size = sum(p.stat().st_size for p in every)
            took["write"].append(together(lambda: again["write"](_write, own)))
            tensors = [p for p in own if p.suffix == ".pt"]
            took["torch.save"].append(together(lambda: again["torch.save"](_save, tensors)))
            took["checksums"].append(together(lambda: [sha256_file(p) for p in own]))
        dist.barrier()
        began = time.perf_counter()

    run(config, world, after)
    return {"bytes": size, **{name: times[1:] for name, times in took.items()}}


class Again:
    """Writes files as a checkpoint does: into a new folder, while the one before is still there, which goes afterwards.

    Over a file that was just deleted it would be faster: its memory pages are at hand.
    """

    def __init__(self, folder: Path):
        self.old, self.new = (folder.with_name(folder.name + end) for end in (".a", ".b"))

    def __call__(self, write: Callable[[Path, Path], None], sources: Sequence[Path]) -> None:
        self.new.mkdir()
        for i, source in enumerate(sources):
            write(source, self.new / str(i))
        shutil.rmtree(self.old, ignore_errors=True)
        self.old, self.new = self.new, self.old


def _write(source: Path, target: Path) -> None:
    if not source.stat().st_size:
        return
    with (
        open(source, "rb") as f,
        mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data,
        open(target, "wb") as out,
    ):
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _save(source: Path, target: Path) -> None:
    with open(target, "wb") as out:
        torch.save(torch.load(source, mmap=True, weights_only=False), out)
        out.flush()
        os.fsync(out.fileno())


def run(config: Config, world: World, after: Callable[[int], None]) -> None:
    turns = Turns(after)
    code = train(config, "none", world, turns)
    if code or turns.step != config.train.max_steps:
        raise SystemExit(f"code {code}, {turns.step} questions in {config.train.max_steps} steps: this needs one each")


# ── setting up ────────────────────────────────────────────────────────────────────────────────────


def data(folder: Path, vocab_size: int) -> DataConfig:
    """A small set with a vocabulary of the wanted size (what fills it up never occurs)."""
    base = build_trie([TEXT], 300)
    filler = [f"filler {i}" for i in range(vocab_size - base.vocab_size)]
    tokenizer = TrieTokenizer([*base.tokens, *filler], sorted(base.special.values()))
    (folder / "text.txt").write_text("\n\n".join(f"{i} {TEXT}" for i in range(400)))
    tokenizer.save(folder / "tokenizer.json")
    prepare_set([str(folder / "text.txt")], tokenizer, folder / "set", val_fraction=0)
    return DataConfig(tokenizer=str(folder / "tokenizer.json"), sets=(DataSet(dir=str(folder / "set")),))


def step_config(folder: Path, stage: int, steps: int) -> Config:
    config = configs(stage)
    made = DataConfig(tokenizer=str(folder / "tokenizer.json"), sets=(DataSet(dir=str(folder / "set")),))
    t = replace(config.train, max_steps=steps, checkpoint_every=0, eval_every=0)
    return replace(config, data=made, run=replace(config.run, dir=str(folder / "run")), train=t)


def save_config(folder: Path, world: int, saves: int) -> Config:
    keys = {
        "run.dir": folder / "run",
        "data.tokenizer": folder / "tokenizer.json",
        "data.sets.0.dir": folder / "set",
        "model.block_size": 64,
        "train.batch_size": world,
        "train.micro_batch_size": 1,
        "train.max_steps": 2 * saves + 4,
        "train.checkpoint_every": 2,
        "train.eval_every": 0,
        "train.keep_every": 0,
        "train.dtype": "fp32",
    }
    return load_config(ROOT / "recipes/nano_56m.yaml", [f"{k}={v}" for k, v in keys.items()])


def worker(what: str, folder: Path, stage: int, rounds: int, steps: int) -> None:
    share_cores()
    ranks = int(os.environ["WORLD_SIZE"])
    config = step_config(folder, stage, (rounds + 1) * steps) if what == "step" else save_config(folder, ranks, rounds)
    world = engine.start(config.run)
    result = measure_step(config, world, rounds, steps) if what == "step" else measure_save(config, world)
    if world.is_main:
        print("RESULT", json.dumps(result))
    engine.finish()
    leave(0)


def ranks_do(count: int, words: Sequence[str]) -> dict[str, Any]:
    """Starts the processes of a run, waits for them, returns what the first one found."""
    port = str(free_port())
    children = []
    for rank in range(count):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_SIZE": count, "LOCAL_WORLD_SIZE": count}
        env = {**os.environ, **{k: str(v) for k, v in place.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed below)
        command = [sys.executable, __file__, "--worker", *words]
        children.append((subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log), log))
    for child, _ in children:
        child.wait()
    texts = []
    for _, log in children:
        log.seek(0)
        texts.append(log.read())
        log.close()
    lines = [line for line in texts[0].splitlines() if line.startswith("RESULT ")]
    if not lines or any(child.returncode for child, _ in children):
        raise SystemExit("\n".join(t[-2000:] for t in texts))
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return found


def report_step(args: argparse.Namespace) -> None:
    config = configs(0)
    print(f"step: {parameter_count(config.model)['total']:,} parameters, {config.train.batch_size} x "
          f"{config.model.block_size} tokens, medians of {args.rounds} stretches of {args.steps} steps")  # fmt: skip
    print("ranks  ZeRO   plain ms   ours ms   ours/plain (quartiles)")
    for ranks in args.ranks:
        for stage in args.stages:
            with tempfile.TemporaryDirectory() as tmp:
                data(Path(tmp), config.model.vocab_size)
                found = ranks_do(ranks, ["step", tmp, str(stage), str(args.rounds), str(args.steps)])
            ratios = [o / p for o, p in zip(found["ours"], found["plain"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            ours, bare = (1000 * statistics.median(found[name]) for name in ("ours", "plain"))
            print(
                f"{ranks:5d} {stage:5d} {bare:10.1f} {ours:9.1f}   {middle:.3f} ({low:.3f} to {high:.3f})", flush=True
            )


def report_save(args: argparse.Namespace) -> None:
    total = parameter_count(load_config(ROOT / "recipes/nano_56m.yaml").model)["total"]
    print(f"\nsave: {total:,} parameters, fp32, ZeRO 1, seconds, medians of {args.saves} saves")
    print("ranks     MB   stall   write+fsync   torch.save+fsync   stall - write   stall - torch.save   (SHA-256)")
    for ranks in args.ranks:
        with tempfile.TemporaryDirectory(dir=args.dir) as tmp:
            data(Path(tmp), load_config(ROOT / "recipes/nano_56m.yaml").model.vocab_size)
            found = ranks_do(ranks, ["save", tmp, "1", str(args.saves), "0"])
        step = statistics.median(found["step"])
        stalls = [t - step for t in found["step and save"]]
        write, pickled, sums = (statistics.median(found[k]) for k in ("write", "torch.save", "checksums"))
        beyond = [
            statistics.median(s - w for s, w in zip(stalls, found[k], strict=True)) for k in ("write", "torch.save")
        ]
        print(
            f"{ranks:5d} {found['bytes'] / 1e6:6.0f} {statistics.median(stalls):7.2f} {write:13.2f} {pickled:18.2f} "
            f"{beyond[0]:15.2f} {beyond[1]:20.2f} {sums:11.2f}",
            flush=True,
        )


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        what, folder, stage, rounds, steps = sys.argv[2:]
        worker(what, Path(folder), int(stage), int(rounds), int(steps))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("--dir", help="where the run that saves lies (default: the system's temporary folder)")
    parser.add_argument("--only", choices=("step", "save"))
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    if args.only != "save":
        report_step(args)
    if args.only != "step":
        report_save(args)


if __name__ == "__main__":
    main()
