// engine.test.js: the three builds in Chromium beside the native program, on models that the tests make.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, before, test as run } from "node:test";
import { fileURLToPath } from "node:url";

import { launch } from "./chromium.js";
import { serve } from "./serve.js";

const here = dirname(fileURLToPath(import.meta.url));
const native = process.env.NATIVE ?? join(here, "../../runtime_c/build");
const BUILDS = /** @type {const} */ ([["simd", 1], ["relaxed", 1], ["threads", 2]]);
const PROMPT = "hello there";

/** Nothing may hang. @param {string} name @param {(t: import("node:test").TestContext) => Promise<void>} body */
const test = (name, body) => run(name, { timeout: Number(process.env.TEST_SECONDS ?? 120) * 1000 }, body);

/** @type {string} */
let folder;
/** @type {{url: string, close: () => void}} */
let server;
/** @type {import("playwright-core").Browser} */
let browser;
/** @type {import("playwright-core").Page} */
let page;
/** @type {string[]} */
const complaints = [];

/** @param {string} kind */
function make(kind) {
  const file = join(folder, kind);
  execFileSync(join(native, "tests/write_tiny"), [kind, file]);
  return file;
}

/** What the native program says. @param {string} model @param {string[]} more */
function reference(model, ...more) {
  const logits = join(folder, "logits");
  const told = JSON.parse(
    execFileSync(
      join(native, "nano-infer"),
      ["run", model, "-i", PROMPT, "-t", "0", "-n", "20", "--json", "--logits", logits, ...more],
      { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] },
    ),
  );
  const bytes = readFileSync(logits);
  return { ...told, logits: new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4) };
}

/** The same from the page. @param {object} what */
const inBrowser = (what) =>
  page.evaluate(
    async ({ model, lora, build, threads, prompt }) => {
      const { Nano } = await import("/package/src/index.js");
      const nano = new Nano({ build, threads });
      const run = async () => {
        const logits = await nano.logits(prompt);
        let text = "";
        for await (const piece of nano.generate(prompt, { temperature: 0, maxTokens: 20 })) text += piece;
        return { text, logits: Array.from(logits) };
      };
      try {
        const info = await nano.load(`/models/${model}`);
        const plain = await run();
        if (!lora) return { info, plain };
        await nano.attachLora(`/models/${lora}`);
        const adapted = await run();
        await nano.detachLora();
        return { info, plain, adapted, again: await run() };
      } finally {
        nano.close();
      }
    },
    { prompt: PROMPT, ...what },
  );

/** The largest difference, relative to the size of the logits. @param {ArrayLike<number>} a @param {ArrayLike<number>} b */
function off(a, b) {
  assert.equal(a.length, b.length);
  let most = 0;
  let size = 0;
  for (let i = 0; i < a.length; i++) {
    assert.ok(Number.isFinite(a[i]));
    most = Math.max(most, Math.abs(a[i] - b[i]));
    size = Math.max(size, Math.abs(b[i]));
  }
  return most / size;
}

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "nano-web-"));
  server = await serve({ package: join(here, ".."), models: folder });
  browser = await launch();
  page = await browser.newPage();
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.goto(server.url);
});

after(async () => {
  await browser?.close();
  server?.close();
  rmSync(folder, { recursive: true, force: true });
});

for (const name of ["simd", "relaxed"])
  test(`the native unit tests pass as WebAssembly (${name})`, async () => {
    const said = await page.evaluate(async (name) => {
      const { runProgram } = await import("/package/test/wasi.js");
      const module = await WebAssembly.compileStreaming(fetch(`/package/build/unit-${name}.wasm`));
      let text = "";
      const code = await runProgram(module, (/** @type {string} */ more) => (text += more));
      return `${text}exit ${code}`;
    }, name);
    assert.match(said, /\b\d{2,} passed, 0 failed\nexit 0$/);
  });

// Floats: sums in another order. Integers: their sums are exact (1e-7 in most cases), but where an activation lies
// halfway between two integers, the last bit of a float before it decides, and random models make much of that.
for (const [kind, lora, room] of /** @type {[string, string | null, number][]} */ ([
  ["wide-f32", "wide-lora", 1e-5],
  ["wide-q80", "wide-lora", 3e-2],
  ["wide-gguf-q8_0", "wide-gguf-lora", 3e-2],
  ["wide-gguf-q4_0", "wide-gguf-lora", 3e-2],
  ["f32", "lora", 1e-5],
  ["q4k", null, 3e-2],
  ["qwen3", null, 1e-5],
  ["gguf-llama", "gguf-lora", 1e-5],
  ["gguf-mixed", null, 3e-2],
  ["gguf-fives", null, 3e-2],
  ["gguf-learned", null, 3e-2],
]))
  test(`${kind}: the native program's logits and text in all builds`, async (t) => {
    const model = make(kind);
    const adapter = lora && make(lora);
    const plain = reference(model);
    const adapted = adapter && reference(model, "-l", adapter);
    for (const [build, threads] of BUILDS) {
      const got = await inBrowser({ model: kind, lora, build, threads });
      assert.equal(got.info.build, build);
      assert.equal(got.info.threads, threads);
      const error = off(got.plain.logits, plain.logits);
      t.diagnostic(`${build}: ${error.toExponential(1)}`);
      assert.ok(error <= room, `${build}: logits are ${error} off`);
      assert.equal(got.plain.text, plain.text, build);
      if (!adapted) continue;
      const other = off(got.adapted.logits, adapted.logits);
      t.diagnostic(`${build} with its adapter: ${other.toExponential(1)}`);
      assert.ok(other <= room, `${build}: logits with the adapter are ${other} off`);
      assert.equal(got.adapted.text, adapted.text, `${build}, adapter`);
      assert.notEqual(got.adapted.text, got.plain.text);
      assert.deepEqual(got.again, got.plain, "the adapter is gone without a trace");
    }
  });

