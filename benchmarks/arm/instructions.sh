#!/usr/bin/env bash
# Instructions that nano-infer executes per token on an ARM core, counted by qemu: they repeat exactly.
# usage: instructions.sh MODEL [CORE=cortex-a76]; needs qemu-user (apt), gcc and runtime_c/build-aarch64/nano-infer
#   (make -C runtime_c aarch64). A decoded token: at positions 24 to 32. A prefilled one: the second 96 of 192.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
program=${PROGRAM:-$here/../../runtime_c/build-aarch64/nano-infer} model=$1 core=${2:-cortex-a76}
command -v qemu-aarch64 >/dev/null || { echo "no qemu-aarch64: apt-get install qemu-user" >&2; exit 1; }
[ -x "$program" ] || { echo "no $program: make -C runtime_c aarch64" >&2; exit 1; }
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
gcc -shared -fPIC -O2 "$here/icount.c" -o "$work/icount.so"
cpu=$(taskset -cp $$ | sed 's/.*: //; s/[-,].*//') # one CPU: the plugin's counters are not atomic
ids() { seq -s, 3 $(($1 + 2)); }
count() { # prompt tokens, new tokens
    taskset -c "$cpu" qemu-aarch64 -cpu "$core" -plugin "$work/icount.so" -d plugin "$program" run "$model" --ids "$(ids "$1")" \
        -n "$2" -t 0 -r 1 -j 1 2>"$work/log" >/dev/null || { cat "$work/log" >&2; exit 1; }
    grep -q "new $2 tokens" "$work/log" || { echo "the model stopped before $2 tokens" >&2; exit 1; }
    awk '$1 == "total" {print $2}' "$work/log"
}
few=$(count 16 8) more=$(count 16 16) short=$(count 96 0) long=$(count 192 0)
awk -v few="$few" -v more="$more" -v short="$short" -v long="$long" -v name="$(basename "$model") on $core" 'BEGIN {
    printf "%s: %.4f M instructions per decoded token, %.4f M per prefilled token\n", name,
        (more - few) / 8e6, (long - short) / 96e6 }'
