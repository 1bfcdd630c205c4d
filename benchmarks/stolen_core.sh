#!/usr/bin/env bash
# What a second program costs that spins on one of our CPUs: tokens per second of one thread and of one for each CPU,
# alone and beside the spinner, alternating. usage: stolen_core.sh MODEL [ROUNDS=5]
set -euo pipefail
program=${PROGRAM:-$(cd "$(dirname "$0")" && pwd)/../runtime_c/build/nano-infer} model=$1 rounds=${2:-5}
cpus=$(nproc) last=$(($(nproc) - 1))
tps() {
    "$program" run "$model" -i "Once upon a time" -n 300 -t 0 -r 1 -j "$1" --json 2>/dev/null |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["decode_tps"])'
}
for _ in $(seq "$rounds"); do
    one=$(tps 1) all=$(tps "$cpus")
    taskset -c "$last" sh -c 'while :; do :; done' & spinner=$!
    one_beside=$(tps 1) all_beside=$(tps "$cpus")
    kill $spinner; wait $spinner 2>/dev/null || true
    echo "$one $all $one_beside $all_beside"
done | python3 -c '
import statistics, sys
rows = [list(map(float, line.split())) for line in sys.stdin]
one, all_, one_beside, all_beside = (statistics.median(c) for c in zip(*rows))
print(f"alone: 1 thread {one:.0f} tok/s, '"$cpus"' threads {all_:.0f}; beside a spinner: {one_beside:.0f} and {all_beside:.0f}, "
      f"{all_beside / all_:.2f} of what '"$cpus"' threads make alone")'
