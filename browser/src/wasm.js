// wasm.js: the C engine from JavaScript. Nothing here knows of workers: the same code runs in a Web Worker and in Node.

/** What the engine has to say against a call; `status` is nano.h's nano_status. */
export class NanoError extends Error {
  /** @param {string} message @param {number} [status] */
  constructor(message, status = 0) {
    super(message);
    this.name = "NanoError";
    this.status = status;
  }
}

/**
 * @typedef {object} Member
 * @property {number} offset
 * @property {number} size
 * @property {number} count
 * @property {string} kind
 */

/** @typedef {Record<string, number | bigint | boolean | number[]>} Values */

const PAGE = 65536;
const utf8 = new TextEncoder();

/**
 * The memory for a module, with as much room to grow as the browser allows.
 * @param {boolean} shared
 */
export function makeMemory(shared) {
  /** @type {unknown} */
  let refused;
  for (const maximum of [65536, 32768, 16384, 8192]) {
    try {
      return new WebAssembly.Memory({ initial: 128, maximum, shared });
    } catch (error) {
      refused = error;
    }
  }
  throw new NanoError(`the browser gives the engine no memory: ${refused}`);
}

/** A program and its memory. */
export class Engine {
  /** @param {WebAssembly.Instance} instance @param {WebAssembly.Memory} memory */
  constructor(instance, memory) {
    this.memory = memory;
    /** @type {Record<string, (...values: any[]) => any>} */
    this.c = /** @type {any} */ (instance.exports);
    /** @type {Map<string, Map<string, Member>>} */
    this.structures = new Map();
    this.readLayout();
  }

  /** @param {WebAssembly.Module} module @param {WebAssembly.Memory} memory */
  static async start(module, memory) {
    return new Engine(await WebAssembly.instantiate(module, { env: { memory, now: () => performance.now() } }), memory);
  }

  // ---- memory. Views are made anew each time: the memory grows.

  /** @param {number} at @param {number} n */
  bytes(at, n) {
    return new Uint8Array(this.memory.buffer, at, n);
  }

  view() {
    return new DataView(this.memory.buffer);
  }

  /** @param {number} at @param {number} n */
  text(at, n) {
    return new TextDecoder().decode(this.bytes(at, n).slice());
  }

  /** A text that ends with a zero. @param {number} at */
  string(at) {
    if (!at) return "";
    const all = new Uint8Array(this.memory.buffer);
    let end = at;
    while (all[end]) end++;
    return this.text(at, end - at);
  }

  /** @param {number} size */
  alloc(size) {
    const at = this.c.nano_web_alloc(size) >>> 0;
    if (!at) throw new NanoError(`out of memory: ${Math.ceil(size / 1e6)} MB more were asked for`, 6);
    return at;
  }

  /** @param {number} at */
  free(at) {
    this.c.nano_free(at);
  }

  /** Lends memory to `use` and takes it back. @template T @param {number} size @param {(at: number) => T} use */
  with(size, use) {
    const at = this.alloc(size);
    try {
      return use(at);
    } finally {
      this.free(at);
    }
  }

  /** Lends a text with its length, and a zero behind it. @template T @param {string} text @param {(at: number, n: number) => T} use */
  withText(text, use) {
    const bytes = utf8.encode(text);
    return this.with(bytes.length + 1, (at) => {
      this.bytes(at, bytes.length).set(bytes);
      this.bytes(at + bytes.length, 1)[0] = 0;
      return use(at, bytes.length);
    });
  }

  /** Throws what the engine says if it says anything. @param {number} status */
  check(status) {
    if (status) throw new NanoError(this.string(this.c.nano_last_error() >>> 0), status);
  }

  // ---- structures, as nano_layout() describes them

