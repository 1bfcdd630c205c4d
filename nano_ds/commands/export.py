"""`nano-ds export`: a model directory into the files and folders that other programs read."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Writes a model directory as one file, or as a folder for transformers (docs/model_file.md says what holds what).

  nano-ds export runs/demo/model -o model.bin                      for Nano's programs and ours: float32, exact
  nano-ds export runs/demo/model -o model.bin --quant q80          8 bits per weight: a quarter of the size
  nano-ds export runs/demo/model -o model.gguf --quant q8_0        for llama.cpp and its kin, and ours
  nano-ds export runs/demo/model -o model.gguf --quant q4_k --calibrate text.txt
  nano-ds export runs/demo/model -o my_hf --to hf                  a directory that transformers loads
  nano-ds export runs/demo/model -o merged.gguf --merge adapter    the model with an adapter merged into it
  nano-ds export runs/demo/model --lora my_adapter -o adapter.gguf an adapter of that model alone (.bin, .gguf)
  nano-ds export runs/demo/model --lora my_adapter -o my_peft --to peft
"""
QUANTS = ("f32", "q80", "q4k", "f16", "bf16", "q8_0", "q4_0", "q4_k")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL_DIR", help="model directory (of `nano-ds consolidate` or `import`)")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="file (or directory, with --to) to write")
    parser.add_argument("--to", choices=("bin", "gguf", "hf", "peft"), help="what to write, where -o does not say it")
    parser.add_argument(
        "--quant",
        choices=QUANTS,
        default="f32",
        help="format of the matrices: .bin f32 q80 q4k; .gguf f32 f16 bf16 q8_0 q4_0 q4_k; hf f32 f16 bf16 (f32)",
    )
    parser.add_argument(
        "--calibrate", metavar="TEXT", help="q4_0, q4_k, q4k: text by which to see which weights matter (32k tokens)"
    )
    parser.add_argument("--merge", metavar="ADAPTER", help="add this adapter (folder, .bin, .gguf) to the weights")
    parser.add_argument("--lora", metavar="ADAPTER_DIR", help="write this adapter of MODEL_DIR, not the model")
    parser.add_argument("--no-tokenizer", action="store_true", help=".gguf: write the weights alone")
    parser.add_argument(
        "--bin-version", choices=("2026.1", "2024.10"), help=".bin: 2024.10 for early Nano programs (2026.1)"
    )
    parser.add_argument(
        "--group-size", type=int, choices=(64, 128), help="q80: weights that share a scale (128 if it fits, else 64)"
    )
    parser.add_argument(
        "--allow-noncausal",
        action="store_true",
        help=".bin: write a model with full attention although the file cannot say that it has",
    )


def run(args: argparse.Namespace) -> None:
    from nano_ds.interop.exporters import Job, choose_target, export_any
    from nano_ds.model_dir import ModelDir
    from nano_ds.report import facts

    out = Path(args.out)
    target = choose_target(args.to, out, lora=bool(args.lora))
    job = Job(
        model=ModelDir(args.model),
        out=out,
        quant=args.quant,
        lora=Path(args.lora) if args.lora else None,
        calibrate=Path(args.calibrate) if args.calibrate else None,
        no_tokenizer=args.no_tokenizer,
        bin_version=args.bin_version,
        group_size=args.group_size,
        allow_noncausal=args.allow_noncausal,
    )
    facts(export_any(target, job, Path(args.merge) if args.merge else None))
