// wasi.js: as much of WASI as a program needs that prints and ends.

/** @param {WebAssembly.Module} module @param {(text: string) => void} print @returns {Promise<number>} exit code */
export async function runProgram(module, print) {
  const memory = new WebAssembly.Memory({ initial: 256, maximum: 65536 });
  const view = () => new DataView(memory.buffer);
  class Exit extends Error {}
  let code = 0;
  const system = {
    /** @param {number} _fd @param {number} list @param {number} n @param {number} written */
    fd_write(_fd, list, n, written) {
      let total = 0;
      for (let i = 0; i < n; i++) {
        const at = view().getUint32(list + 8 * i, true);
        const size = view().getUint32(list + 8 * i + 4, true);
        print(new TextDecoder().decode(new Uint8Array(memory.buffer, at, size)));
        total += size;
      }
      view().setUint32(written, total, true);
      return 0;
    },
    /** @param {number} status */
    proc_exit(status) {
      code = status;
      throw new Exit();
    },
    /** @param {number} n @param {number} size */
    args_sizes_get(n, size) {
      view().setUint32(n, 0, true);
      view().setUint32(size, 0, true);
      return 0;
    },
    args_get: () => 0,
  };
  const imports = Object.fromEntries(WebAssembly.Module.imports(module).map(({ name }) => [name, () => 52]));
  const instance = await WebAssembly.instantiate(module, {
    env: { memory, now: () => performance.now() },
    wasi_snapshot_preview1: { ...imports, ...system },
  });
  try {
    /** @type {any} */ (instance.exports)._start();
  } catch (error) {
    if (!(error instanceof Exit)) throw error;
  }
  return code;
}
