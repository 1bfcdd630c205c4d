"""Cycles of the SDOT and SMMLA kernels' innermost loops as llvm-mca models a core: no caches, no memory.

    python benchmarks/arm/cycles.py [--core neoverse-n1] [--cc aarch64-linux-gnu-gcc]

neoverse-n1 is the model nearest to Cortex-A76 (LLVM's own of A76 and A78 is of an older core). Loops are found in the
compiler's assembly: a label, a branch back to it, and no other branch in between. Needs llvm-mca (apt: llvm-19).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "runtime_c"
FILES = {"kernels_dotprod": ("armv8.2-a+dotprod", "sdot", 16), "kernels_i8mm": ("armv8.2-a+dotprod+i8mm", "smmla", 32)}
ITERATIONS = 1000


def assembly(compiler: str, name: str, arch: str) -> list[str]:
    flags = ["-std=c11", "-O3", "-ffp-contract=off", f"-march={arch}", "-fno-schedule-insns", f"-I{ROOT}/include"]
    done = subprocess.run(
        [compiler, *flags, "-S", "-o", "-", ROOT / "src" / f"{name}.c"], check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def loops(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Function and instructions of each innermost loop."""
    function, label_at, labels = "", -1, {}
    for i, line in enumerate(lines):
        if found := re.match(r"(\w+):", line):
            function = found[1]
        elif found := re.match(r"(\.L\w+):", line):
            labels[found[1]] = label_at = i
        elif found := re.match(r"\s+(?:b\.?\w*|cbn?z|tbn?z)\s.*?(\.L\w+)$", line):
            start = labels.get(found[1])
            if start is not None and start == label_at:
                body = lines[start + 1 : i + 1]
                yield function, [text for text in body if re.match(r"\s+[a-z]", text) and "//" not in text]
            label_at = -1


def cycles(mca: str, core: str, body: list[str]) -> float:
    """Of one turn of the loop."""
    command = [mca, "-mtriple=aarch64-linux-gnu", f"-mcpu={core}", "-mattr=+dotprod,+fullfp16,+i8mm"]
    text = re.sub(r"(movi\tv\d+\.16b, )0xf+f0$", r"\g<1>0xf0", "\n".join(body), flags=re.M)
    command += [f"-iterations={ITERATIONS}", "-"]
    done = subprocess.run(command, input=text + "\n", check=True, capture_output=True, text=True)
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert found, done.stdout
    return int(found[1]) / ITERATIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--core", default="neoverse-n1", help="a core that llvm-mca knows (default: %(default)s)")
    parser.add_argument("--cc", default="aarch64-linux-gnu-gcc", help="the compiler (default: %(default)s)")
    args = parser.parse_args()
    mca = shutil.which("llvm-mca-19") or shutil.which("llvm-mca")
    if not mca:
        sys.exit("no llvm-mca: apt-get install llvm-19")
    if not shutil.which(args.cc):
        sys.exit(f"no {args.cc}: apt-get install gcc-aarch64-linux-gnu")
    print(f"{'loop on ' + args.core:40} {'instructions per MAC':>22} {'MAC per cycle':>14}")
    for name, (arch, product, macs_each) in FILES.items():
        for function, body in loops(assembly(args.cc, name, arch)):
            products = sum(line.split()[0] == product for line in body)
            if products < 16:
                continue
            macs = products * macs_each
            tokens = "one token" if any("fcvtl" in line for line in body) else "four tokens"  # scales as packed
            print(
                f"{name.removeprefix('kernels_')} {function.removeprefix('matmul_')}, {tokens}".ljust(40),
                f"{len(body) / macs:22.3f} {macs / cycles(mca, args.core, body):14.1f}",
            )


if __name__ == "__main__":
    main()
