"""The options and the set-up that the inference scripts share.

PyTorch is imported only when it is the engine: the C engine runs where there is none.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nano_ds.cli import Parser
from nano_ds.errors import UserError
from nano_ds.generate_base import Engine
from nano_ds.sampling import SamplerParams
from nano_ds.tokenizer import Codec

if TYPE_CHECKING:
    import torch

SYSTEM = "system prompt (default: the one of the model's template, if any)"
DTYPES = ("fp32", "bf16")
MOST_THREADS = 256


def parser(description: str, engines: bool = True) -> argparse.ArgumentParser:
    """``engines``: the script may compute with the C engine."""
    files = ", or a model file (.bin, .gguf), which the C engine runs" if engines else ""
    made = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "-m", "--model", required=True, help=f"model directory, run, or checkpoint (checkpoints/step-…){files}"
    )
    made.add_argument("-l", "--lora", metavar="LORA", help="adapter directory or file to put on the model")
    if engines:
        made.add_argument(
            "--engine",
            choices=("torch", "c"),
            help="what computes: c for model files (needs no PyTorch), torch for everything else; "
            "the text is the same (default: by what -m names)",
        )
    made.add_argument("-n", type=int, metavar="N", help="new tokens at most (default: up to the context)")
    made.add_argument("-s", type=int, metavar="S", help="tokens of the whole sequence at most, prompt included")
    made.add_argument("-t", type=float, default=1.0, metavar="T", help="temperature; 0 is greedy (default: 1.0)")
    made.add_argument("-k", type=int, default=5, metavar="K", help="sample from the K likeliest; 0 is off (default: 5)")
    made.add_argument("-p", type=float, default=0.0, metavar="P", help="sample from the top share P (default: off)")
    made.add_argument("-r", type=float, default=1.2, metavar="R", help="repetition penalty; 1 is none (default: 1.2)")
    made.add_argument("--seed", type=int, metavar="X", help="one seed gives one text (default: from the clock)")
    made.add_argument("-j", "--threads", type=int, metavar="J", help="CPU threads (default: one for each fast core)")
    made.add_argument("--dtype", choices=DTYPES, help="PyTorch: numbers to compute in (default: fp32)")
    made.add_argument("--device", metavar="D", help="PyTorch: cpu, cuda, cuda:1 … (default: cuda where there is one)")
    made.add_argument("--profile", action="store_true", help="print the engine and tokens per second afterwards")
    made.add_argument("--debug", action="store_true", help="show the Python traceback when something fails")
    return made


@dataclass
class Setup:
    """What computes, what reads and writes text, and what the options say about sampling."""

    engine: Engine
    tokenizer: Codec
    params: SamplerParams


def set_up(args: argparse.Namespace, deepspeed: bool = False, causal: bool = True) -> Setup:
    """Loads what ``parser`` options name.

    ``deepspeed``: through DeepSpeed's inference engine. ``causal`` False: a model file's model attends to all
    positions, which the file itself cannot say.

    Raises:
        UserError: an option is out of range or does not go with the engine, or the model cannot be used.
    """
    for name in ("n", "s"):
        value = getattr(args, name)
        low = 0 if name == "n" else 1
        if value is not None and value < low:
            raise UserError(f"-{name}: {value} is out of range, it must be at least {low}")
    check_threads(args.threads)
    seed = args.seed
    if seed is None:
        seed = time.time_ns() & 0x7FFFFFFF
    params = SamplerParams(temperature=args.t, top_k=args.k, top_p=args.p, repetition_penalty=args.r, seed=seed)
    made = _c_setup(args, params, causal) if uses_c(args) else _torch_setup(args, params, deepspeed, causal)
    if args.seed is None and args.t > 0:
        print(f"seed {seed}", file=sys.stderr)
    return made


def uses_c(args: argparse.Namespace) -> bool:
    """Does the C engine compute? Only it runs a model file, and it runs nothing else.

    Raises:
        UserError: --engine asks for what the model is not made for, with the command that makes it so.
    """
    asked = getattr(args, "engine", "torch")  # a script without the option has PyTorch only
    is_file = names_file(args.model)
    if asked == "c" and Path(args.model).is_dir():
        raise UserError(
            f"{args.model}: is a folder, the C engine runs model files; "
            f"`nano-ds export {args.model} -o model.bin` writes one (a run is consolidated first)"
        )
    if asked == "torch" and is_file:
        raise UserError(
            f"{args.model}: is a file, PyTorch wants a model directory; `nano-ds import {args.model} -o DIR` makes one"
        )
    return asked == "c" or (asked is None and is_file)


def names_file(model: str) -> bool:
    """Is this a model file, or the name of one that is not there?"""
    path = Path(model)
    return path.is_file() or (path.suffix in (".bin", ".gguf") and not path.is_dir())


def check_threads(threads: int | None) -> None:
    """Raises UserError for a -j that is out of range."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UserError(f"-j: {threads} is out of range, it must be from 1 to {MOST_THREADS}")


def _c_setup(args: argparse.Namespace, params: SamplerParams, causal: bool) -> Setup:
    from nano_ds.libnano import Adapter, Model
    from nano_ds.libnano.engine import CEngine

    if args.dtype:
        raise UserError("--dtype: belongs to PyTorch; the C engine computes with what `nano-ds export --quant` stored")
    if args.device:
        raise UserError("--device: belongs to PyTorch; the C engine runs on the CPU")
    model = Model.open(args.model, non_causal=not causal)
    adapter = Adapter.open(args.lora) if args.lora else None
    return Setup(CEngine(model, adapter, args.threads or 0), model.tokenizer, params)


def _torch_setup(args: argparse.Namespace, params: SamplerParams, deepspeed: bool, causal: bool) -> Setup:
    import torch

    from nano_ds.generate import TorchEngine
    from nano_ds.loading import load_model, put_on

    if not causal:
        raise UserError("--no-causal: belongs to model files; a model directory says itself what it attends to")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: PyTorch sees no CUDA device here; use --device cpu")
    dtype = torch_dtype(args.dtype)
    model, tokenizer = load_model(args.model, device, dtype)
    if tokenizer is None:
        raise UserError(f"{args.model}: has no tokenizer.json, so there is no text to read or write")
    if args.lora:
        put_on(model, args.model, args.lora)
    if deepspeed:
        from nano_ds.engine import load_for_inference

        return Setup(TorchEngine(load_for_inference(model, dtype)), tokenizer, params)
    return Setup(TorchEngine(model), tokenizer, params)


def torch_dtype(name: str | None) -> torch.dtype:
    """What --dtype stands for; float32 without it."""
    import torch

    return torch.bfloat16 if name == "bf16" else torch.float32
