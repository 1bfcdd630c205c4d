"""What quantisation costs: perplexity of a model as each `--quant` of GGUF stores it.

    python benchmarks/quantisation.py MODEL_DIR TEXT --bytes 100000 --calibrate OTHER_TEXT

The text is cut into pieces of 512 tokens, each read from its start; every matrix is quantised and put back as float32,
so the figures show the weights' rounding and nothing of an engine's. Calibrated figures come behind the others.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

from nano_ds.interop.block_search import quantises_with_importance, quantize
from nano_ds.interop.blocks import dequantize
from nano_ds.interop.gguf_export import QUANTS
from nano_ds.interop.gguf_layout import tensor_types
from nano_ds.interop.importance import collect
from nano_ds.model import Transformer
from nano_ds.model_dir import ModelDir
from nano_ds.tokenizer import load_tokenizer

PIECE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory with a tokenizer")
    parser.add_argument("text", type=Path, help="UTF-8 text to predict")
    parser.add_argument("--bytes", type=int, default=100_000, help="of the text, from its start (100000)")
    parser.add_argument("--calibrate", metavar="TEXT", help="another text, for the types that look at the inputs")
    parser.add_argument("--quant", nargs="*", default=list(QUANTS), choices=QUANTS)
    args = parser.parse_args()
    folder = ModelDir(args.model)
    ids = load_tokenizer(folder.tokenizer_path).encode(args.text.read_bytes()[: args.bytes])
    model = Transformer(folder.config).eval()
    runs = [(quant, None) for quant in args.quant]
    if args.calibrate:
        importance = collect(folder, args.calibrate)
        runs += [(quant, importance) for quant in args.quant if quantises_with_importance(quant)]
    for quant, importance in runs:
        started = time.perf_counter()
        load(model, folder, quant, importance)
        seconds = time.perf_counter() - started
        value, tokens = perplexity(model, ids)
        name = f"{quant}{' calibrated' if importance else ''}"
        print(f"{name:<16} perplexity {value:.4f} on {tokens} tokens; quantised in {seconds:.1f} s", flush=True)


@torch.no_grad()
def load(model: Transformer, folder: ModelDir, quant: str, importance: dict[str, np.ndarray] | None) -> None:
    """Fills ``model`` with the weights that a reader of the quantised file gets."""
    state, types = model.state_dict(), tensor_types(folder.config, quant)
    for name in folder.tensors:
        weights, type = folder.tensors[name], types[name]
        rows = weights.reshape(-1, weights.shape[-1])
        stored = dequantize(type, quantize(type, rows, (importance or {}).get(name)))
        state[name].copy_(torch.from_numpy(stored.reshape(weights.shape).copy()))


@torch.no_grad()
def perplexity(model: Transformer, ids: list[int]) -> tuple[float, int]:
    """Perplexity over whole pieces, and how many tokens were predicted."""
    size = min(PIECE, model.config.block_size)
    starts = range(0, len(ids) - size, size)
    losses = [
        model(torch.tensor([ids[i : i + size]]), torch.tensor([ids[i + 1 : i + size + 1]])).item() for i in starts
    ]
    return math.exp(sum(losses) / len(losses)), size * len(losses)


if __name__ == "__main__":
    main()
