"""`nano-ds estimate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nano_ds.config import Config

HELP = """\
What a recipe asks for before you run it: parameters, FLOPs per token, memory per device and ZeRO stage, and how long.

  nano-ds estimate -c recipes/nano_56m.yaml --gpu A100
  nano-ds estimate -c recipes/demo.yaml --tflops 0.12
  nano-ds estimate -c recipes/demo.yaml model.n_layer=8 --devices 4

Memory per device counts weights, gradients and optimiser states (Rajbhandari et al. 2020, ZeRO), DeepSpeed's buckets
and copies, and activations (Korthikanti et al. 2022), which grow with train.micro_batch_size x model.block_size. The
base of a process (Python, PyTorch, CUDA: some 0.3 to 1 GB) comes on top. `reduce_bucket_size` is that of
run.deepspeed_config; with --gpu a bucket counts whole, as DeepSpeed allocates it there: lower it for small models.
Time is FLOPs / (devices x peak x --mfu)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from nano_ds.hardware import PEAK_BF16_TFLOPS

    names = ", ".join(name for name, _ in PEAK_BF16_TFLOPS)
    parser.add_argument("-c", "--config", metavar="RECIPE", required=True, help="YAML recipe")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="recipe keys to change")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="devices that train together (default: 1)")
    peak = parser.add_mutually_exclusive_group()
    peak.add_argument("--gpu", metavar="NAME", help=f"a GPU whose peak is known: {names}")
    peak.add_argument("--tflops", type=float, metavar="X", help="peak TFLOP/s of another device")
    parser.add_argument("--mfu", type=float, default=0.35, metavar="X", help="share of the peak (default: 0.35)")
    parser.add_argument("--tokens", type=float, metavar="N", help="tokens to train (default: those of the recipe)")


def run(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from nano_ds.config import load_config
    from nano_ds.errors import UserError
    from nano_ds.hardware import PEAK_BF16_TFLOPS, peak_of_name
    from nano_ds.model import parameter_count, train_flops_per_token
    from nano_ds.monitor import duration
    from nano_ds.start_from import resolved_if_here
    from nano_ds.tokenizer import load_tokenizer

    config = resolved_if_here(load_config(args.config, args.overrides))
    if args.devices < 1 or not 0 < args.mfu <= 1:
        raise UserError("--devices must be at least 1 and --mfu above 0 and at most 1")
    for option in ("tflops", "tokens"):
        value = getattr(args, option)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{option}: {value} is out of range, it must be above 0")
    peak = args.tflops * 1e12 if args.tflops else None
    if args.gpu is not None:
        peak = peak_of_name(args.gpu)
        if peak is None:
            known = ", ".join(name for name, _ in PEAK_BF16_TFLOPS)
            raise UserError(f"--gpu: the peak of {args.gpu!r} is not known; give --tflops, or one of {known}")
    vocab_size = config.model.vocab_size
    if config.data.tokenizer and not config.train.init_from:
        path = Path(config.data.tokenizer)
        vocab_size = load_tokenizer(path).vocab_size if path.is_file() else config.data.tokenizer_vocab_size
    length = config.data.block_size or config.model.block_size
    parts = parameter_count(replace(config.model, vocab_size=vocab_size))
    config = replace(config, model=replace(config.model, vocab_size=vocab_size, block_size=length))
    frozen = bool(config.lora.rank)
    flops = train_flops_per_token(config.model, frozen)
    tokens = args.tokens or config.train.max_steps * config.train.batch_size * length
    in_vocabulary = parts["embedding"] + parts["head"]
    print(f"parameters       {parts['total']:,}, {in_vocabulary:,} of them in the vocabulary")
    print(f"vocabulary       {vocab_size:,} tokens")
    print(f"FLOPs per token  {flops / 1e6:,.1f} M (forward and backward)")
    print(f"tokens           {tokens:,.0f} = {tokens / parts['total']:.1f} per parameter")
    print(f"compute          {tokens * flops:.3g} FLOPs")
    if peak:
        speed = args.devices * peak * args.mfu
        rate = f"{speed / flops:,.0f} tok/s ({args.mfu:.0%} of the peak)"
        print(f"time             {duration(tokens * flops / speed)} at {rate}")
    print_memory(config, args.devices, args.gpu is not None)
    if frozen:
        print("that is for training all weights; adapters alone need no gradients and optimiser states of the rest")
    return 0


def print_memory(config: Config, devices: int, gpu: bool) -> None:
    """One row for each stage and offload, the largest sum of one device at any moment of a step."""
    from nano_ds.ds_config import micro_batches, read_ds_config
    from nano_ds.estimate import predict

    # The recipe's own file gives sizes of buckets; where it is not at hand, DeepSpeed's defaults hold.
    path = config.run.deepspeed_config
    zero = read_ds_config(path).get("zero_optimization", {}) if Path(path).is_file() else {}
    base = {k: v for k, v in zero.items() if not k.startswith("offload_")}
    micro = micro_batches(config, devices)[0]
    shape = f"{micro} x {config.model.block_size} tokens at once"
    where = "GPU" if gpu else "CPU"
    print(f"\nmemory per device in MB, {devices} device(s) ({where}), {shape}; host: main memory of what is offloaded")
    print("  ZeRO                             fp32     host     bf16     host")
    rows: list[tuple[int, tuple[str, ...]]] = [(s, ()) for s in range(4)]
    rows += [(2, ("optimizer",)), (3, ("optimizer",)), (3, ("optimizer", "param"))]
    for stage, offload in rows:
        tree = {"zero_optimization": {**base, "stage": stage, **{f"offload_{o}": {"device": "cpu"} for o in offload}}}
        cells = ""
        for bf16 in (False, True):
            if bf16 and not stage:
                cells += "        –        –"
                continue
            memory = predict(config.model, tree, devices, bf16, micro, gpu)
            cells += f" {memory.device / 1e6:8,.0f} {memory.host / 1e6:8,.0f}"
        name = f"{stage}" + (f", offload of {' and '.join(offload)}" if offload else "")
        print(f"  {name:<28}{cells}")