test("threads: one, two and three give the same, to the bit", async () => {
  for (const model of ["wide-f32", "wide-gguf-q8_0", "wide-gguf-q4_0"]) {
    /** @type {any} */
    let first = null;
    for (const threads of [1, 2, 3]) {
      const got = await inBrowser({ model, build: "threads", threads });
      assert.equal(got.info.threads, threads);
      first ??= got.plain;
      assert.deepEqual(got.plain, first, `${model}, ${threads} threads`);
    }
  }
});

test("the best build is chosen: threads where the page is isolated, one thread where it is not", async () => {
  const build = (/** @type {import("playwright-core").Page} */ page) =>
    page.evaluate(async () => {
      const { Nano } = await import("/package/src/index.js");
      const nano = new Nano({ threads: 2 });
      const { build, threads } = await nano.info();
      nano.close();
      return { build, threads };
    });
  assert.deepEqual(await build(page), { build: "threads", threads: 2 });
  const plain = await serve({ package: join(here, "..") }, false);
  const other = await browser.newPage();
  await other.goto(plain.url);
  assert.deepEqual(await build(other), { build: "relaxed", threads: 1 });
  await other.close();
  plain.close();
});

test("a model may come as a URL, a Blob, bytes, a stream or a response, with progress; memory is used again", async () => {
  make("wide-gguf-q8_0");
  const told = await page.evaluate(async () => {
    const { Nano } = await import("/package/src/index.js");
    const nano = new Nano({ threads: 1 });
    const url = "/models/wide-gguf-q8_0";
    const sources = {
      url: () => url,
      blob: async () => (await fetch(url)).blob(),
      buffer: async () => (await fetch(url)).arrayBuffer(),
      view: async () => new Uint8Array(await (await fetch(url)).arrayBuffer()),
      stream: async () => (await fetch(url)).body,
      response: () => fetch(url),
    };
    const results = [];
    for (const [name, open] of Object.entries(sources)) {
      /** @type {any[]} */
      const news = [];
      const info = await nano.load(/** @type {any} */ (await open()), (/** @type {any} */ p) => news.push(p));
      const last = news.filter((p) => p.phase === "read").at(-1);
      let text = "";
      for await (const piece of nano.generate("hello", { temperature: 0, maxTokens: 5 })) text += piece;
      const phases = [...new Set(news.map((p) => p.phase))].join();
      results.push({ name, text, phases, loaded: last.loaded, memory: info.memoryBytes, file: info.model.fileBytes });
    }
    nano.close();
    return results;
  });
  for (const one of told) {
    assert.equal(one.text, told[0].text, one.name);
    assert.equal(one.phases, "read,prepare", one.name);
    assert.equal(one.loaded, one.file, one.name);
    assert.ok(one.memory <= told[0].memory * 1.2 + 8e6, `${one.name}: ${one.memory} bytes after ${told[0].memory}`);
  }
});

test("stop ends within a token, leaving the loop too, and the engine is as good as new", async () => {
  make("wide-f32");
  const told = await page.evaluate(async () => {
    const { Nano } = await import("/package/src/index.js");
    const nano = new Nano({ threads: 2 });
    await nano.load("/models/wide-f32");
    const options = { temperature: 0, maxTokens: 240 };
    const whole = async () => {
      let text = "";
      for await (const piece of nano.generate("hello", options)) text += piece;
      return text;
    };
    const text = await whole();
    let seen = 0;
    const writer = nano.generate("hello", options);
    let next = await writer.next();
    while (!next.done) {
      if (++seen === 1) nano.stop();
      next = await writer.next();
    }
    const stopped = next.value;
    for await (const _ of nano.generate("hello", options)) break;
    const control = new AbortController();
    const aborted = nano.generate("hello", { ...options, signal: control.signal });
    await aborted.next();
    control.abort();
    let last = await aborted.next();
    while (!last.done) last = await aborted.next();
    let busy = "";
    const half = nano.generate("hello", options);
    await half.next();
    try {
      await nano.reset();
    } catch (error) {
      busy = String(/** @type {any} */ (error).message);
    }
    await half.return(undefined);
    const again = await whole();
    nano.close();
    return { text, again, stopped, aborted: last.value, busy };
  });
  assert.equal(told.again, told.text);
  assert.equal(told.stopped.reason, "stopped");
  assert.ok(told.stopped.newTokens < 100, `${told.stopped.newTokens} tokens after stop`);
  assert.equal(told.aborted.reason, "stopped");
  assert.match(told.busy, /busy/);
});

