// builds.js: which of the three builds runs here: what the browser can do, and whether it does it right.
import { Engine, NanoError, makeMemory } from "./wasm.js";

/** @typedef {"simd" | "relaxed" | "threads"} Build */

// Modules of one function that takes nothing and gives a v128: (v128.const 0), and (i8x16.relaxed_swizzle 0 0).
const HEAD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0];
const ZERO = [253, 12, ...new Array(16).fill(0)];
/** @param {number[]} code */
const valid = (code) =>
  WebAssembly.validate(Uint8Array.from([...HEAD, 10, code.length + 4, 1, code.length + 2, 0, ...code, 11]));

export const hasSimd = () => valid(ZERO);
export const hasRelaxed = () => valid([...ZERO, ...ZERO, 253, 128, 2]);
export const hasThreads = () =>
  typeof SharedArrayBuffer === "function" && /** @type {any} */ (globalThis).crossOriginIsolated !== false;

/** The builds that may run here, the best one first. @param {number} threads */
export function candidates(threads) {
  /** @type {Build[]} */
  const builds = [];
  if (hasRelaxed() && hasThreads() && threads > 1) builds.push("threads");
  if (hasRelaxed()) builds.push("relaxed");
  if (hasSimd()) builds.push("simd");
  return builds;
}

/** @param {number} [cores] */
export const defaultThreads = (cores = globalThis.navigator?.hardwareConcurrency || 1) =>
  // Beyond four, every second one is likely to be the other half of a core.
  Math.min(8, cores <= 4 ? cores : Math.ceil(cores / 2));

/**
 * @param {Build[]} builds to be tried in turn
 * @param {(build: Build) => Promise<WebAssembly.Module>} fetchModule
 * @returns {Promise<{engine: Engine, module: WebAssembly.Module, build: Build}>}
 */
export async function startBest(builds, fetchModule) {
  for (const build of builds) {
    const module = await fetchModule(build);
    const engine = await Engine.start(module, makeMemory(build === "threads"));
    if (engine.c.nano_web_self_test()) return { engine, module, build };
    console.warn(`nano-ds-web: this browser computes wrongly with the ${build} build; trying the next one`);
  }
  throw new NanoError("this browser cannot run the engine: it needs WebAssembly with SIMD (any browser since 2023)");
}
