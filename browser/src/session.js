// session.js: one model, at most one adapter, one running text: what the worker does for the page.
import { Engine, NanoError } from "./wasm.js";

/** @typedef {import("./index.js").GenerateOptions} GenerateOptions */
/** @typedef {import("./index.js").Info} Info */
/** @typedef {import("./index.js").BenchResult} BenchResult */
/** @typedef {import("./index.js").LoadOptions} LoadOptions */

const PIECE = 96; // prompt tokens between two looks at the messages that have come
const MOST_AT_ONCE = 8; // new tokens between two such looks
const DRAFT_OFF = 1; // of nano.h's nano_draft
const QUANTS = ["F32", "Q80", "Q4K", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"];
const FAMILIES = [null, "chatml", "llama3", "nano"];

/** Bytes of a file, received piece by piece straight into the engine's memory. */
export class Receiver {
  /** @param {Engine} engine @param {number} total 0: not known */
  constructor(engine, total) {
    this.engine = engine;
    this.size = 0;
    this.room = total || 1 << 22;
    this.at = engine.alloc(this.room);
  }

  /** @param {Uint8Array} chunk */
  push(chunk) {
    const needed = this.size + chunk.length;
    if (needed > this.room) this.resize(Math.max(needed, Math.ceil(this.room * 1.25)));
    this.engine.bytes(this.at + this.size, chunk.length).set(chunk);
    this.size = needed;
  }

  /** @param {number} room */
  resize(room) {
    const at = this.engine.c.nano_web_resize(this.at, room) >>> 0;
    if (!at) throw new NanoError(`out of memory: the file needs more than ${Math.ceil(this.size / 1e6)} MB`, 6);
    this.at = at;
    this.room = room;
  }

  finish() {
    if (this.size && this.size < this.room) this.resize(this.size);
    return { at: this.at, size: this.size };
  }

  drop() {
    this.engine.free(this.at);
  }
}

export class Session {
  /** @param {Engine} engine */
  constructor(engine) {
    this.engine = engine;
    this.model = 0;
    this.modelBytes = 0;
    this.session = 0;
    this.adapter = 0;
    this.adapterBytes = 0;
    this.stopped = false;
    /** What nano_model_config() says. @type {import("./wasm.js").Values} */
    this.config = {};
    /** Is the text so far a conversation? */
    this.talking = false;
    /** Holds an incomplete UTF-8 character between tokens. */
    this.stream = engine.alloc(engine.sizeOf("nano_stream"));
  }

  /** The model whose bytes lie in memory, which become the session's. @param {{at: number, size: number}} file @param {LoadOptions} options */
  openModel(file, options) {
    const { engine } = this;
    this.closeModel();
    this.modelBytes = file.at;
    try {
      this.model = engine.with(engine.sizeOf("nano_model_params"), (at) => {
        engine.c.nano_model_default_params(at);
        engine.write("nano_model_params", at, { non_causal: options.nonCausal, overwrite: true });
        return engine.open("nano_model_open_memory", file.at, file.size, at);
      });
      this.config = engine.read("nano_config", engine.c.nano_model_config(this.model) >>> 0);
      this.session = engine.with(engine.sizeOf("nano_session_params"), (at) => {
        engine.c.nano_session_default_params(at);
        const context = Math.min(options.context ?? 4096, Number(this.config.block_size));
        const draft = options.draft === false ? DRAFT_OFF : undefined;
        engine.write("nano_session_params", at, { context, threads: options.threads, draft });
        return engine.open("nano_session_open", this.model, at);
      });
    } catch (error) {
      this.closeModel();
      throw error;
    }
  }

  closeModel() {
    const { c } = this.engine;
    this.detachLora();
    if (this.session) c.nano_session_close(this.session);
    if (this.model) c.nano_model_close(this.model);
    if (this.modelBytes) this.engine.free(this.modelBytes);
    this.session = this.model = this.modelBytes = 0;
    this.talking = false;
  }

  need() {
    if (!this.session) throw new NanoError("no model is loaded: call load() first", 1);
  }

  /** @param {{at: number, size: number}} file */
  attachLora(file) {
    const { engine } = this;
    let adapter = 0;
    try {
      this.need();
      adapter = engine.open("nano_adapter_open_memory", file.at, file.size);
      engine.check(engine.c.nano_session_set_adapter(this.session, adapter));
    } catch (error) {
      if (adapter) engine.c.nano_adapter_close(adapter);
      engine.free(file.at);
      throw error;
    }
    this.dropAdapter();
    this.adapter = adapter;
    this.adapterBytes = file.at;
  }

  detachLora() {
    if (this.session) this.engine.c.nano_session_set_adapter(this.session, 0);
    this.dropAdapter();
  }

  dropAdapter() {
    if (this.adapter) this.engine.c.nano_adapter_close(this.adapter);
    if (this.adapterBytes) this.engine.free(this.adapterBytes);
    this.adapter = this.adapterBytes = 0;
  }

  // ---- text

  /** @param {string} text @param {boolean} special */
  tokenize(text, special) {
    this.need();
    return this.engine.withText(text, (at, n) =>
      this.engine.ids("nano_tokenize", this.model, at, n, special ? 1 : 0),
    );
  }

  /** The token that a text begins with, if the model wants one. @returns {number | null} */
  bos() {
    return this.engine.with(4, (at) =>
      this.engine.c.nano_token_bos(this.model, at) ? this.engine.view().getUint32(at, true) : null,
    );
  }

  /** As nano-infer run does it. @param {string} text @param {boolean} special @returns {Uint32Array} */
  promptIds(text, special) {
    const bos = this.bos();
    let ids = this.tokenize(text, special);
    if (bos !== null) return ids[0] === bos ? ids : Uint32Array.of(bos, ...ids);
    for (const end of ids.length ? [] : ["<|eos|>", "<|endoftext|>", "<|end_of_text|>"]) {
      ids = this.tokenize(end, true);
      if (ids.length === 1 && this.engine.c.nano_token_is_special(this.model, ids[0])) return ids;
      ids = new Uint32Array();
    }
    if (!ids.length) throw new NanoError("the prompt is empty, and this vocabulary has no token to begin with", 1);
    return ids;
  }

  /** @param {string} text @param {string | null} system null: the template's own @returns {Uint32Array} */
  turnIds(text, system) {
    const { engine } = this;
    const first = this.talking ? 0 : 1;
    return engine.withText(text, (at, n) =>
      system === null
        ? engine.ids("nano_chat_turn", this.model, 0, at, n, first)
        : engine.withText(system, (s) => engine.ids("nano_chat_turn", this.model, s, at, n, first)),
    );
  }

  /** The whole characters that end with this token. @param {number} id */
  piece(id) {
    const { engine } = this;
    return engine.with(4, (at) => {
      const bytes = engine.c.nano_token_bytes(this.model, id, at) >>> 0;
      const n = engine.view().getUint32(at, true);
      return engine.with(3 * (n + 4), (out) =>
        engine.text(out, engine.c.nano_stream_push(this.stream, bytes, n, out) >>> 0),
      );
    });
  }

  /** What is left of an incomplete character. */
  tail() {
    return this.engine.with(12, (out) => this.engine.text(out, this.engine.c.nano_stream_finish(this.stream, out)));
  }

  // ---- computing

  /** @param {GenerateOptions} options */
  setSampler(options) {
    const { engine } = this;
    engine.with(engine.sizeOf("nano_sampler_params"), (at) => {
      engine.c.nano_sampler_default_params(at);
      engine.write("nano_sampler_params", at, {
        temperature: options.temperature,
        top_k: options.topK,
        top_p: options.topP,
        repetition_penalty: options.repetitionPenalty,
        seed: options.seed ?? BigInt(Math.floor(Math.random() * 2 ** 48)),
      });
      engine.check(engine.c.nano_session_set_sampler(this.session, at));
    });
  }

  /** @param {ArrayLike<number>} ids */
  eval(ids) {
    this.engine.withIds(ids, (at) =>
      this.engine.check(this.engine.c.nano_session_eval(this.session, at, ids.length, 0)),
    );
  }

  /** The next tokens, at least one; they are part of the text already. @param {number} most */
  next(most) {
    const { engine } = this;
    return engine.with(4 * most + 4, (at) => {
      engine.check(engine.c.nano_session_generate(this.session, at + 4, most, at));
      return new Uint32Array(engine.memory.buffer, at + 4, engine.view().getUint32(at, true)).slice();
    });
  }

  reset() {
    if (this.session) this.engine.c.nano_session_reset(this.session);
    this.talking = false;
  }

  /**
   * Continues a text, or a conversation by a turn.
   * @param {string} prompt
   * @param {GenerateOptions} options
   * @param {boolean} chat
   * @param {(text: string, id: number | null) => void} emit
   * @param {(done: number, total: number) => void} progress of the prompt
   * @param {() => Promise<void>} pause lets messages come in
   */
  async generate(prompt, options, chat, emit, progress, pause) {
    const { engine } = this;
    this.need();
    this.stopped = false;
    this.setSampler(options);
    if (!chat || !this.talking) this.reset();
    const ids = chat ? this.turnIds(prompt, options.system ?? null) : this.promptIds(prompt, options.special ?? false);
    const { session } = this;
    const room = (engine.c.nano_session_context(session) >>> 0) - (engine.c.nano_session_length(session) >>> 0);
    if (ids.length > room)
      throw new NanoError(`the text has ${ids.length} tokens, but the context has room for ${room} more`, 5);
    const limit = Math.min(options.maxTokens ?? Infinity, room - ids.length);
    const begin = performance.now();
    engine.bytes(this.stream, engine.sizeOf("nano_stream")).fill(0);
    if (!this.config.causal) return this.readAtOnce(ids, emit);
    for (let done = 0; done < ids.length && !this.stopped; ) {
      const now = ids.subarray(done, done + PIECE);
      this.eval(now);
      done += now.length;
      progress(done, ids.length);
      await pause();
    }
    if (chat) this.talking = true;
    const between = performance.now();
    let made = 0;
    /** @type {"length" | "end" | "stopped"} */
    let reason = "length";
    writing: while (made < limit) {
      if (this.stopped) {
        reason = "stopped";
        break;
      }
      // More than one token comes where the engine could guess what follows.
      for (const id of this.next(Math.min(limit - made, MOST_AT_ONCE))) {
        if (engine.c.nano_token_is_stop(this.model, id)) {
          reason = "end";
          break writing;
        }
        made++;
        emit(this.piece(id), id);
      }
      await pause();
    }
    const rest = this.tail();
    if (rest) emit(rest, null);
    const end = performance.now();
    return {
      reason: this.stopped ? /** @type {const} */ ("stopped") : reason,
      promptTokens: ids.length,
      newTokens: made,
      prefillTps: (ids.length / Math.max(between - begin, 1e-3)) * 1000,
      decodeTps: made ? (made / Math.max(end - between, 1e-3)) * 1000 : 0,
    };
  }

  /** A model with full attention: the likeliest token of each place. @param {Uint32Array} ids @param {(text: string, id: number | null) => void} emit */
  readAtOnce(ids, emit) {
    const begin = performance.now();
    const logits = this.logits(ids);
    const end = performance.now();
    const width = logits.length / ids.length;
    for (let i = 0; i < ids.length; i++) {
      const row = logits.subarray(i * width, (i + 1) * width);
      const id = row.reduce((best, value, at) => (value > row[best] ? at : best), 0);
      if (!this.engine.c.nano_token_is_stop(this.model, id)) emit(this.piece(id), id);
    }
    emit(this.tail(), null);
    const prefillTps = (ids.length / Math.max(end - begin, 1e-3)) * 1000;
    return { reason: /** @type {const} */ ("length"), promptTokens: ids.length, newTokens: ids.length, prefillTps, decodeTps: 0 };
  }

  /** All logits of a text or of token ids, [tokens, vocabulary]. @param {string | ArrayLike<number>} input */
  logits(input) {
    const { engine } = this;
    this.need();
    this.reset();
    const ids = typeof input === "string" ? this.promptIds(input, false) : Uint32Array.from(input);
    const n = ids.length * Number(this.config.vocab_size);
    return engine.with(4 * n + 4, (at) => {
      engine.withIds(ids, (from) => engine.check(engine.c.nano_session_eval(this.session, from, ids.length, at)));
      this.reset();
      return new Float32Array(engine.memory.buffer, at, n).slice();
    });
  }

  /** @param {number} promptTokens @param {number} newTokens @returns {BenchResult} */
  bench(promptTokens, newTokens) {
    this.need();
    this.reset();
    const vocabulary = Number(this.config.vocab_size);
    const ids = Uint32Array.from({ length: promptTokens }, (_, i) => (i * 7919 + 11) % vocabulary);
    const begin = performance.now();
    this.eval(ids);
    const between = performance.now();
    for (let i = 0; i < newTokens; i++) this.eval([ids[i % ids.length]]);
    const end = performance.now();
    this.reset();
    return {
      promptTokens,
      newTokens,
      prefillTps: (promptTokens / (between - begin)) * 1000,
      decodeTps: (newTokens / (end - between)) * 1000,
    };
  }

  /** @param {string} build @param {number} threads @returns {Info} */
  info(build, threads) {
    const { engine } = this;
    const base = { build, threads, memoryBytes: engine.memoryBytes() };
    if (!this.session) return { ...base, model: null };
    const c = this.config;
    return {
      ...base,
      threads: engine.c.nano_session_threads(this.session),
      model: {
        architecture: engine.string(engine.c.nano_arch_name(c.arch) >>> 0),
        container: c.container ? "gguf" : "bin",
        quantisation: QUANTS[Number(c.quant)],
        parameters: Number(c.n_params),
        fileBytes: Number(c.file_bytes),
        context: engine.c.nano_session_context(this.session) >>> 0,
        modelContext: Number(c.block_size),
        vocabulary: Number(c.vocab_size),
        layers: Number(c.n_layer),
        width: Number(c.n_embd),
        kernels: engine.string(engine.c.nano_model_kernels(this.model) >>> 0),
        chat: FAMILIES[engine.c.nano_model_chat_family(this.model)] ?? null,
        adapter: this.adapter !== 0,
        tokens: engine.c.nano_session_length(this.session) >>> 0,
      },
    };
  }
}
