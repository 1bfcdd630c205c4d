// helper.js: a thread of the engine: sleeps inside of it, for ever.
self.onmessage = async ({ data }) => {
  const { module, memory, index, stack } = data;
  const instance = await WebAssembly.instantiate(/** @type {WebAssembly.Module} */ (module), { env: { memory, now: () => performance.now() } });
  /** @type {any} */ (instance.exports).__stack_pointer.value = stack;
  /** @type {any} */ (instance.exports).nano_web_help(index);
};
