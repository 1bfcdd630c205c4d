"""Time and peak memory of consolidation, ours against DeepSpeed's own zero_to_fp32, alternating, each in a process.

python benchmarks/consolidate.py [--embd 768] [--layers 12] [--rounds 3]

A fresh model is saved at ZeRO 1 and 3 without training. Peak memory is the process's largest resident set less that of
a process that only imports the same modules; memory-mapped pages of the shards count, though the system may drop them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
PROGRAM = """
import resource, sys, time
from pathlib import Path
how, source, out = sys.argv[1:]
import nano_ds.consolidate, torch
if how == "DeepSpeed":
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict as convert
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
if how == "DeepSpeed":
    convert(source, out, tag="zero", safe_serialization=True, max_shard_size=None)
else:
    nano_ds.consolidate.consolidate(Path(source), Path(out))
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("RESULT", seconds, (peak - base) * 1024 / 1e6)
"""


def measure(how: str, source: Path, out: Path) -> tuple[float, float]:
    command = [sys.executable, "-c", PROGRAM, how, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(f"{how} failed:\n{done.stderr[-2000:]}")
    return float(lines[0][0]), float(lines[0][1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embd", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        (folder / "text.txt").write_text("one two three four five six seven eight nine ten\n\n" * 400)
        keys = f"model.n_embd={args.embd} model.n_layer={args.layers} model.n_head=12 model.n_kv_head=12".split()
        keys += ["model.block_size=16", "train.batch_size=1", "train.max_steps=1", "train.eval_every=0"]
        recipe = {
            "data": {
                "tokenizer": f"{tmp}/tokenizer.json",
                "tokenizer_vocab_size": 300,
                "sets": [{"dir": f"{tmp}/set", "text": [f"{tmp}/text.txt"]}],
            }
        }
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        nano = [sys.executable, "-m", "nano_ds"]
        quiet = {"check": True, "cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([*nano, "prepare", "-c", f"{tmp}/recipe.yaml"], **quiet)  # type: ignore[call-overload]
        for stage in (1, 3):
            run = folder / f"run{stage}"
            where = [f"run.dir={run}", f"run.deepspeed_config=ds_configs/zero{stage}.json"]
            subprocess.run([*nano, "train", "-c", f"{tmp}/recipe.yaml", *keys, *where], **quiet)  # type: ignore[call-overload]
            source = run / "checkpoints" / "step-00000001"
            found: dict[str, list[tuple[float, float]]] = {"ours": [], "DeepSpeed": []}
            for r in range(args.rounds):
                for how in found:
                    found[how].append(measure(how, source, folder / f"out-{how}-{r}-{stage}"))
                    time.sleep(0.2)
            size = (folder / f"out-ours-0-{stage}" / "model.safetensors").stat().st_size / 1e6
            print(f"ZeRO {stage}, fp32 model of {size:,.0f} MB, medians of {args.rounds}:")
            for how, results in found.items():
                seconds, memory = (statistics.median(x) for x in zip(*results, strict=True))
                share = f"{memory / size:.2f} x the model"
                print(f"  {how:<10} {seconds:6.2f} s   {memory:7,.0f} MB over the imports = {share}")


if __name__ == "__main__":
    main()
