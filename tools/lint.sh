#!/usr/bin/env bash
# Style and types of everything. Prints what it runs; fails at the end if anything failed.
set -uo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin} failed=0
run() { echo "lint: $*"; "$@" || failed=1; }
python=(nano_ds launch inference tests benchmarks tools)
run "$BIN/ruff" check "${python[@]}"
run "$BIN/ruff" format --check "${python[@]}"
run "$BIN/mypy"
mapfile -t c_files < <(git ls-files 'runtime_c/*.c' 'runtime_c/*.h' 'browser/*.c' 'benchmarks/*.c')
run "$BIN/clang-format" --dry-run -Werror "${c_files[@]}"
run make -s -C runtime_c BUILD=build-lint OPT=-O1
rm -rf runtime_c/build-lint
if [ -x browser/node_modules/.bin/tsc ]; then
    run browser/node_modules/.bin/tsc -p browser --outDir browser/build/types
    run browser/node_modules/.bin/tsc -p browser/tsconfig.page.json
else
    echo "lint: no TypeScript compiler: types of browser/ are not checked (npm install in browser/)"
fi
mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
for script in "${scripts[@]}"; do run bash -n "$script"; done
exit $failed
