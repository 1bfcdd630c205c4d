#!/usr/bin/env bash
# What the Makefile needs on this machine. usage: setup.sh core|dev|peers|system
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv} PYTHON=${PYTHON:-python3}
pip() { PYTHONWARNINGS=ignore "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
say() { printf '%s\n' "setup: $*" >&2; }

has_gpu() { [ -e /dev/nvidia0 ] || [ -e /dev/nvhost-gpu ] || [ -e /dev/nvgpu ] || command -v nvidia-smi >/dev/null 2>&1; }

core() {
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        say "$PYTHON is not Python 3.10 or newer; install one and say PYTHON=/path/to/python3 make …"; exit 2
    fi
    if [ ! -x "$VENV/bin/python" ]; then
        say "virtual environment in $VENV ($("$PYTHON" --version))"
        "$PYTHON" -m venv "$VENV" || { say "Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
    fi
    if ! has_gpu && ! "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
        # An index may offer a CPU build beside the CUDA one, which is several GB.
        local torch; torch=$(grep -m1 '^torch' requirements.txt | cut -d'#' -f1)
        say "no GPU here: looking for a CPU build of torch"
        if ! pip install -q "$(sed 's/>=\([0-9.]*\).*/==\1.0+cpu/; s/\(==[0-9]*\.[0-9]*\.0\)\.0/\1/' <<<"$torch")" 2>/dev/null; then
            say "the package index has none: installing the build it has, which may be large"
            say "(PIP_EXTRA_INDEX_URL can name an index with CPU builds, such as PyTorch's own)"
        fi
    fi
    say "Python packages (requirements.txt)"
    pip install -q -r requirements.txt
    pip install -q --no-deps -e .
}

dev() {
    say "development packages"
    pip install -q -e '.[dev]'
}

peers() {
    "$VENV/bin/python" -c 'import llama_cpp' 2>/dev/null && return 0
    say "llama.cpp, to compare with: it is compiled, which takes about 15 minutes"
    pip install -q -e '.[peers]' || say "it cannot be compiled here; tests that need it will be skipped"
}

# Debian packages for the cross-compiled suite and for several hosts on one machine; without root they are only missed.
system() {
    local missing=()
    need() { command -v "$1" >/dev/null || missing+=("${@:2}"); }
    PATH=$PATH:/usr/sbin:/sbin
    need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
    need qemu-aarch64-static qemu-user-static
    need qemu-aarch64 qemu-user
    need clang-19 clang-19 libclang-rt-19-dev
    need wasm-ld-19 lld-19
    [ -e /usr/lib/wasm32-wasi/libc.a ] || missing+=(wasi-libc)
    need node nodejs
    need npm npm
    need chromium chromium
    need ip iproute2
    need sshd openssh-server
    need ssh openssh-client
    need pdsh pdsh
    need mpirun openmpi-bin
    if [ ${#missing[@]} -eq 0 ]; then node_modules; return 0; fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "not installed and not root: ${missing[*]} (suites that need them will be skipped)"; node_modules; return 0
    fi
    say "Debian packages: ${missing[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
        >/dev/null 2>&1 || say "apt-get failed; suites that need these packages will be skipped"
    node_modules
}

# The browser's tests are driven by playwright-core; its types are checked by TypeScript.
node_modules() {
    command -v npm >/dev/null || return 0
    say "npm packages for the tests of browser/"
    (cd browser && npm install --no-package-lock --no-audit --no-fund --loglevel=error >/dev/null) ||
        say "npm failed; the tests of browser/ will be skipped"
}

"$1"
