// worker.js: the engine's own thread. Messages in: {id, method, ...}; out: {id, ...}, with `done` or `error` at the end.
import { candidates, startBest } from "./builds.js";
import { Receiver, Session } from "./session.js";
import { NanoError } from "./wasm.js";

/** @typedef {import("./builds.js").Build} Build */

const STACK = 1 << 18;

/** @type {Session} */
let session;
/** @type {Build} */
let build;
let threads = 1;
/** @type {Receiver | null} */
let receiver = null;

/** Lets the messages in that have come. A timer would wait for 4 ms. */
const channel = new MessageChannel();
/** @type {(() => void)[]} */
const waiting = [];
channel.port1.onmessage = () => waiting.shift()?.();
const pause = () =>
  new Promise((/** @type {(value: void) => void} */ resolve) => {
    waiting.push(resolve);
    channel.port2.postMessage(0);
  });

/** @param {import("./wasm.js").Engine} engine @param {WebAssembly.Module} module @param {number} n */
async function startHelpers(engine, module, n) {
  /** @type {unknown} */
  let failed = null;
  for (let index = 0; index < n; index++) {
    const worker = new Worker(new URL("./helper.js", import.meta.url), { type: "module" });
    worker.onerror = (event) => (failed = event.message || "it does not load");
    worker.postMessage({ module, memory: engine.memory, index, stack: engine.alloc(STACK) + STACK });
  }
  while (engine.c.nano_web_helpers() < n) {
    if (failed) throw new NanoError(`a thread cannot start: ${failed}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** @type {Record<string, (data: any) => any>} */
const methods = {
  async start({ wasm, wanted, n }) {
    /** @type {Build[]} */
    const builds = wanted ? [wanted] : candidates(n);
    const best = await startBest(builds, async (name) => {
      const answer = await fetch(wasm[name]);
      if (!answer.ok) throw new NanoError(`${answer.url}: ${answer.status} ${answer.statusText}`);
      return WebAssembly.compile(await answer.arrayBuffer());
    });
    build = best.build;
    threads = build === "threads" ? n : 1;
    if (build === "threads") await startHelpers(best.engine, best.module, n - 1);
    session = new Session(best.engine);
  },

  // ---- a file comes in: begin, chunks, and what it is to become

  begin({ total, model }) {
    if (receiver) receiver.drop();
    receiver = null;
    if (model) session.closeModel(); // its memory may be needed
    receiver = new Receiver(session.engine, total);
  },
  chunk({ bytes }) {
    receiver?.push(bytes);
  },
  async fetch({ id, url, model }) {
    const answer = await fetch(url);
    if (!answer.ok || !answer.body) throw new NanoError(`${url}: ${answer.status} ${answer.statusText}`);
    // The length on the way says nothing about a body that was compressed.
    const total = answer.headers.get("content-encoding") ? 0 : Number(answer.headers.get("content-length") ?? 0);
    methods.begin({ total, model });
    const reader = answer.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done || !receiver) break;
      receiver.push(value);
      postMessage({ id, progress: { phase: "read", loaded: receiver.size, total } });
    }
    if (total && receiver && receiver.size !== total)
      throw new NanoError(`${url}: the connection broke after ${receiver.size} of ${total} bytes`);
  },
  drop() {
    receiver?.drop();
    receiver = null;
  },
  finish({ model, options }) {
    if (!receiver) throw new NanoError("no file was sent");
    const file = receiver.finish();
    receiver = null;
    if (model) session.openModel(file, { ...options, threads });
    else session.attachLora(file);
  },
  detach: () => session.detachLora(),
  close: () => session.closeModel(),

  // ---- text

  generate: ({ id, prompt, options, chat }) =>
    session.generate(
      prompt,
      options,
      chat,
      (text, token) => postMessage({ id, text, token }),
      (loaded, total) => postMessage({ id, progress: { phase: "prompt", loaded, total } }),
      pause,
    ),
  stop() {
    session.stopped = true;
  },
  reset: () => session.reset(),
  tokenize: ({ text, special }) => session.tokenize(text, special),
  logits: ({ input }) => session.logits(input),
  bench: ({ promptTokens, newTokens }) => session.bench(promptTokens, newTokens),
  info: () => session.info(build, threads),
};

self.onmessage = async ({ data }) => {
  const { id, method } = data;
  try {
    postMessage({ id, done: true, value: await methods[method](data) });
  } catch (error) {
    const e = /** @type {any} */ (error);
    const message = e instanceof WebAssembly.RuntimeError ? `the engine broke down: ${e.message}` : e.message;
    postMessage({ id, error: { message, status: e.status ?? 0 } });
  }
};
