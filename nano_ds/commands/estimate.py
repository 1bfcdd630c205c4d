"""`nano-ds estimate`."""

from __future__ import annotations

import argparse

HELP = """\
What a recipe asks for before you run it: parameters, FLOPs per token, memory per device and ZeRO stage, and how long.

  nano-ds estimate -c recipes/nano_56m.yaml --gpu A100
  nano-ds estimate -c recipes/demo.yaml --tflops 0.12
  nano-ds estimate -c recipes/demo.yaml model.n_layer=8 --devices 4

Memory counts weights, gradients and optimiser states (Rajbhandari et al. 2020, ZeRO); activations come on top and grow
with train.micro_batch_size x model.block_size. Time is FLOPs / (devices x peak x --mfu)."""


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
    from pathlib import Path

    from nano_ds.config import load_config
    from nano_ds.errors import UserError
    from nano_ds.estimate import zero_bytes
    from nano_ds.hardware import PEAK_BF16_TFLOPS, peak_of_name
    from nano_ds.model import parameter_count, train_flops_per_token
    from nano_ds.monitor import duration
    from nano_ds.tokenizer import load_tokenizer

    config = load_config(args.config, args.overrides)
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
    if config.data.tokenizer:
        path = Path(config.data.tokenizer)
        vocab_size = load_tokenizer(path).vocab_size if path.is_file() else config.data.tokenizer_vocab_size
    config = replace(config, model=replace(config.model, vocab_size=vocab_size))
    parts, flops = parameter_count(config.model), train_flops_per_token(config.model)
    tokens = args.tokens or config.train.max_steps * config.train.batch_size * config.model.block_size
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
    print(f"\nmemory per device in MB, {args.devices} device(s), activations not counted")
    print("  ZeRO     fp32     bf16")
    for stage in range(4):
        row = [f"{zero_bytes(parts['total'], stage, args.devices, bf16) / 1e6:8,.0f}" for bf16 in (False, True)]
        print(f"  {stage}    {row[0]} {row[1] if stage else '       –'}")
    return 0
