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
    await nano.load(bytes, undefined, { context: 1024, draft: false }); // token by token, as wllama does it
    const load = { nano: performance.now() - begin, wllama: 0 };

    const wllama = new Wllama({ default: `${server}peers/@wllama/wllama/esm/wasm/wllama.wasm` });
    begin = performance.now();
    await wllama.loadModel([bytes], { n_ctx: 1024, n_threads: threads, n_parallel: 1, n_gpu_layers: 0 });
    load.wllama = performance.now() - begin;

    // Another text each time, so that nothing is remembered; both count their own time.
    const words = "one day a small red bird flew over the old town and saw two children play with a ball near the river".split(" ");
    const prompt = (/** @type {number} */ round) => Array.from({ length: PROMPT }, (_, i) => words[(i * (round + 3) + i * i) % words.length]).join(" ");
    const sampling = { temperature: 0, top_k: 1 };
    const turn = {
      nano: async (round) => {
        const writer = nano.generate(prompt(round), { temperature: 0, repetitionPenalty: 1, maxTokens: NEW });
        let step = await writer.next();
        while (!step.done) step = await writer.next();
        return [step.value.prefillTps, step.value.decodeTps, step.value.promptTokens, step.value.newTokens];
      },
      wllama: async (round) => {
        const { timings: t } = await wllama.createCompletion({ prompt: prompt(round), max_tokens: NEW, cache_prompt: false, ...sampling });
        return [t.prompt_per_second, t.predicted_per_second, t.prompt_n, t.predicted_n];
      },
    };
    const rates = { nano: [], wllama: [] };
    for (let i = 0; i <= rounds; i++)
      for (const name of ["nano", "wllama"]) {
        const rate = await turn[name](i);
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
  if (!i) console.log(`  tokens: nano ${rows.rates.nano[0].slice(2)}, wllama ${rows.rates.wllama[0].slice(2)}`);
  console.log(`  ${what}: nano ${f(median(a))}, wllama ${f(median(b))}, ratio ${f(median(a) / median(b))}, of turns ${f(median(a.map((x, j) => x / b[j])))}`);
}
console.log(`  load ms: nano ${f(rows.load.nano)}, wllama ${f(rows.load.wllama)}; engine memory MB: nano ${f(rows.info.memoryBytes / 1e6)}`);
