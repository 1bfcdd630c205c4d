"""What a LoRA costs at run time: tokens per second with random adapters of a rank, beside the model without one.

    python benchmarks/adapters.py MODEL.gguf... [--rank 8] [--threads 1 2] [--rounds 9] [--decode 64] [--prompt 128]

One session of each file, whose adapter is switched between the rounds: none, q k v o, none, all seven linears, ... Each
adapter is measured against the plain rounds right before and after it; the cost is the median of these ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from nano_ds.interop.gguf_file import GGUFFile, GGUFWriter
from nano_ds.libnano import Adapter, Model, Session

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
SEVEN = (*ATTENTION, "ffn_gate", "ffn_up", "ffn_down")


def write_random_adapter(path: Path, base: str, rank: int, linears: tuple[str, ...]) -> None:
    """An adapter for these linears of every layer of ``base``, with small random weights."""
    draw = np.random.default_rng(5)
    file = GGUFFile(base)
    architecture = file.metadata["general.architecture"]
    parts: list[tuple[str, tuple[int, ...], str]] = []
    for layer in range(int(file.metadata[f"{architecture}.block_count"])):
        for linear in linears:
            name = f"blk.{layer}.{linear}.weight"
            out, columns = file.infos[name].shape
            parts += [(f"{name}.lora_a", (rank, columns), "f32"), (f"{name}.lora_b", (out, rank), "f32")]
    metadata = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(rank),
    }
    with GGUFWriter(path, metadata, parts) as writer:
        for name, shape, _ in parts:
            writer.write(name, draw.normal(0, 0.01, shape).astype(np.float32))


def measure(session: Session, ids: np.ndarray, prompt: int, decode: int) -> tuple[float, float]:
    """Tokens per second of the prompt, and of the single tokens after it."""
    session.reset()
    start = time.perf_counter()
    session.feed(ids[:prompt])
    middle = time.perf_counter()
    for i in range(prompt, prompt + decode):
        session.feed(ids[i : i + 1])
    return prompt / (middle - start), decode / (time.perf_counter() - middle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--decode", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for path in args.models:
            adapters = {}
            for title, linears in (("q k v o", ATTENTION), ("all seven", SEVEN)):
                file = Path(folder) / f"{len(linears)}.gguf"
                write_random_adapter(file, path, args.rank, linears)
                adapters[title] = Adapter.open(file)
            model = Model.open(path)
            size = args.prompt + args.decode
            ids = np.random.default_rng(1).integers(10, model.config.vocab_size, size).astype(np.uint32)
            for threads in args.threads:
                session = Session(model, size, threads)
                measure(session, ids, args.prompt, args.decode)
                for title, adapter in adapters.items():
                    rows = []
                    before = measure(session, ids, args.prompt, args.decode)
                    for _ in range(args.rounds):
                        session.set_adapter(adapter)
                        found = measure(session, ids, args.prompt, args.decode)
                        session.set_adapter(None)
                        after = measure(session, ids, args.prompt, args.decode)
                        rows.append([f / ((b + a) / 2) for f, b, a in zip(found, before, after, strict=True)])
                        before = after
                    costs = [100 * (1 - statistics.median(row[i] for row in rows)) for i in range(2)]
                    print(
                        f"{Path(path).name:<24} {threads} threads  rank {args.rank}, {title:<10} "
                        f"costs {costs[0]:5.1f} % of prefill, {costs[1]:5.1f} % of decode",
                        flush=True,
                    )
                session.close()
            model.close()


if __name__ == "__main__":
    main()
