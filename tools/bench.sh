#!/usr/bin/env bash
# The measurements of docs/performance.md.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
export OMP_WAIT_POLICY=passive
for script in benchmarks/tokenizer.py benchmarks/training.py benchmarks/consolidate.py benchmarks/memory.py benchmarks/pace.py; do
    printf '\n== %s\n' "$script"
    "$BIN/python" "$script"
done
