"""Training tokens/s of our engine against a bare PyTorch loop of the same model, alternating in one process.

python benchmarks/training.py [--rounds 7] [--steps 12]

The bare loop uses the same model, loss, batches (read beforehand), clipping and fused AdamW; what differs is DeepSpeed
and the wrapper around it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from nano_ds import engine
from nano_ds.config import Config, ModelConfig, RunConfig, TrainConfig
from nano_ds.data import Batch, BlockStream, Loader
from nano_ds.model import Transformer, parameter_count
from nano_ds.prepare import prepare_set
from nano_ds.schedule import learning_rate
from nano_ds.shards import TokenSet
from nano_ds.tokenizer.build import build_trie

TEXT = "Small models learn from small texts; this one is only here to be timed. " * 40


def configs(stage: int) -> Config:
    model = ModelConfig(vocab_size=4096, n_layer=4, n_head=8, n_kv_head=4, n_embd=256, block_size=256)
    return Config(
        model=model,
        run=RunConfig(deepspeed_config=f"ds_configs/zero{stage}.json"),
        train=TrainConfig(batch_size=4, dtype="fp32"),
    )


def bare(model: Transformer, config: Config, device: torch.device):  # type: ignore[no-untyped-def]
    o = config.optim
    groups = engine.parameter_groups(model, o)
    optimizer = torch.optim.AdamW(groups, betas=(o.beta1, o.beta2), eps=o.eps, fused=True)

    def step(batches: list[Batch], lr: float) -> torch.Tensor:
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = lr
        for x, y, *_ in batches:
            loss = model(x.to(device), y.to(device)) / len(batches)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    world = engine.start(RunConfig())
    config = configs(0)
    tokens = config.train.batch_size * config.model.block_size
    print(f"model {parameter_count(config.model)['total']:,} parameters, {tokens} tokens a step, {world.device}")
    with tempfile.TemporaryDirectory() as tmp:
        text = Path(tmp) / "text.txt"
        text.write_text("\n\n".join(f"{i} {TEXT}" for i in range(400)))
        vocabulary = build_trie([TEXT], 300)
        prepare_set([str(text)], vocabulary, Path(tmp) / "set", val_fraction=0, force=False)
        stream = BlockStream([TokenSet.open(Path(tmp) / "set", "train")], config.model.block_size)
        contenders = {}
        torch.manual_seed(0)
        contenders["bare PyTorch"] = bare(Transformer(config.model).to(world.device), config, world.device)
        for stage in (0, 1):
            c = configs(stage)
            torch.manual_seed(0)
            contenders[f"ours, ZeRO {stage}"] = engine.Engine(Transformer(c.model), c, world).step
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for r in range(args.rounds + 1):
            for name, step in contenders.items():
                with Loader(stream, micro_batch=config.train.batch_size, batch_size=config.train.batch_size) as loader:
                    batches = [loader.next_step() for _ in range(args.steps)]
                    began = time.perf_counter()
                    for s, batch in enumerate(batches):
                        loss = step(batch, learning_rate(config.optim, s, 1000))
                    loss.item()
                    rate = args.steps * tokens / (time.perf_counter() - began)
                if r:  # the first round warms up
                    rates[name].append(rate)
    base = rates["bare PyTorch"]
    for name, values in rates.items():
        ratios = [v / b for v, b in zip(values, base, strict=True)]
        median, ratio = statistics.median(values), statistics.median(ratios)
        print(f"{name:<14} {median:8,.0f} tok/s   {ratio:.3f} of bare (median of {args.rounds} pairs)")
    engine.finish()


if __name__ == "__main__":
    main()