  readLayout() {
    // nano_layout() itself can be asked before there is a heap: its answer needs 4 bytes, which are borrowed.
    this.with(4, (at) => {
      let entry = this.c.nano_layout(at) >>> 0;
      for (let n = this.view().getUint32(at, true); n--; entry += 24) {
        const word = (/** @type {number} */ i) => this.view().getUint32(entry + 4 * i, true);
        const structure = this.string(word(0));
        let members = this.structures.get(structure);
        if (!members) this.structures.set(structure, (members = new Map()));
        const kind = String.fromCharCode(word(5));
        members.set(this.string(word(1)), { offset: word(2), size: word(3), count: word(4), kind });
      }
    });
  }

  /** @param {string} structure @param {string} name */
  member(structure, name) {
    const member = this.structures.get(structure)?.get(name);
    if (!member) throw new NanoError(`${structure} has no member '${name}'`);
    return member;
  }

  /** @param {string} structure */
  sizeOf(structure) {
    return this.member(structure, "").size;
  }

  /** @param {number} at @param {Member} m @param {number} i @returns {number | bigint | boolean} */
  readItem(at, m, i) {
    const size = m.size / m.count;
    const view = this.view();
    const where = at + m.offset + i * size;
    if (m.kind === "f") return size === 8 ? view.getFloat64(where, true) : view.getFloat32(where, true);
    if (m.kind === "b") return view.getUint8(where) !== 0;
    if (size === 8) return m.kind === "i" ? view.getBigInt64(where, true) : view.getBigUint64(where, true);
    return m.kind === "i" ? view.getInt32(where, true) : size === 1 ? view.getUint8(where) : view.getUint32(where, true);
  }

  /** @param {string} structure @param {number} at @returns {Values} */
  read(structure, at) {
    /** @type {Values} */
    const values = {};
    for (const [name, m] of this.structures.get(structure) ?? []) {
      if (!name) continue;
      const items = Array.from({ length: m.count }, (_, i) => this.readItem(at, m, i));
      values[name] = m.count === 1 ? /** @type {any} */ (items[0]) : items.map(Number);
    }
    return values;
  }

  /** @param {string} structure @param {number} at @param {Record<string, number | bigint | boolean | undefined>} values */
  write(structure, at, values) {
    for (const [name, value] of Object.entries(values)) {
      if (value === undefined) continue;
      const m = this.member(structure, name);
      const view = this.view();
      const where = at + m.offset;
      if (m.kind === "f" && m.size === 8) view.setFloat64(where, Number(value), true);
      else if (m.kind === "f") view.setFloat32(where, Number(value), true);
      else if (m.size === 8) view.setBigUint64(where, BigInt.asUintN(64, BigInt(value)), true);
      else if (m.size === 1) view.setUint8(where, Number(value));
      else view.setUint32(where, Number(value) >>> 0, true);
    }
  }

  // ---- calls

  /** Calls that give back a handle through their first parameter. @param {string} name @param {...any} values */
  open(name, ...values) {
    return this.with(4, (at) => {
      this.check(this.c[name](at, ...values));
      return this.view().getUint32(at, true);
    });
  }

  /** Copies `ids` into memory for `use`. @template T @param {ArrayLike<number>} ids @param {(at: number) => T} use */
  withIds(ids, use) {
    return this.with(4 * ids.length + 4, (at) => {
      new Uint32Array(this.memory.buffer, at, ids.length).set(ids);
      return use(at);
    });
  }

  /** Calls that give back ids through their last two parameters. @param {string} name @param {...any} values @returns {Uint32Array} */
  ids(name, ...values) {
    return this.with(8, (at) => {
      this.check(this.c[name](...values, at, at + 4));
      const ids = this.view().getUint32(at, true);
      const n = this.view().getUint32(at + 4, true);
      const copy = n ? new Uint32Array(this.memory.buffer, ids, n).slice() : new Uint32Array();
      this.free(ids);
      return copy;
    });
  }

  memoryBytes() {
    return Math.floor(this.memory.buffer.byteLength / PAGE) * PAGE;
  }
}
