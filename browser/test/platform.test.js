// platform.test.js: what takes the place of a C library: mathematics beside Math's, and the heap.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { Engine, makeMemory } from "../src/wasm.js";

const build = join(dirname(fileURLToPath(import.meta.url)), "../build");

/** Numbers between 0 and 1, the same each time. @param {number} state */
function random(state) {
  return () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
}

test("exp, log, pow, sin, cos and expf are as good as Math's", async () => {
  const module = await WebAssembly.compile(readFileSync(join(build, "unit-simd.wasm")));
  const system = Object.fromEntries(WebAssembly.Module.imports(module).map(({ name }) => [name, () => 52]));
  const memory = new WebAssembly.Memory({ initial: 256, maximum: 65536 });
  const instance = await WebAssembly.instantiate(module, {
    env: { memory, now: () => performance.now() },
    wasi_snapshot_preview1: system,
  });
  const c = /** @type {Record<string, (...x: number[]) => number>} */ (/** @type {any} */ (instance.exports));
  const next = random(1);
  /** @type {Record<string, number>} */
  const worst = { exp: 0, log: 0, pow: 0, sin: 0, cos: 0, expf: 0 };
  const note = (/** @type {string} */ name, /** @type {number} */ got, /** @type {number} */ wanted, size = Math.abs(wanted)) =>
    (worst[name] = Math.max(worst[name], Number.isFinite(got) ? Math.abs(got - wanted) / size : Infinity));
  for (let i = 0; i < 200000; i++) {
    const x = (next() - 0.5) * 1400;
    if (Math.exp(x) > 1e-300) note("exp", c.exp(x), Math.exp(x));
    const small = (next() - 0.5) * 4;
    note("exp", c.exp(small), Math.exp(small));
    const f = Math.fround((next() - 0.5) * 170);
    note("expf", c.expf(f), Math.exp(f));
    const y = Math.exp((next() - 0.5) * 600);
    note("log", c.log(y), Math.log(y), Math.max(Math.abs(Math.log(y)), 1));
    const base = 10 ** (2 + next() * 5);
    const power = -2 * next();
    note("pow", c.pow(base, power), base ** power);
    const angle = (next() - 0.5) * (i % 2 ? 10 : 2e6);
    note("sin", c.sin(angle), Math.sin(angle), 1);
    note("cos", c.cos(angle), Math.cos(angle), 1);
  }
  for (const name of ["exp", "log", "sin", "cos"]) assert.ok(worst[name] < 5e-16, `${name}: ${worst[name]} off`);
  assert.ok(worst.pow < 1e-14, `pow: ${worst.pow} off`);
  assert.ok(worst.expf < 6.1e-8, `expf: ${worst.expf} off`);
  assert.equal(c.exp(0), 1);
  assert.equal(c.exp(-Infinity), 0);
  assert.equal(c.exp(Infinity), Infinity);
  assert.ok(Number.isNaN(c.exp(NaN)));
  assert.ok(Math.abs(c.exp(-740) - Math.exp(-740)) <= 5e-324, "subnormal results");
});

test("heap: blocks are zeroed, aligned, apart, kept, and used again; too much is refused", async () => {
  const module = await WebAssembly.compile(readFileSync(join(build, "nano-simd.wasm")));
  const engine = await Engine.start(module, makeMemory(false));
  const next = random(2);
  /** @type {{at: number, size: number, mark: number}[]} */
  const blocks = [];
  const holds = (/** @type {{at: number, size: number, mark: number}} */ b) => engine.bytes(b.at, b.size).every((x) => x === b.mark);
  for (let i = 0; i < 4000; i++) {
    const some = Math.floor(next() * blocks.length);
    const what = next();
    if (what < 0.5 || !blocks.length) {
      const size = Math.floor(next() ** 4 * 100000) + 1;
      const at = engine.alloc(size);
      assert.equal(at % 64, 0);
      assert.ok(engine.bytes(at, size).every((x) => x === 0), "not zeroed");
      const mark = 1 + (i % 255);
      engine.bytes(at, size).fill(mark);
      blocks.push({ at, size, mark });
    } else if (what < 0.7) {
      const b = blocks[some];
      const size = Math.floor(next() ** 4 * 100000) + 1;
      assert.ok(holds(b));
      b.at = engine.c.nano_web_resize(b.at, size) >>> 0;
      b.size = Math.min(b.size, size);
      assert.ok(holds(b), "resizing lost bytes");
      b.size = size;
      engine.bytes(b.at, size).fill(b.mark);
    } else {
      const [b] = blocks.splice(some, 1);
      assert.ok(holds(b), "somebody wrote into another's block");
      engine.free(b.at);
    }
  }
  for (const b of blocks) assert.ok(holds(b));
  for (const b of blocks) engine.free(b.at);
  const size = engine.memoryBytes();
  assert.ok(size < 64e6, `${size} bytes`);
  engine.free(engine.alloc(size - 4e6)); // all is one block again
  assert.equal(engine.memoryBytes(), size);
  assert.throws(() => engine.alloc(2 ** 32 - 1), /out of memory/);
  const last = engine.alloc(1000);
  assert.equal(engine.c.nano_web_resize(last, 2 ** 32 - 100), 0);
  engine.bytes(last, 1000).fill(1);
});
