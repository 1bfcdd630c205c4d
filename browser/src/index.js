// index.js: nano-ds-web: small language models in the browser. All computing is done in a worker.
import { defaultThreads } from "./builds.js";
import { NanoError } from "./wasm.js";

export { NanoError };

/**
 * @typedef {object} Progress
 * @property {"read" | "prepare" | "prompt"} phase reading the file; setting the model up; tokens of a prompt
 * @property {number} loaded bytes or tokens done
 * @property {number} total of how many; 0: not known
 */

/** @typedef {string | URL | Blob | ArrayBuffer | ArrayBufferView | ReadableStream<Uint8Array> | Response} Source */

/**
 * @typedef {object} NanoOptions
 * @property {number} [threads] default: by the machine; more than 1 needs a cross-origin isolated page
 * @property {"simd" | "relaxed" | "threads"} [build] default: the best one that passes its test
 * @property {Record<string, string | URL>} [wasm] where the builds lie; default: beside this package
 * @property {string | URL} [worker] where worker.js lies; default: beside this file
 */

/**
 * @typedef {object} LoadOptions
 * @property {number} [context] tokens that a text may have; default: the model's, at most 4096
 * @property {boolean} [nonCausal] a `.bin` model that was trained with full attention
 * @property {boolean} [draft] false: compute one token at a time, never several that were guessed; the text is the same
 * @property {number} [threads] (set by the worker)
 */

/**
 * @typedef {object} GenerateOptions
 * @property {number} [maxTokens] default: until the text ends or the context is full
 * @property {number} [temperature] default 1; 0: always the likeliest token
 * @property {number} [topK] default 5; 0: all
 * @property {number} [topP] default: off
 * @property {number} [repetitionPenalty] default 1.2; 1: off
 * @property {number | bigint} [seed] default: another one each time
 * @property {boolean} [special] `<|...|>` in the prompt are special tokens
 * @property {string} [system] chat(): the system prompt of a new conversation; default: the model's own
 * @property {(progress: Progress) => void} [progress] of the prompt
 * @property {AbortSignal} [signal] stops
 */

/**
 * @typedef {object} GenerateResult
 * @property {"length" | "end" | "stopped"} reason why it ended
 * @property {number} promptTokens
 * @property {number} newTokens
 * @property {number} prefillTps prompt tokens per second
 * @property {number} decodeTps new tokens per second
 */

/**
 * @typedef {object} BenchResult
 * @property {number} promptTokens
 * @property {number} newTokens
 * @property {number} prefillTps
 * @property {number} decodeTps
 */

/**
 * @typedef {object} ModelInfo
 * @property {string} architecture
 * @property {string} container
 * @property {string} quantisation
 * @property {number} parameters
 * @property {number} fileBytes
 * @property {number} context tokens that there is room for
 * @property {number} modelContext tokens that the model was made for
 * @property {number} vocabulary
 * @property {number} layers
 * @property {number} width
 * @property {string} kernels
 * @property {string | null} chat form of conversations; null: the model only continues texts
 * @property {boolean} adapter is a LoRA attached?
 * @property {number} tokens of the text so far
 */

/**
 * @typedef {object} Info
 * @property {string} build
 * @property {number} threads
 * @property {number} memoryBytes of the engine, everything included
 * @property {ModelInfo | null} model
 */

/**
 * @typedef {object} Pending
 * @property {(value: any) => void} resolve
 * @property {(error: Error) => void} reject
 * @property {(message: any) => void} [news]
 */

/** One engine, with at most one model. */
export class Nano {
  /** @param {NanoOptions} [options] */
  constructor(options = {}) {
    /** @type {Map<number, Pending>} */
    this.pending = new Map();
    this.count = 0;
    this.busy = false;
    /** Was stop() called, perhaps before the engine had begun? */
    this.stopping = false;
    /** Why there is no engine any more; "": there is. */
    this.broken = "";
    // Bundlers look for `new Worker(new URL(..., import.meta.url))`.
    this.worker = options.worker
      ? new Worker(options.worker, { type: "module" })
      : new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.hear(data);
    this.worker.onerror = (event) => this.breakDown(event.message || "its script does not load");
    const wasm = {
      simd: String(options.wasm?.simd ?? new URL("../build/nano-simd.wasm", import.meta.url)),
      relaxed: String(options.wasm?.relaxed ?? new URL("../build/nano-relaxed.wasm", import.meta.url)),
      threads: String(options.wasm?.threads ?? new URL("../build/nano-threads.wasm", import.meta.url)),
    };
    const n = Math.max(1, Math.min(32, options.threads ?? defaultThreads()));
    this.started = this.call("start", { wasm, wanted: options.build, n });
    this.started.catch(() => {}); // whoever uses the engine hears of it
  }

