// page.test.js: the page as a person uses it.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { launch } from "./chromium.js";
import { serve } from "./serve.js";

const here = dirname(fileURLToPath(import.meta.url));
const native = process.env.NATIVE ?? join(here, "../../runtime_c/build");

test("a model is dropped, writes, is stopped, gets a LoRA and loses it; languages; a static host", { timeout: 120000 }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "nano-page-"));
  for (const kind of ["wide-f32", "wide-lora"])
    execFileSync(join(native, "tests/write_tiny"), [kind, join(folder, `${kind}.bin`)]);
  writeFileSync(join(folder, "bad.gguf"), "GGUF and nothing more");
  const server = await serve({ web: join(here, "..") }, false);
  const browser = await launch();
  try {
    const page = await browser.newPage({ locale: "en-GB" });
    page.setDefaultTimeout(20000);
    /** @type {string[]} */
    const wrong = [];
    page.on("pageerror", (error) => wrong.push(String(error)));
    page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
    page.on("request", (request) => {
      if (!request.url().startsWith(server.url) && !/^(data|blob):/.test(request.url())) wrong.push(request.url());
    });
    await page.goto(`${server.url}web/index.html`);
    await page.waitForFunction(() => crossOriginIsolated); // after the service worker's reload
    await page.locator("#status", { hasText: "Nothing leaves this machine" }).waitFor();

    await page.locator("#model").setInputFiles(join(folder, "bad.gguf"));
    await page.locator("#status.bad").waitFor();

    const bytes = readFileSync(join(folder, "wide-f32.bin")).toString("base64");
    const data = await page.evaluateHandle((text) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], "dropped.bin"));
      return transfer;
    }, bytes);
    await page.dispatchEvent("body", "drop", { dataTransfer: data });
    await page.locator("#status", { hasText: "ready" }).waitFor();
    assert.match((await page.locator("#status").textContent()) ?? "", /dropped\.bin .* threads/);

    await page.locator("summary").click();
    await page.locator("#temperature").fill("0");
    await page.locator("#maxTokens").fill("12");
    if (await page.locator("#chat").isEnabled()) await page.locator("#chat").uncheck();
    const write = async () => {
      await page.locator("#prompt").fill("hello there <b onclick=alert(1)>");
      await page.locator("#send").click();
      await page.locator("#status", { hasText: "tokens/s" }).waitFor();
      return page.locator("#talk .model").textContent();
    };
    const plain = await write();
    assert.ok(plain);
    assert.equal(await page.locator("#talk b").count(), 0, "text is no HTML");

    await page.locator("#lora").setInputFiles(join(folder, "wide-lora.bin"));
    await page.locator("#status", { hasText: "adapter attached" }).waitFor();
    assert.notEqual(await write(), plain);
    await page.locator("#detach").click();
    await page.locator("#status", { hasText: "taken off" }).waitFor();
    assert.equal(await write(), plain);

    await page.locator("#maxTokens").fill("100000");
    await page.locator("#prompt").fill("x");
    await page.evaluate(() => {
      /** @type {HTMLElement} */ (document.querySelector("#send")).click();
      /** @type {HTMLElement} */ (document.querySelector("#stop")).click();
    });
    await page.locator("#send:enabled").waitFor();
    const made = Number((await page.locator("#status").textContent())?.match(/ready · (\d+) tokens,/)?.[1]);
    assert.ok(made < 100, `${made} tokens after stop`);

    await page.locator("#language").click();
    assert.equal(await page.locator("#send").textContent(), "生成");
    assert.equal(await page.evaluate(() => document.documentElement.lang), "zh");
    await page.locator("#reset").click();
    await page.locator("#talk:empty").waitFor({ state: "attached" });
    assert.deepEqual(wrong, []);
    if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, "page.png") });
  } finally {
    await browser.close();
    server.close();
    rmSync(folder, { recursive: true, force: true });
  }
});
