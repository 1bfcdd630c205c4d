"""The options and the set-up that the inference scripts share."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nano_ds.cli import Parser
from nano_ds.errors import UserError
from nano_ds.sampling import SamplerParams
from nano_ds.tokenizer import Tokenizer

SYSTEM = "system prompt (default: the one of the model's template, if any)"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parser(description: str) -> argparse.ArgumentParser:
    made = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("-m", "--model", required=True, help="model directory, run, or checkpoint (checkpoints/step-…)")
    made.add_argument("-l", "--lora", metavar="LORA", help="adapter directory or .bin to put on the model")
    made.add_argument("-n", type=int, metavar="N", help="new tokens at most (default: up to the context)")
    made.add_argument("-s", type=int, metavar="S", help="tokens of the whole sequence at most, prompt included")
    made.add_argument("-t", type=float, default=1.0, metavar="T", help="temperature; 0 is greedy (default: 1.0)")
    made.add_argument("-k", type=int, default=5, metavar="K", help="sample from the K likeliest; 0 is off (default: 5)")
    made.add_argument("-p", type=float, default=0.0, metavar="P", help="sample from the top share P (default: off)")
    made.add_argument("-r", type=float, default=1.2, metavar="R", help="repetition penalty; 1 is none (default: 1.2)")
    made.add_argument("--seed", type=int, metavar="X", help="one seed gives one text (default: from the clock)")
    made.add_argument("--dtype", choices=DTYPES, default="fp32", help="numbers to compute in (default: fp32)")
    made.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 … (default: cuda where there is one)")
    made.add_argument("--profile", action="store_true", help="print tokens per second afterwards")
    made.add_argument("--debug", action="store_true", help="show the Python traceback when something fails")
    return made


@dataclass
class Setup:
    """A loaded model and what the options say about sampling."""

    model: Any
    tokenizer: Tokenizer
    params: SamplerParams
    stop: tuple[int, ...]


def set_up(args: argparse.Namespace, deepspeed: bool = False) -> Setup:
    """Loads what ``parser`` options name; ``deepspeed``: through DeepSpeed's inference engine.

    Raises:
        UserError: an option is out of range, or the model cannot be used.
    """
    from nano_ds.loading import load_model

    for name in ("n", "s"):
        value = getattr(args, name)
        low = 0 if name == "n" else 1
        if value is not None and value < low:
            raise UserError(f"-{name}: {value} is out of range, it must be at least {low}")
    seed = args.seed
    if seed is None:
        seed = time.time_ns() & 0x7FFFFFFF
        if args.t > 0:
            print(f"seed {seed}", file=sys.stderr)
    params = SamplerParams(temperature=args.t, top_k=args.k, top_p=args.p, repetition_penalty=args.r, seed=seed)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: PyTorch sees no CUDA device here; use --device cpu")
    model, tokenizer = load_model(args.model, device, DTYPES[args.dtype])
    if tokenizer is None:
        raise UserError(f"{args.model}: has no tokenizer.json, so there is no text to read or write")
    if args.lora:
        from nano_ds import lora
        from nano_ds.model_dir import ModelDir

        is_model_dir = (Path(args.model) / "model.safetensors").is_file()
        lora.load(model, args.lora, base=ModelDir(args.model) if is_model_dir else None)
    if deepspeed:
        from nano_ds.engine import load_for_inference

        wrapped = load_for_inference(model, DTYPES[args.dtype])
        return Setup(wrapped, tokenizer, params, tuple(tokenizer.stop_ids))
    return Setup(model, tokenizer, params, tuple(tokenizer.stop_ids))