test("tokens that were guessed do not change the text", async () => {
  make("wide-gguf-q4_0");
  const texts = await page.evaluate(async () => {
    const { Nano } = await import("/package/src/index.js");
    const nano = new Nano({ threads: 2 });
    const texts = [];
    for (const draft of [true, false]) {
      await nano.load("/models/wide-gguf-q4_0", undefined, { draft });
      let text = "";
      for await (const piece of nano.generate("the the the the", { seed: 5, topK: 2, repetitionPenalty: 1 })) text += piece;
      texts.push(text);
    }
    nano.close();
    return texts;
  });
  assert.ok(texts[0].length > 100);
  assert.equal(texts[0], texts[1]);
});

test("sampling: a seed gives the text of the native program", async () => {
  const model = make("wide-f32");
  for (const seed of ["1", "12345678901234567"]) {
    const wanted = JSON.parse(
      execFileSync(join(native, "nano-infer"), ["run", model, "-i", PROMPT, "-n", "40", "--seed", seed, "--json"], {
        encoding: "utf8",
        stdio: ["ignore", "pipe", "ignore"],
      }),
    ).text;
    const got = await page.evaluate(
      async ({ prompt, seed }) => {
        const { Nano } = await import("/package/src/index.js");
        const nano = new Nano({ threads: 1 });
        await nano.load("/models/wide-f32");
        let text = "";
        for await (const piece of nano.generate(prompt, { maxTokens: 40, seed: BigInt(seed) })) text += piece;
        nano.close();
        return text;
      },
      { prompt: PROMPT, seed },
    );
    assert.equal(got, wanted);
  }
});

test("bad files and bad calls have clear messages, and the engine goes on", async () => {
  const good = readFileSync(make("wide-gguf-q8_0"));
  make("wide-f32");
  make("lora");
  writeFileSync(join(folder, "cut"), good.subarray(0, good.length - 1000));
  writeFileSync(join(folder, "empty"), "");
  writeFileSync(join(folder, "text"), "This is no model at all, only a text of some length, which goes on for a while.");
  const told = await page.evaluate(async () => {
    const { Nano } = await import("/package/src/index.js");
    const nano = new Nano({ threads: 2 });
    /** @type {Record<string, string>} */
    const said = {};
    const hear = async (/** @type {string} */ name, /** @type {() => Promise<any>} */ work) => {
      try {
        await work();
        said[name] = "nothing";
      } catch (error) {
        said[name] = /** @type {any} */ (error).message;
      }
    };
    const run = async () => {
      for await (const _ of nano.generate("hello", { maxTokens: 3 }));
    };
    await hear("too early", run);
    for (const name of ["cut", "empty", "text", "missing"]) await hear(name, () => nano.load(`/models/${name}`));
    await hear("no bytes", () => nano.load(new Uint8Array()));
    await hear("no source", () => nano.load(/** @type {any} */ (42)));
    await hear("not after all", run);
    await nano.load("/models/wide-f32");
    await hear("another's adapter", () => nano.attachLora("/models/lora"));
    await hear("no adapter", () => nano.attachLora("/models/text"));
    await hear("hot", async () => {
      for await (const _ of nano.generate("hello", { temperature: -1 }));
    });
    await hear("long", async () => {
      for await (const _ of nano.generate("x".repeat(3000)));
    });
    await hear("context", () => nano.load("/models/wide-f32", undefined, { context: 1e9 }));
    await hear("id", () => nano.logits([1, 2, 99999]));
    await nano.load("/models/wide-f32");
    await hear("at last", run);
    nano.close();
    await hear("closed", () => nano.info());
    await hear("closed for good", () => nano.load("/models/wide-f32"));
    return said;
  });
  const patterns = /** @type {Record<string, RegExp>} */ ({
    "too early": /no model is loaded/,
    cut: /truncated|end of the file|beyond|bytes/,
    empty: /empty|bytes|short/,
    text: /too few|not a|no model|magic/,
    missing: /missing: 404/,
    "no bytes": /empty|bytes|short/,
    "no source": /a file is given as/,
    "not after all": /no model is loaded/,
    "another's adapter": /adapter/,
    "no adapter": /too few|not a|no adapter|magic/,
    hot: /temperature must be/,
    long: /tokens, but the context has room for/,
    context: /^nothing$/,
    id: /not in the vocabulary/,
    "at last": /^nothing$/,
    closed: /it was closed/,
    "closed for good": /it was closed/,
  });
  for (const [name, pattern] of Object.entries(patterns)) assert.match(told[name], pattern, name);
  assert.deepEqual(complaints, []);
});
