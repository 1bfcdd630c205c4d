"""`nano-ds import`: another program's model file into a model directory."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Reads a Nano .bin file (versions 2024.10 to 2026.1; float32, Q80, Q4K; docs/model_file.md), a Hugging Face directory
(Llama, SmolLM2, Qwen2, Qwen2.5, Qwen3) or a .pt checkpoint of Nano (docs/interop.md) into a model directory, to go on
training, to run in Python or to export again. A LoRA .bin, .pt or PEFT directory becomes an adapter directory.

  nano-ds import model.bin -o models/mine
  nano-ds import adapter.bin -o models/mine_lora --base models/mine
  nano-ds import SmolLM2-135M-Instruct -o models/smollm2
  nano-ds import checkpoint.pt -o models/nano
  nano-ds import peft_directory -o models/smollm2_lora --base models/smollm2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", help="file or directory to read")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="model (or adapter) directory to write")
    parser.add_argument(
        "--no-causal", action="store_true", help="the model attends to all positions, which the file cannot say"
    )
    parser.add_argument(
        "--base", metavar="MODEL_DIR", help="for an adapter: the model it belongs to; checked and noted"
    )
    parser.add_argument("--tokenizer", metavar="F.json", help="for a .pt file: its vocabulary, where it holds none")
    parser.add_argument("--licence", default="", metavar="TEXT", help="note kept in meta.json")


def run(args: argparse.Namespace) -> None:
    from nano_ds.errors import UserError
    from nano_ds.interop.nano_bin import NanoBin
    from nano_ds.interop.nano_bin_import import describe, import_adapter, import_model
    from nano_ds.model_dir import ModelDir, shape_line
    from nano_ds.report import facts

    src = Path(args.src)
    if src.is_dir() or src.suffix == ".pt":
        from nano_ds.interop.foreign import import_foreign

        facts(import_foreign(src, args.out, licence=args.licence, base=args.base, tokenizer=args.tokenizer))
        return
    if src.suffix in (".gguf", ".safetensors"):
        raise UserError(f"{src}: only Nano .bin files can be imported yet")
    file = NanoBin(src, causal=not args.no_causal)
    lines = {"read": f"{src} ({describe(file.header)})"}
    if file.is_lora:
        if args.no_causal:
            raise UserError("--no-causal: belongs to models; this is an adapter")
        import_adapter(file, args.out, ModelDir(args.base) if args.base else None)
        lines["adapter"] = f"rank {file.header.rank}, alpha {file.header.alpha}"
        lines["base"] = args.base or "not given: nothing stops you from using it with the wrong model"
        hint = f"python inference/generate.py -m {args.base or 'MODEL_DIR'} -l {args.out} TEXT"
    else:
        if args.base:
            raise UserError(f"--base: belongs to adapters; {src} is a model")
        import_model(file, args.out, args.licence)
        lines["model"] = shape_line(file.config)
        lines["vocabulary"] = f"{len(file.vocabulary.tokens):,} tokens, {len(file.vocabulary.special)} special"
        if file.vocabulary.scores is not None:
            lines["vocabulary"] += "; merged by score, which cannot encode text here yet (the weights are complete)"
        lines["attention"] = "full" if args.no_causal else "causal (assumed: the file cannot say; else --no-causal)"
        hint = f"python inference/generate.py -m {args.out} TEXT"
    for i, remark in enumerate(file.remarks):
        lines["note" if i == 0 else f"note {i + 1}"] = remark
    facts({**lines, "written": str(args.out), "next": hint})
