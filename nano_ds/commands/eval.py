"""`nano-ds eval`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nano_ds.evaluate import LossResult

HELP = """\
Loss, perplexity and bits per byte of a model on the validation part of prepared shards. Of questions and answers
(`nano-ds prepare --sft`) only the answers count.

  nano-ds eval runs/demo/model --loss runs/demo/data
  nano-ds eval runs/demo --loss runs/demo/data --batches 0        a run's newest checkpoint, the whole set
  nano-ds eval model-q80.bin --loss runs/demo/data                a model file, in the C engine: what 8 bits cost
  nano-ds eval runs/demo/model -l runs/lora/adapter --loss runs/lora/data      with an adapter"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model directory, run, checkpoint, or model file (C engine)")
    parser.add_argument("-l", "--lora", metavar="ADAPTER", help="adapter directory or file to put on the model")
    parser.add_argument("--loss", metavar="SHARDS", required=True, help="folder that `nano-ds prepare` wrote")
    parser.add_argument("--batches", type=int, default=64, metavar="N", help="batches to read; 0: all (default: 64)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="sequences at once (default: 8)")
    parser.add_argument(
        "--block-size", type=int, default=0, metavar="N", help="tokens of a sequence (default: the model's context)"
    )
    parser.add_argument("-j", "--threads", type=int, metavar="J", help="CPU threads (default: one for each fast core)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="PyTorch: numbers to compute in (default: fp32)")


def run(args: argparse.Namespace) -> int:
    import math

    from nano_ds.errors import UserError
    from nano_ds.generate_args import check_threads, names_file

    if args.batches < 0 or args.block_size < 0 or args.batch_size < 1:
        raise UserError("--batches and --block-size must be at least 0 and --batch-size at least 1")
    check_threads(args.threads)
    result = _in_c(args) if names_file(args.model) else _in_torch(args)
    print(f"tokens          {result.tokens:,}")
    print(f"loss            {result.loss:.4f} nats per token")
    print(f"perplexity      {math.exp(result.loss):.3f}")
    print(f"bits per byte   {result.bits_per_byte:.4f}")
    return 0


def _in_c(args: argparse.Namespace) -> LossResult:
    from nano_ds.errors import UserError
    from nano_ds.evaluate import mean_loss_c
    from nano_ds.libnano import Adapter, Model

    if args.dtype:
        raise UserError("--dtype: belongs to PyTorch; the C engine computes with what `nano-ds export --quant` stored")
    with Model.open(args.model) as model:
        adapter = Adapter.open(args.lora) if args.lora else None
        numbers = args.batches, args.batch_size, args.block_size, args.threads or 0
        return mean_loss_c(model, args.loss, *numbers, adapter)


def _in_torch(args: argparse.Namespace) -> LossResult:
    import torch

    from nano_ds.evaluate import mean_loss
    from nano_ds.generate_args import torch_dtype
    from nano_ds.loading import load_model, put_on

    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_model(args.model, device, torch_dtype(args.dtype))
    if args.lora:
        put_on(model, args.model, args.lora)
    return mean_loss(model, tokenizer, args.loss, args.batches, args.batch_size, args.block_size)