  /** @param {any} message */
  hear(message) {
    const pending = this.pending.get(message.id);
    if (!pending) return;
    if (!message.done && !message.error) return pending.news?.(message);
    this.pending.delete(message.id);
    if (message.error) pending.reject(new NanoError(message.error.message, message.error.status));
    else pending.resolve(message.value);
  }

  /** @param {string} why */
  breakDown(why) {
    this.broken ||= why;
    for (const pending of this.pending.values()) pending.reject(new NanoError(`the engine's worker failed: ${why}`));
    this.pending.clear();
  }

  /** @param {string} method @param {object} [data] @param {Transferable[]} [moved] @param {(message: any) => void} [news] @returns {Promise<any>} */
  call(method, data = {}, moved = [], news = undefined) {
    const id = ++this.count;
    if (this.broken) return Promise.reject(new NanoError(`the engine's worker failed: ${this.broken}`));
    return new Promise((resolve, reject) => {
      this.pending.set(id, { resolve, reject, news });
      this.worker.postMessage({ ...data, id, method }, moved);
    });
  }

  /**
   * Nothing else may be asked of the engine while it reads a file or writes a text.
   * @template T @param {() => Promise<T>} work @returns {Promise<T>}
   */
  async alone(work) {
    this.claim();
    try {
      await this.started;
      return await work();
    } finally {
      this.busy = false;
    }
  }

  claim() {
    if (this.busy) throw new NanoError("the engine is busy: stop() first, or wait");
    this.busy = true;
    this.stopping = false;
  }

  /** @param {Source} source @param {boolean} model @param {((progress: Progress) => void) | undefined} progress @param {object} options */
  async read(source, model, progress, options) {
    try {
      if (typeof source === "string" || source instanceof URL) {
        const url = String(new URL(source, globalThis.location?.href));
        await this.call("fetch", { url, model }, [], (message) => progress?.(message.progress));
      } else {
        await this.send(source, model, progress);
      }
    } catch (error) {
      await this.call("drop");
      throw error;
    }
    progress?.({ phase: "prepare", loaded: 0, total: 1 });
    await this.call("finish", { model, options });
    progress?.({ phase: "prepare", loaded: 1, total: 1 });
  }

  /** Piece by piece, so that the file is never here and there as a whole. @param {Exclude<Source, string | URL>} source @param {boolean} model @param {((progress: Progress) => void) | undefined} progress */
  async send(source, model, progress) {
    const PIECE = 1 << 22;
    let total = 0;
    /** @type {ReadableStream<Uint8Array> | null} */
    let stream = null;
    /** @type {Uint8Array | null} */
    let bytes = null;
    if (source instanceof ReadableStream) stream = source;
    else if (source instanceof Blob) (total = source.size), (stream = source.stream());
    else if (source instanceof Response) {
      if (!source.ok) throw new NanoError(`${source.url}: ${source.status} ${source.statusText}`);
      stream = source.body;
      total = source.headers.get("content-encoding") ? 0 : Number(source.headers.get("content-length") ?? 0);
    } else if (ArrayBuffer.isView(source)) bytes = new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
    else if (source instanceof ArrayBuffer) bytes = new Uint8Array(source);
    else throw new NanoError("a file is given as bytes, a Blob, a stream, a Response or a URL");
    if (bytes) total = bytes.length;
    await this.call("begin", { total, model });
    let loaded = 0;
    const push = async (/** @type {Uint8Array} */ chunk) => {
      loaded += chunk.length; // which is 0 once it is sent
      await this.call("chunk", { bytes: chunk }, [chunk.buffer]);
      progress?.({ phase: "read", loaded, total });
    };
    if (bytes) for (let at = 0; at < bytes.length; at += PIECE) await push(bytes.slice(at, at + PIECE));
    const reader = stream?.getReader();
    for (let next = await reader?.read(); next && !next.done; next = await reader?.read())
      // Transferred buffers are gone for whoever made them: chunks of the user's own streams are copied.
      await push(source instanceof ReadableStream ? next.value.slice() : next.value);
    if (total && loaded !== total) throw new NanoError(`the file broke off after ${loaded} of ${total} bytes`);
  }

