// page.js: files in, text out. The model's text is only ever put in as text, never as HTML.
import { Nano } from "../src/index.js";
import { TEXTS } from "./texts.js";

/** @template {HTMLElement} T @param {string} id @returns {T} */
const $ = (id) => /** @type {T} */ (document.getElementById(id));
const input = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ ($(id));
const status = $("status");

/** @type {"en" | "zh"} */
let language = (localStorage.getItem("language") ?? navigator.language).startsWith("zh") ? "zh" : "en";
/** What the status line says: a name in TEXTS and what follows it. @type {[keyof typeof TEXTS.en | "", string]} */
let said = ["welcome", ""];

/** @param {keyof typeof TEXTS.en | ""} name @param {string} [more] @param {boolean} [bad] */
function say(name, more = "", bad = false) {
  said = [name, more];
  status.textContent = `${name ? TEXTS[language][name] : ""}${name && more ? " · " : ""}${more}`;
  status.classList.toggle("bad", bad);
}

function speak() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-text]"))
    element.textContent = TEXTS[language][/** @type {keyof typeof TEXTS.en} */ (element.getAttribute("data-text"))];
  $("language").textContent = TEXTS[language].other;
  $("language").lang = language === "en" ? "zh" : "en";
  say(...said);
}

// Threads need headers that a static host does not send: a service worker adds them, after one reload.
if (!crossOriginIsolated && "serviceWorker" in navigator && isSecureContext && !navigator.serviceWorker.controller) {
  navigator.serviceWorker.register("service-worker.js").then(
    () => navigator.serviceWorker.ready.then(() => !loaded && location.reload()),
    () => {}, // one thread will do
  );
}

const nano = new Nano();
let loaded = false;
let writing = false;

function enable() {
  for (const id of ["prompt", "send", "reset", "lora"]) input(id).disabled = !loaded || writing;
  input("model").disabled = writing;
  input("stop").disabled = !writing;
}

/** @param {() => Promise<void>} work */
async function busy(work) {
  writing = true;
  enable();
  try {
    await work();
  } catch (error) {
    say("", /** @type {Error} */ (error).message, true);
  } finally {
    writing = false;
    input("progress").hidden = true;
    enable();
  }
}

/** @param {import("../src/index.js").Progress} p */
function progress({ phase, loaded, total }) {
  const bar = /** @type {HTMLProgressElement} */ (/** @type {unknown} */ ($("progress")));
  bar.hidden = phase === "prepare" && loaded === 1;
  bar.max = total || 1;
  bar.value = loaded;
  if (phase !== "prompt") say(phase === "read" ? "reading" : "preparing", phase === "read" ? `${Math.round(loaded / 1e6)} MB` : "");
}

/** @param {File} file */
const loadModel = (file) =>
  busy(async () => {
    loaded = false;
    const { model, build, threads, memoryBytes } = await nano.load(file, progress);
    loaded = true;
    $("talk").replaceChildren();
    input("detach").disabled = true;
    input("chat").disabled = !model?.chat;
    input("chat").checked = Boolean(model?.chat);
    const size = `${Math.round((model?.parameters ?? 0) / 1e5) / 10} M · ${model?.quantisation}`;
    say("ready", `${file.name} · ${size} · ${build}, ${TEXTS[language].threads}: ${threads} · ${Math.round(memoryBytes / 1e6)} MB`);
  });

/** @param {string} text @param {string} kind */
function add(text, kind) {
  const box = document.createElement("div");
  box.className = kind;
  box.textContent = text;
  $("talk").append(box);
  return box;
}

const write = () =>
  busy(async () => {
    const prompt = input("prompt").value;
    const chat = input("chat").checked;
    const value = (/** @type {string} */ id) => (input(id).value === "" ? undefined : Number(input(id).value));
    /** @type {import("../src/index.js").GenerateOptions} */
    const options = { progress };
    for (const id of /** @type {const} */ (["temperature", "topK", "topP", "repetitionPenalty", "maxTokens", "seed"]))
      options[id] = value(id);
    if (!chat) $("talk").replaceChildren();
    add(prompt, "user");
    const answer = add("", "model");
    const writer = chat ? nano.chat(prompt, options) : nano.generate(prompt, options);
    let step = await writer.next();
    for (; !step.done; step = await writer.next()) answer.append(step.value);
    const { newTokens, decodeTps, prefillTps } = step.value;
    if (chat) input("prompt").value = "";
    const { speed, written, read } = TEXTS[language];
    say("ready", `${newTokens} ${written}, ${decodeTps.toFixed(1)} ${speed} · ${read} ${prefillTps.toFixed(0)} ${speed}`);
  });

$("language").onclick = () => {
  language = language === "en" ? "zh" : "en";
  localStorage.setItem("language", language);
  speak();
};
$("model").onchange = () => input("model").files?.[0] && loadModel(/** @type {File} */ (input("model").files?.[0]));
$("lora").onchange = () =>
  busy(async () => {
    const file = input("lora").files?.[0];
    if (!file) return;
    await nano.attachLora(file, progress);
    input("detach").disabled = false;
    say("attached", file.name);
  });
$("detach").onclick = () =>
  busy(async () => {
    await nano.detachLora();
    input("detach").disabled = true;
    input("lora").value = "";
    say("detached");
  });
$("ask").onsubmit = (event) => {
  event.preventDefault();
  if (loaded && !writing) write();
};
$("stop").onclick = () => nano.stop();
$("reset").onclick = () =>
  busy(async () => {
    await nano.reset();
    $("talk").replaceChildren();
  });
document.body.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("over");
};
document.body.ondragleave = () => document.body.classList.remove("over");
document.body.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const file = event.dataTransfer?.files[0];
  if (file && !writing) loadModel(file);
};
speak();
enable();
