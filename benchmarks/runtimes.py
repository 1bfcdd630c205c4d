"""Our C engine beside llama.cpp on the same GGUF files: tokens per second of prompts and of single tokens.

    python benchmarks/runtimes.py MODEL.gguf... [--threads 1 2] [--prompts 128 512] [--rounds 5]

llama.cpp is PyPI's llama-cpp-python, compiled here (`pip install -e '.[peers]'`). Both are loaded into one process, and
take turns: ours, theirs, ours, theirs; the figures are medians, the ratio is the median of the rounds' ratios. Each
starts from an empty context: a prompt of the given length, then --decode single tokens after a prompt of 64. A process
of its own opens each file once to measure the time to load it and the largest resident set after one token.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nano_ds.libnano import Model, Session


class Ours:
    name = "ours"

    def __init__(self, path: str, threads: int, context: int, **model: Any):
        self.model = Model.open(path, **model)
        self.session = Session(self.model, context, threads)

    def eval(self, ids: np.ndarray) -> None:
        self.session.feed(ids)

    def reset(self) -> None:
        self.session.reset()

    def close(self) -> None:
        self.session.close()
        self.model.close()


class Theirs:
    name = "llama.cpp"

    def __init__(self, path: str, threads: int, context: int):
        import llama_cpp as c

        self.c = c
        quiet = c.llama_log_callback(lambda level, text, data: None)
        c.llama_log_set(quiet, ctypes.c_void_p(0))
        self._quiet = quiet
        c.llama_backend_init()
        self.model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = context, 512, threads, threads
        self.context = c.llama_init_from_model(self.model, params)

    def eval(self, ids: np.ndarray) -> None:
        tokens = (ctypes.c_int32 * len(ids))(*ids.tolist())
        if self.c.llama_decode(self.context, self.c.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama_decode failed")
        self.c.llama_synchronize(self.context)

    def reset(self) -> None:
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)

    def close(self) -> None:
        self.c.llama_free(self.context)
        self.c.llama_model_free(self.model)


REST = 0.05  # seconds before each run, for the other's waiting threads to fall asleep


def prefill(engine: Any, ids: np.ndarray) -> float:
    time.sleep(REST)
    engine.reset()
    start = time.perf_counter()
    engine.eval(ids)
    return len(ids) / (time.perf_counter() - start)


def decode(engine: Any, ids: np.ndarray, count: int) -> float:
    time.sleep(REST)
    engine.reset()
    engine.eval(ids[:64])
    start = time.perf_counter()
    for i in range(count):
        engine.eval(ids[64 + i : 65 + i])
    return count / (time.perf_counter() - start)


def compare(engines: list[Any], rounds: int, run: Callable[[Any], float]) -> dict[str, float]:
    found: list[list[float]] = []
    for engine in engines:
        run(engine)  # warm
    for _ in range(rounds):
        found.append([run(engine) for engine in engines])
    medians = {e.name: statistics.median(row[i] for row in found) for i, e in enumerate(engines)}
    if len(engines) > 1:
        medians["ratio"] = statistics.median(row[0] / row[1] for row in found)
    return medians


def peak_mb() -> float:
    """The largest resident set of this process. Not ru_maxrss: that of a child begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.M)
    if not found:
        raise RuntimeError("/proc/self/status has no VmHWM: this benchmark needs Linux")
    return int(found[1]) / 1024


def load_once(which: str, path: str, threads: int) -> None:
    start = time.perf_counter()
    engine = {"ours": Ours, "theirs": Theirs}[which](path, threads, 2048)
    seconds = time.perf_counter() - start
    engine.eval(np.arange(1, 65, dtype=np.uint32))
    engine.eval(np.arange(1, 2, dtype=np.uint32))
    print(json.dumps({"load_s": seconds, "peak_mb": peak_mb()}))


def measure_load(which: str, path: str, threads: int, rounds: int) -> dict[str, float]:
    """Medians of processes of their own, less what Python and the imports take."""
    base = [sys.executable, __file__, path, "--load"]
    rows = [
        json.loads(subprocess.run([*base, which, "--threads", str(threads)], check=True, capture_output=True).stdout)
        for _ in range(rounds)
    ]
    empty = json.loads(subprocess.run([*base, f"empty-{which}"], check=True, capture_output=True).stdout)
    return {
        "load_s": statistics.median(row["load_s"] for row in rows),
        "peak_mb": statistics.median(row["peak_mb"] for row in rows) - empty["peak_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--prompts", type=int, nargs="*", default=[128, 512])
    parser.add_argument("--decode", type=int, default=64, help="single tokens in a round (64)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kernels", help="of ours (the best)")
    parser.add_argument("--alone", action="store_true", help="without llama.cpp")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        if args.load == "empty-theirs":
            import llama_cpp  # noqa: F401
        if args.load.startswith("empty"):
            print(json.dumps({"peak_mb": peak_mb()}))
        else:
            load_once(args.load, args.models[0], args.threads[0])
        return
    draw = np.random.default_rng(1)
    for path in args.models:
        for threads in args.threads:
            room = max([*args.prompts, 64 + args.decode])
            engines: list[Any] = [Ours(path, threads, room, kernels=args.kernels)]
            if not args.alone:
                engines.append(Theirs(path, threads, room))
            ids = draw.integers(10, engines[0].model.config.vocab_size, room).astype(np.uint32)
            for n in args.prompts:
                show(path, threads, f"prefill {n}", compare(engines, args.rounds, partial(prefill, ids=ids[:n])))
            show(path, threads, "decode", compare(engines, args.rounds, partial(decode, ids=ids, count=args.decode)))
            for engine in engines:
                engine.close()
        if not args.alone:
            loads = {which: measure_load(which, path, args.threads[-1], args.rounds) for which in ("ours", "theirs")}
            for key, unit in (("load_s", "s"), ("peak_mb", "MB")):
                ours, theirs = loads["ours"][key], loads["theirs"][key]
                print(f"{Path(path).name:<28} {key:<12} ours {ours:8.3f} {unit}  llama.cpp {theirs:8.3f} {unit}")


def show(path: str, threads: int, what: str, found: dict[str, float]) -> None:
    text = "  ".join(f"{name} {value:8.2f}" for name, value in found.items())
    print(f"{Path(path).name:<28} {threads} threads  {what:<12} {text}", flush=True)


if __name__ == "__main__":
    main()
