// chromium.js: the browser of the tests.
import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

export const executable =
  process.env.CHROMIUM ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);

export const launch = (args = /** @type {string[]} */ ([])) =>
  chromium.launch({ executablePath: executable, args: ["--no-sandbox", ...args] });
