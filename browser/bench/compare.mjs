// compare.mjs: nano-ds-web beside wllama (llama.cpp as WebAssembly), taking turns in one page.
//   npm install --no-save @wllama/wllama
//   node bench/compare.mjs MODEL.gguf [rounds] [threads]
import { spawnSync } from "node:child_process";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

import { launch } from "../test/chromium.js";
import { serve } from "../test/serve.js";

const here = dirname(fileURLToPath(import.meta.url));
const model = resolve(process.argv[2] ?? "");
const rounds = Number(process.argv[3] ?? 5);
const threads = Number(process.argv[4] ?? 1);
const peers = process.env.NODE_MODULES ?? join(here, "../node_modules");
const server = await serve({ package: join(here, ".."), models: dirname(model), peers });
const browser = await launch();
const page = await browser.newPage();
page.on("console", (message) => process.env.VERBOSE && console.error(message.text()));
await page.goto(server.url);
const rows = await page.evaluate(
  async ({ file, rounds, threads, server }) => {
    const { Nano } = await import(`${server}package/src/index.js`);
    const { Wllama } = await import(`${server}peers/@wllama/wllama/esm/index.js`);
    const PROMPT = 92;
    const NEW = 48;
    const bytes = await (await fetch(`${server}models/${file}`)).blob();

    const nano = new Nano({ threads });
    let begin = performance.now();
    await nano.load(bytes, undefined, { context: 1024 });
    const load = { nano: performance.now() - begin, wllama: 0 };

    const wllama = new Wllama(
      { default: `${server}peers/@wllama/wllama/esm/wasm/wllama.wasm`,
        "single-thread/wllama.wasm": `${server}peers/@wllama/wllama/esm/single-thread/wllama.wasm`,
        "multi-thread/wllama.wasm": `${server}peers/@wllama/wllama/esm/multi-thread/wllama.wasm` },
      { suppressNativeLog: true },
    );
    begin = performance.now();
    await wllama.loadModel([bytes], { n_ctx: 1024, n_threads: threads, n_batch: 512 });
    load.wllama = performance.now() - begin;

    const ids = Array.from({ length: PROMPT }, (_, i) => (i * 7919 + 11) % 49152);
    const turn = {
      nano: async () => {
        const { prefillTps, decodeTps } = await nano.bench({ promptTokens: PROMPT, newTokens: NEW });
        return [prefillTps, decodeTps];
      },
      wllama: async () => {
        await wllama.kvClear();
        const start = performance.now();
        await wllama.decode(ids, {});
        const middle = performance.now();
        for (let i = 0; i < NEW; i++) await wllama.decode([ids[i % PROMPT]], {});
        const end = performance.now();
        return [(PROMPT / (middle - start)) * 1000, (NEW / (end - middle)) * 1000];
      },
    };
    const rates = { nano: [], wllama: [] };
    for (let i = 0; i <= rounds; i++)
      for (const name of ["nano", "wllama"]) {
        const rate = await turn[name]();
        if (i) rates[name].push(rate); // the first one warms up
      }
    return { rates, load, info: await nano.info() };
  },
  { file: basename(model), rounds, threads, server: server.url },
);
await browser.close();
server.close();
const median = (list) => list.sort((a, b) => a - b)[list.length >> 1];
const f = (x) => x.toFixed(1);
console.log(`${basename(model)}, ${threads} thread(s), build ${rows.info.build}, medians of ${rounds}`);
for (const [i, what] of ["prefill tok/s", "decode tok/s"].entries()) {
  const a = rows.rates.nano.map((r) => r[i]);
  const b = rows.rates.wllama.map((r) => r[i]);
  console.log(`  ${what}: nano ${f(median(a))}, wllama ${f(median(b))}, ratio ${f(median(a) / median(b))}, of turns ${f(median(a.map((x, j) => x / b[j])))}`);
}
console.log(`  load ms: nano ${f(rows.load.nano)}, wllama ${f(rows.load.wllama)}; engine memory MB: nano ${f(rows.info.memoryBytes / 1e6)}`);
