#!/usr/bin/env bash
# Instructions that nano-infer executes per token on an ARM core, counted by qemu: they repeat exactly.
# usage: instructions.sh MODEL [CORE=cortex-a76]; needs qemu-user (apt), gcc and runtime_c/build-aarch64/nano-infer
#   (make -C runtime_c aarch64). A decoded token: at positions 24 to 32. A prefilled one: the second 96 of 192.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
program=${PROGRAM:-$here/../../runtime_c/build-aarch64/nano-infer} model=$1 core=${2:-cortex-a76}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
gcc -shared -fPIC -O2 "$here/icount.c" -o "$work/icount.so"
ids() { seq -s, 3 $(($1 + 2)); }
count() { # prompt tokens, new tokens
    taskset -c 0 qemu-aarch64 -cpu "$core" -plugin "$work/icount.so" -d plugin "$program" run "$model" --ids "$(ids "$1")" -n "$2" \
        -t 0 -r 1 -j 1 2>&1 >/dev/null | awk '$1 == "total" {print $2}'
}
few=$(count 16 8) more=$(count 16 16) short=$(count 96 0) long=$(count 192 0)
python3 - "$few" "$more" "$short" "$long" "$(basename "$model")" "$core" <<'PY'
import sys
few, more, short, long = map(int, sys.argv[1:5])
print(f"{sys.argv[5]} on {sys.argv[6]}: {(more - few) / 8e6:.3f} M instructions per decoded token, "
      f"{(long - short) / 96e6:.3f} M per prefilled token")
PY
