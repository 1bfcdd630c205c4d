"""`nano-ds eval`."""

from __future__ import annotations

import argparse

HELP = """\
Loss, perplexity and bits per byte of a model on the validation part of prepared shards.

  nano-ds eval runs/demo/model --loss runs/demo/data
  nano-ds eval runs/demo --loss runs/demo/data --batches 0        a run's newest checkpoint, the whole set"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model directory, run, or checkpoint")
    parser.add_argument("--loss", metavar="SHARDS", required=True, help="folder that `nano-ds prepare` wrote")
    parser.add_argument("--batches", type=int, default=64, metavar="N", help="batches to read; 0: all (default: 64)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="sequences at once (default: 8)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="numbers to compute in")


def run(args: argparse.Namespace) -> int:
    import math

    import torch

    from nano_ds.errors import UserError
    from nano_ds.evaluate import mean_loss
    from nano_ds.generate_args import DTYPES
    from nano_ds.loading import load_model

    if args.batches < 0 or args.batch_size < 1:
        raise UserError("--batches must be at least 0 and --batch-size at least 1")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_model(args.model, device, DTYPES[args.dtype])
    result = mean_loss(model, tokenizer, args.loss, args.batches, args.batch_size)
    print(f"tokens          {result.tokens:,}")
    print(f"loss            {result.loss:.4f} nats per token")
    print(f"perplexity      {math.exp(result.loss):.3f}")
    print(f"bits per byte   {result.bits_per_byte:.4f}")
    return 0
