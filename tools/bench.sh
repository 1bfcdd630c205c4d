#!/usr/bin/env bash
# The measurements of docs/performance.md.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
export OMP_WAIT_POLICY=passive
for name in tokenizer training overhead pace memory consolidate; do
    script=benchmarks/$name.py
    printf '\n== %s\n' "$script"
    "$BIN/python" "$script"
done
