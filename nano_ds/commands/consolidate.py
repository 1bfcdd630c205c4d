"""`nano-ds consolidate`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Turn the ZeRO shards of a run into one model directory: config.json, model.safetensors (fp32), tokenizer.json and
meta.json. A LoRA run becomes an adapter directory: adapter.json and adapter.safetensors.

  nano-ds consolidate runs/demo -o runs/demo/model                       the newest good checkpoint
  nano-ds consolidate runs/demo/checkpoints/step-00000200 -o model200    that one
  nano-ds consolidate runs/lora -o runs/lora/adapter                     a LoRA run's adapter
  nano-ds consolidate runs/big -o model --hostfile hostfiles/two_nodes   files of machines without a shared disk

With --hostfile, whatever this machine lacks of the newest whole checkpoint is fetched over ssh and checked; the run's
own folders are only read. Works for every ZeRO stage, needs no GPU, and never holds the model in memory."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN_OR_CHECKPOINT", type=Path, help="run directory or checkpoints/step-…")
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="directory to write")
    parser.add_argument("--hostfile", metavar="H", help="the machines that trained, when they do not share a disk")


def run(args: argparse.Namespace) -> int:
    from nano_ds.consolidate import consolidate
    from nano_ds.nodes.hostfile import read_hostfile

    hosts = list(read_hostfile(args.hostfile)) if args.hostfile else []
    meta = consolidate(args.source, args.out, hosts)
    size = sum(f.stat().st_size for f in args.out.iterdir())
    print(f"{args.out}: step {meta['step']}, {meta['tokens']:,} tokens trained, {size / 1e6:,.1f} MB")
    # A .bin adapter has room for attention only.
    kind = ".bin" if set(meta.get("targets", ())) <= {"wq", "wk", "wv", "wo"} else ".gguf"
    file = args.out.parent / (args.out.name + kind)
    if "base" in meta:
        print(f"next: python inference/chat.py -m {meta['base']} -l {args.out}")
        print(f"  or: nano-ds export {meta['base']} --lora {args.out} -o {file}")
    else:
        print(f"next: nano-ds export {args.out} -o {file}")
    return 0
