"""What quantisation costs: perplexity of a model in each type of weights, ours beside llama.cpp's quantiser.

    python benchmarks/quantisation.py MODEL_DIR TEXT --bytes 40000 --calibrate OTHER_TEXT

Every type of GGUF is written by us and, where the package `llama_cpp` is installed, by llama.cpp from our float32 file;
both files are read back by `nano_ds.interop` and evaluated in PyTorch as float32, so the figures show the rounding of
the weights and nothing of an engine's. Nano's Q80 and Q4K are rounded in memory, since a `.bin` does not hold every
model. The text is cut into pieces of 512 tokens (less where the context is shorter), each read from its start.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from nano_ds.errors import UserError
from nano_ds.interop.block_search import quantises_with_importance
from nano_ds.interop.gguf_export import QUANTS, write_gguf
from nano_ds.interop.gguf_import import import_gguf
from nano_ds.interop.importance import collect
from nano_ds.interop.nano_bin_writer import choose_group_size
from nano_ds.interop.quantize import Q4K_ROW, dequantize_q4k, dequantize_q80, quantize_q4k, quantize_q80
from nano_ds.model import Transformer
from nano_ds.model_dir import ModelDir
from nano_ds.tokenizer import load_tokenizer

PIECE = 512
NANO = ("Q80", "Q4K")
# Their mixture for 4_k that is like ours keeps some matrices in 6 bits: "medium".
THEIRS = {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_k": "Q4_K_M"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory with a tokenizer")
    parser.add_argument("text", type=Path, help="UTF-8 text to predict")
    parser.add_argument("--bytes", type=int, default=100_000, help="of the text, from its start (100000)")
    parser.add_argument("--calibrate", metavar="TEXT", help="another text, for the types that look at the inputs")
    parser.add_argument("--quant", nargs="*", default=[*QUANTS, *NANO], choices=[*QUANTS, *NANO])
    args = parser.parse_args()
    bench = Bench(ModelDir(args.model), args.text.read_bytes()[: args.bytes])
    importance = collect(bench.folder, args.calibrate) if args.calibrate else None
    peer = importlib.util.find_spec("llama_cpp") is not None
    if not peer:
        print("no package llama_cpp: ours alone (pip install -e '.[peers]' compiles it)")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        exact = scratch / "f32.gguf"
        bench.write(exact, "f32")
        for quant in args.quant:
            if quant in NANO:
                bench.nano(quant)
                continue
            bench.ours(scratch / "ours.gguf", quant)
            if importance and quantises_with_importance(quant):
                bench.ours(scratch / "ours.gguf", quant, importance)
            if peer and quant in THEIRS:
                bench.theirs(exact, scratch / "theirs.gguf", quant)


class Bench:
    """One model and the tokens to predict; every method prints a line."""

    def __init__(self, folder: ModelDir, text: bytes):
        self.folder = folder
        self.tokenizer = load_tokenizer(folder.tokenizer_path)
        self.ids = self.tokenizer.encode(text)
        self.model = Transformer(folder.config).eval()

    def write(self, path: Path, quant: str, importance: dict[str, np.ndarray] | None = None) -> None:
        write_gguf(
            path, self.folder.config, self.folder.tensors, self.tokenizer, self.folder.meta, quant, importance
        )  # fmt: skip

    def ours(self, path: Path, quant: str, importance: dict[str, np.ndarray] | None = None) -> None:
        started = time.perf_counter()
        self.write(path, quant, importance)
        self.report(f"{quant}{' calibrated' if importance else ''}", "ours", path, time.perf_counter() - started)

    def theirs(self, exact: Path, path: Path, quant: str) -> None:
        import ctypes

        import llama_cpp

        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{THEIRS[quant]}")
        params.nthread = torch.get_num_threads()
        started = time.perf_counter()
        if llama_cpp.llama_model_quantize(str(exact).encode(), str(path).encode(), ctypes.byref(params)):
            print(f"{quant:<16} llama.cpp  refused to quantise {exact}", flush=True)
            return
        self.report(quant, "llama.cpp", path, time.perf_counter() - started)

    def report(self, quant: str, whose: str, path: Path, seconds: float) -> None:
        """Of a GGUF file, as our reader finds its weights."""
        with tempfile.TemporaryDirectory() as name:
            import_gguf(path, Path(name) / "model")
            ModelDir(Path(name) / "model").load_into(self.model)
        size = path.stat().st_size / 1e6
        self.line(quant, whose, f"{size:7.1f} MB, written in {seconds:.1f} s")
        path.unlink()

    @torch.no_grad()
    def nano(self, quant: str) -> None:
        state, config = self.model.state_dict(), self.folder.config
        note = ""
        for name in self.folder.tensors:
            weights = self.folder.tensors[name]
            if weights.ndim == 2 and "pos_emb" not in name:
                try:
                    weights, note = as_nano(quant, weights, choose_group_size(config) if quant == "Q80" else 0)
                except UserError as e:
                    print(f"{quant:<16} ours       not for this model: {e}", flush=True)
                    return
            state[name].copy_(torch.from_numpy(np.array(weights)))
        self.line(quant, "ours", note)

    def line(self, quant: str, whose: str, note: str) -> None:
        value, tokens = perplexity(self.model, self.ids)
        print(f"{quant:<16} {whose:<10} perplexity {value:.4f} on {tokens} tokens; {note}", flush=True)


def as_nano(quant: str, weights: np.ndarray, group: int) -> tuple[np.ndarray, str]:
    """The weights [r, c] as a reader of Nano's type gets them, and a word on the type."""
    if quant == "Q80":
        return dequantize_q80(*quantize_q80(weights, group)).reshape(weights.shape), f"groups of {group}"
    if weights.shape[1] % Q4K_ROW:
        raise UserError(f"Q4K needs rows of a multiple of {Q4K_ROW}; there are some of {weights.shape[1]}")
    return dequantize_q4k(quantize_q4k(weights), weights.shape), "160 bytes for 256 weights"


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
