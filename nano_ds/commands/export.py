"""`nano-ds export`: a model directory into the file that the C program and the page read."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Writes a model directory as one file that the C program runs (docs/model_file.md).

  nano-ds export runs/demo/model -o model.bin                          float32, exact
  nano-ds export runs/demo/model -o model.bin --quant q80              8 bits per weight: a quarter of the size
  nano-ds export runs/demo/model --lora my_adapter -o adapter.bin      an adapter of that model, in its own file
  nano-ds export runs/demo/model -o my_hf --to hf                      a directory that transformers loads
  nano-ds export runs/demo/model --lora my_adapter -o my_peft --to peft
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL_DIR", help="model directory (of `nano-ds consolidate` or `import`)")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="file (or directory, with --to) to write")
    parser.add_argument("--quant", choices=("f32", "q80"), default="f32", help="number format of the matrices (f32)")
    parser.add_argument(
        "--bin-version",
        choices=("2026.1", "2024.10"),
        default="2026.1",
        help="2024.10 for early Nano programs (2026.1)",
    )
    parser.add_argument(
        "--group-size", type=int, choices=(64, 128), help="weights that share a q80 scale (128 if it fits, else 64)"
    )
    parser.add_argument(
        "--to", choices=("hf", "peft"), help="write a directory for transformers; with --lora one for PEFT"
    )
    parser.add_argument("--dtype", choices=("f32", "bf16", "f16"), default="f32", help="numbers of --to hf (f32)")
    parser.add_argument("--lora", metavar="ADAPTER_DIR", help="write this adapter of MODEL_DIR, not the model")
    parser.add_argument(
        "--allow-noncausal",
        action="store_true",
        help="write a model with full attention although the file cannot say that it has",
    )


def run(args: argparse.Namespace) -> None:
    from nano_ds.errors import UserError
    from nano_ds.interop.nano_bin_import import describe
    from nano_ds.interop.nano_bin_writer import write_adapter, write_model
    from nano_ds.interop.vocabulary import NANO_MAX_TOKEN, Vocabulary
    from nano_ds.model_dir import AdapterDir, ModelDir, shape_line
    from nano_ds.report import facts

    out = Path(args.out)
    if args.to:
        from nano_ds.interop.foreign import export_foreign

        facts(export_foreign(args.model, out, to=args.to, lora=args.lora, dtype=args.dtype))
        return
    if out.is_dir():
        raise UserError(f"{out}: is a folder; -o names the file to write, such as {out / 'model.bin'}")
    if out.suffix != ".bin":
        raise UserError(f"-o {out}: cannot write {out.suffix or 'a file without a suffix'} yet; name it {out.stem}.bin")
    model = ModelDir(args.model)
    if args.lora:
        adapter = AdapterDir(args.lora)
        header = write_adapter(out, adapter, model)
        lines = {
            "adapter": f"rank {header.rank}, alpha {header.alpha}, on {len(adapter.linears)} layers",
            "base": str(model.path),
        }
        hint = f"nano-infer run MODEL.bin -l {out} -i TEXT, with MODEL.bin exported from {model.path}"
    else:
        if not model.tokenizer_path.exists():
            raise UserError(f"{model.tokenizer_path}: no such file; a .bin file needs the vocabulary inside")
        vocabulary = Vocabulary.load(model.tokenizer_path)
        header = write_model(
            out,
            model.config,
            model.tensors,
            vocabulary,
            version=args.bin_version,
            quant=args.quant,
            group_size=args.group_size,
            allow_noncausal=args.allow_noncausal,
        )
        longest = max(map(len, vocabulary.tokens))
        lines = {"model": shape_line(model.config), "vocabulary": f"{len(vocabulary.tokens):,} tokens"}
        if longest > NANO_MAX_TOKEN:
            lines["note"] = f"tokens of up to {longest} characters; Nano's own programs take {NANO_MAX_TOKEN}, ours all"
        if not model.config.is_causal:
            lines["attention"] = "full; the file cannot say so, tell every program that reads it"
        hint = f"runtime_c/build/nano-infer run {out} -i TEXT"
    facts({"written": f"{out} ({out.stat().st_size:,} bytes)", "format": describe(header), **lines, "next": hint})
