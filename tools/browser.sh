#!/usr/bin/env bash
# Says why the tests of browser/ cannot run here; nothing, if they can.
cd "$(dirname "$0")/../browser" || exit 1
for tool in clang-19 wasm-ld-19 node; do
    command -v $tool >/dev/null || { echo "no $tool (apt-get install clang-19 lld-19 nodejs npm)"; exit; }
done
[ -e /usr/lib/wasm32-wasi/libc.a ] || { echo "no wasi-libc (apt-get install wasi-libc)"; exit; }
[ -n "${CHROMIUM:-}" ] || [ -x /usr/bin/chromium ] || [ -x /usr/bin/chromium-browser ] || [ -x /usr/bin/google-chrome ] ||
    { echo "no chromium (apt-get install chromium)"; exit; }
[ -e node_modules/playwright-core ] || echo "no playwright-core (npm install in browser/)"
