// serve.js: a server of files for tests: folders under names, with or without the headers that threads need.
import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = /** @type {Record<string, string>} */ ({
  ".html": "text/html",
  ".css": "text/css",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
});

/** @param {Record<string, string>} folders first part of the path to folder @param {boolean} isolated @returns {Promise<{url: string, close: () => void}>} */
export function serve(folders, isolated = true) {
  const server = createServer((request, answer) => {
    const path = decodeURIComponent(new URL(request.url ?? "/", "http://x").pathname);
    if (isolated) {
      answer.setHeader("Cross-Origin-Opener-Policy", "same-origin");
      answer.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    }
    answer.setHeader("Cache-Control", "no-store");
    if (path === "/") return answer.setHeader("Content-Type", "text/html").end("<!doctype html><title>test</title>");
    const [, first, ...rest] = normalize(path).split("/");
    const file = join(folders[first] ?? "/nonexistent", ...rest);
    try {
      answer.setHeader("Content-Length", statSync(file).size);
      answer.setHeader("Content-Type", TYPES[extname(file)] ?? "application/octet-stream");
    } catch {
      answer.statusCode = 404;
      return answer.end("not found");
    }
    createReadStream(file).pipe(answer);
  });
  return new Promise((resolve) =>
    server.listen(0, "127.0.0.1", () => {
      const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
      resolve({ url: `http://127.0.0.1:${port}/`, close: () => server.close() });
    }),
  );
}
