"""`nano-ds import`: another program's model into a model directory."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Reads another program's model into a model directory, to go on training, to run in Python or to export again; what a
file is, is seen from its content. An adapter becomes an adapter directory.

  Nano .bin files     versions 2024.10 to 2026.1; float32, Q80, Q4K; LoRA (docs/model_file.md)
  Nano .pt            checkpoints, LoRA
  GGUF files          llama, qwen2, qwen3 and ours; F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K; LoRA
  directories         of Hugging Face (Llama, SmolLM2, Qwen2, Qwen2.5, Qwen3); of PEFT

  nano-ds import model.bin -o models/mine
  nano-ds import adapter.bin -o models/mine_lora --base models/mine
  nano-ds import SmolLM2-135M-Instruct.Q4_1.gguf -o models/smollm2
  nano-ds import SmolLM2-135M-Instruct -o models/smollm2
  nano-ds import checkpoint.pt -o models/nano
  nano-ds import peft_directory -o models/smollm2_lora --base models/smollm2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", help="file or directory to read")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="model (or adapter) directory to write")
    parser.add_argument(
        "--no-causal", action="store_true", help="the model of a .bin attends to all positions, which it cannot say"
    )
    parser.add_argument(
        "--base", metavar="MODEL_DIR", help="for an adapter: the model it belongs to; checked and noted"
    )
    parser.add_argument("--tokenizer", metavar="F.json", help="for a .pt file: its vocabulary, where it holds none")
    parser.add_argument(
        "--no-tokenizer", action="store_true", help="of a GGUF file import the weights alone, whatever its tokenizer is"
    )
    parser.add_argument("--licence", default="", metavar="TEXT", help="note kept in meta.json")


def run(args: argparse.Namespace) -> None:
    from nano_ds.interop.importers import Options, import_any
    from nano_ds.model_dir import ModelDir
    from nano_ds.report import facts

    options = Options(
        licence=args.licence,
        base=ModelDir(args.base) if args.base else None,
        no_causal=args.no_causal,
        no_tokenizer=args.no_tokenizer,
        tokenizer=args.tokenizer,
    )
    facts(import_any(Path(args.src), Path(args.out), options))
