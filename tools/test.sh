#!/usr/bin/env bash
# Every suite. usage: test.sh quick|full. A suite whose tool cannot be had is skipped with its reason; with CI=true on a
# machine where it could be had, that is a failure.
set -uo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin} how=${1:-quick} failed=()
export OMP_WAIT_POLICY=passive
# Real models and texts, where `make` could fetch them
[ ! -d data/test ] || export NANO_DATA="${NANO_DATA:-$PWD/data/test}"
suite() { # name, command …
    local name=$1 from=$SECONDS; shift
    printf '\n== %s\n' "$name"
    if "$@"; then echo "== $name: passed in $((SECONDS - from)) s"; else failed+=("$name"); echo "== $name: FAILED"; fi
}
skip() {
    echo "== $1: skipped: $2"
    [ "${CI:-}" != true ] || [ "$(id -u)" != 0 ] || failed+=("$1 (skipped in CI)")
}

suite "C, native" make -s -C runtime_c test
bends=(); [ "$how" = full ] && bends=(FUZZ=10000)
suite "C, sanitizers" make -s -C runtime_c sanitize "${bends[@]}"
suite "C, thread sanitizer" make -s -C runtime_c tsan
if command -v clang-19 >/dev/null; then
    seconds=5; [ "$how" = full ] && seconds=60
    suite "C, libFuzzer" make -s -C runtime_c libfuzzer SECONDS=$seconds
else
    skip "C, libFuzzer" "no clang-19 (apt-get install clang-19 libclang-rt-19-dev)"
fi
if command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64-static >/dev/null; then
    suite "C, AArch64 under qemu" make -s -C runtime_c aarch64
else
    skip "C, AArch64 under qemu" "no aarch64-linux-gnu-gcc and qemu-aarch64-static (apt-get install gcc-aarch64-linux-gnu qemu-user-static)"
fi
browser=$(tools/browser.sh)
if [ -z "$browser" ]; then
    suite "browser" make -s -C browser test
else
    skip "browser" "$browser"
fi
hosts=$(PYTHONPATH=tests "$BIN/python" -c 'import cluster; print(cluster.missing())')
[ -z "$hosts" ] || skip "Python, several hosts" "$hosts"
marker=(-m "not full"); [ "$how" = full ] && marker=()
[ "$how" != full ] || rm -f runs/faults.json
suite "Python" "$BIN/python" -m pytest "${marker[@]}" -rs
if [ "$how" = full ] && [ -z "$hosts" ]; then
    suite "docs/reliability.md" "$BIN/python" tests/cluster/report.py runs/faults.json docs/reliability.md
fi
if [ ${#failed[@]} -gt 0 ]; then printf '\nfailed: %s\n' "${failed[@]}"; exit 1; fi
printf '\nall suites passed in %s s\n' "$SECONDS"