  /**
   * Loads a model, in place of the one before.
   * @param {Source} source @param {(progress: Progress) => void} [progress] @param {LoadOptions} [options] @returns {Promise<Info>}
   */
  load(source, progress, options = {}) {
    return this.alone(async () => {
      await this.read(source, true, progress, options);
      return this.call("info");
    });
  }

  /** A LoRA for the model, from here on; in place of the one before. @param {Source} source @param {(progress: Progress) => void} [progress] */
  attachLora(source, progress) {
    return this.alone(() => this.read(source, false, progress, {}));
  }

  /** @returns {Promise<void>} */
  detachLora() {
    return this.alone(() => this.call("detach"));
  }

  /**
   * Continues a text. What comes are pieces of the continuation; leaving the loop stops the engine.
   * @param {string} prompt @param {GenerateOptions} [options] @returns {AsyncGenerator<string, GenerateResult, void>}
   */
  generate(prompt, options = {}) {
    return this.write(prompt, options, false);
  }

  /**
   * The model's answer to a message. The conversation goes on until reset().
   * @param {string} message @param {GenerateOptions} [options] @returns {AsyncGenerator<string, GenerateResult, void>}
   */
  chat(message, options = {}) {
    return this.write(message, options, true);
  }

  /** @param {string} prompt @param {GenerateOptions} options @param {boolean} chat @returns {AsyncGenerator<string, GenerateResult, void>} */
  async *write(prompt, options, chat) {
    const { progress, signal, ...rest } = options;
    this.claim();
    /** @type {string[]} */
    const pieces = [];
    let wake = () => {};
    let over = false;
    const stop = () => void this.stop();
    /** @type {Promise<GenerateResult>} */
    let result;
    try {
      await this.started;
      signal?.throwIfAborted();
      result = this.call("generate", { prompt, options: rest, chat }, [], (message) => {
        if (message.progress) return progress?.(message.progress);
        pieces.push(message.text);
        wake();
      });
      if (this.stopping) stop();
      signal?.addEventListener("abort", stop);
      const end = () => ((over = true), wake());
      result.then(end, end);
    } catch (error) {
      this.busy = false;
      throw error;
    }
    try {
      while (pieces.length || !over) {
        const text = pieces.splice(0).join("");
        if (text) yield text;
        else if (!over) await new Promise((resolve) => (wake = () => resolve(undefined)));
      }
      return await result;
    } finally {
      if (!over) await this.stop();
      await result.catch(() => {});
      signal?.removeEventListener("abort", stop);
      this.busy = false;
    }
  }

  /** Ends what generate() or chat() is at, within a token. The text so far stays. @returns {Promise<void>} */
  stop() {
    this.stopping = true;
    return this.call("stop");
  }

  /** Forgets the conversation. @returns {Promise<void>} */
  reset() {
    return this.alone(() => this.call("reset"));
  }

  /** @param {string} text @param {{special?: boolean}} [options] @returns {Promise<Uint32Array>} */
  tokenize(text, { special = false } = {}) {
    return this.alone(() => this.call("tokenize", { text, special }));
  }

  /** Logits after each token of a text, or of token ids: [tokens, vocabulary]. @param {string | ArrayLike<number>} input @returns {Promise<Float32Array>} */
  logits(input) {
    return this.alone(() => this.call("logits", { input: typeof input === "string" ? input : Array.from(input) }));
  }

  /** Speed on this machine. Forgets the text. @param {{promptTokens?: number, newTokens?: number}} [options] @returns {Promise<BenchResult>} */
  bench({ promptTokens = 96, newTokens = 32 } = {}) {
    return this.alone(() => this.call("bench", { promptTokens, newTokens }));
  }

  /** @returns {Promise<Info>} */
  info() {
    return this.started.then(() => this.call("info"));
  }

  /** Ends the engine and its threads. */
  close() {
    this.worker.terminate();
    this.breakDown("it was closed");
  }
}
