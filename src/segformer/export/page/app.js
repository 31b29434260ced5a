// The page: choosing images, running them one after the other, showing and saving the results.

import { openCamera } from "./camera.js";
import { cssColor, overlayFile, percent } from "./drawing.js";
import { showLegend } from "./legend.js";
import { isReloading, keepForOffline } from "./offline.js";
import { grayPng } from "./png.js";
import { Stage } from "./stage.js";

const SHORT_SIDES = [256, 320, 384, 448, 512, 640, 768, 1024];
const LARGEST_OWN_SIZE = 1024; // short side at which images run that a model takes at their own size

const $ = (id) => document.getElementById(id);

const settings = await loadSettings();
const { classes, preprocessing } = settings;
const stage = new Stage(classes, (text) => ($("spoken").textContent = text));
const items = []; // {id, file, name, url, state, result, problem, button}
let current = null;
let lastId = 0;
let worker = null;
let isReady = false;
let only = null; // class id that is shown alone

setUp();

async function loadSettings() {
  try {
    const response = await fetch("settings.json");
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    return await response.json();
  } catch (error) {
    say(`settings.json cannot be read: ${error.message}`);
    throw error;
  }
}

async function setUp() {
  document.title = `${settings.title} - image segmentation`;
  $("title").textContent = settings.title;
  listClasses();
  fillSizes();
  listen();
  await keepForOffline($("update"));
  if (items.length === 0 && isReloading()) return;
  startWorker();
}

function listen() {
  for (const button of document.querySelectorAll("[data-action=choose]")) {
    button.addEventListener("click", () => $("files").click());
  }
  const touch = matchMedia("(pointer: coarse)").matches;
  for (const button of document.querySelectorAll("[data-action=camera]")) {
    button.hidden = !touch && !navigator.mediaDevices?.getUserMedia;
    button.addEventListener("click", () => (touch ? $("capture").click() : openCamera($("camera"), add)));
  }
  for (const input of [$("files"), $("capture")]) {
    input.addEventListener("change", () => {
      add([...input.files]);
      input.value = "";
    });
  }
  document.addEventListener("paste", ({ clipboardData }) => add([...clipboardData.files]));
  listenToDrops();
  $("opacity").addEventListener("input", showOpacity);
  $("save-mask").addEventListener("click", saveMask);
  $("save-overlay").addEventListener("click", saveOverlay);
  $("clear").addEventListener("click", removeAll);
  $("size").addEventListener("change", runAll);
  $("device").addEventListener("change", () => {
    startWorker();
    runAll();
  });
  showOpacity();
}

function listenToDrops() {
  let depth = 0; // elements entered less those left
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dropping", depth > 0);
  };
  document.addEventListener("dragenter", () => mark(1));
  document.addEventListener("dragleave", () => mark(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-depth);
    add([...event.dataTransfer.files]);
  });
}

// The worker and its messages

function startWorker() {
  worker?.terminate();
  isReady = false;
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.addEventListener("message", ({ data }) => RECEIVE[data.type](data));
  worker.addEventListener("error", (event) => {
    isReady = false;
    RECEIVE.error({ message: event.message || "The worker cannot be started." });
  });
  worker.postMessage({ type: "load", settings, device: $("device").value });
  say("Loading the model");
}

const RECEIVE = {
  progress({ loaded, total }) {
    $("progress").hidden = false;
    $("progress").value = loaded / total;
    const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
    $("status").textContent = `Loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB`;
  },

  ready({ device, threads }) {
    isReady = true;
    $("progress").hidden = true;
    const place = { webgpu: "graphics processor", wasm: "processor" }[device];
    const count = device === "wasm" ? `, ${threads} ${threads === 1 ? "thread" : "threads"}` : "";
    document.body.dataset.device = device;
    document.body.dataset.threads = threads;
    say(`Ready. The model runs on this device's ${place}${count}.`);
    runNext();
  },

  result({ id, labels, height, width, counts, seconds }) {
    const item = items.find((one) => one.id === id);
    if (item) {
      item.result = { labels, height, width, counts, seconds };
      setState(item, "done");
      if (item === current) {
        show(item);
        $("spoken").textContent = summary(item);
      }
    }
    runNext();
  },

  error({ id, message, isBroken }) {
    $("progress").hidden = true;
    const item = items.find((one) => one.id === id);
    if (item) {
      item.problem = message;
      setState(item, "failed");
      if (item === current) show(item);
    }
    if (isBroken) startWorker();
    else if (isReady) runNext();
    else say(`The model cannot be loaded: ${message}`);
  },
};

function runNext() {
  if (!isReady || items.some((item) => item.state === "running")) return;
  const waiting = items.filter((item) => item.state === "waiting");
  const item = waiting.includes(current) ? current : waiting[0];
  if (!item) {
    if (items.length) say(`${items.length} ${items.length === 1 ? "image" : "images"} done`);
    return;
  }
  setState(item, "running");
  say(`Segmenting ${item.name}`);
  worker.postMessage({ type: "segment", id: item.id, file: item.file, size: inputSize() });
}

// Run all images again, with another size or on another device.
function runAll() {
  for (const item of items) {
    item.id = ++lastId; // results of earlier runs are for ids that no longer exist
    setState(item, "waiting");
  }
  runNext();
}

// Images

function add(files) {
  const images = files.filter((file) => file.type.startsWith("image/") || !file.type);
  if (!images.length) {
    if (files.length) say("These files are not images");
    return;
  }
  const added = images.map(createItem);
  items.push(...added);
  $("choose").hidden = true;
  $("result").hidden = false;
  document.querySelector("aside").hidden = false;
  select(added[0]);
  runNext();
}

function createItem(file) {
  const item = {
    id: ++lastId,
    file,
    name: file.name || "photo.jpg",
    url: URL.createObjectURL(file),
    state: "waiting",
  };
  const row = document.createElement("li");
  const thumbnail = new Image();
  Object.assign(thumbnail, { src: item.url, alt: "", decoding: "async" });
  item.button = document.createElement("button");
  item.button.type = "button";
  item.button.title = item.name;
  item.button.append(thumbnail);
  item.button.addEventListener("click", () => select(item));
  row.append(item.button);
  $("images").append(row);
  setState(item, "waiting");
  return item;
}

function setState(item, state) {
  item.state = state;
  item.button.dataset.state = state;
  const words = { waiting: "waiting", running: "in progress", done: "done", failed: "failed" };
  item.button.setAttribute("aria-label", `${item.name}, ${words[state]}`);
}

function select(item) {
  current = item;
  for (const { button } of items) {
    if (button === item.button) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  only = null;
  stage.load(item);
  show(item);
}

function removeAll() {
  for (const item of items.splice(0)) URL.revokeObjectURL(item.url);
  current = null;
  $("images").replaceChildren();
  $("result").hidden = true;
  document.querySelector("aside").hidden = true;
  $("choose").hidden = false;
  say("All images removed");
  document.querySelector("#choose [data-action=choose]").focus();
}

// Results

function show(item) {
  const failed = item.state === "failed";
  $("problem").hidden = !failed;
  if (failed) $("problem").textContent = `${item.name}: ${item.problem}`;
  const result = failed ? null : item.result;
  stage.show(result, item.state, only);
  for (const id of ["save-mask", "save-overlay"]) $(id).disabled = !result;
  showLegend($("legend"), result ? legendOf(result) : [], only, (id) => {
    only = only === id ? null : id;
    show(item);
  });
  showTiming(result);
}

function showTiming(result) {
  const { image = 0, model = 0, labels = 0 } = result?.seconds ?? {};
  const [all, ...parts] = [image + model + labels, image, model, labels].map((s) => s.toFixed(2));
  $("timing").textContent = result ? `${all} s` : "";
  $("timing").title = `image ${parts[0]} s, model ${parts[1]} s, label map ${parts[2]} s`;
}

// Classes of the image with their fractions, largest first.
function legendOf({ counts, height, width }) {
  return counts
    .map((count, id) => ({ ...classes[id], id, fraction: count / (height * width) }))
    .filter(({ fraction }) => fraction > 0)
    .sort((a, b) => b.fraction - a.fraction);
}

function summary(item) {
  const parts = legendOf(item.result).map(({ name, fraction }) => `${name} ${percent(fraction)}`);
  return `${item.name}: ${parts.join(", ")}`;
}

function showOpacity() {
  const { value } = $("opacity");
  $("opacity-value").textContent = `${value}%`;
  stage.setOpacity(value / 100);
}

async function saveMask() {
  const { labels, height, width } = current.result;
  save(await grayPng(labels, height, width), `${stem(current.name)}.png`);
}

async function saveOverlay() {
  const { result, name } = current;
  const opacity = $("opacity").value / 100;
  const file = await overlayFile(stage.photo, result, classes, opacity, legendOf(result));
  save(file, `${stem(name)}_overlay.jpg`);
}

const stem = (name) => name.replace(/\.[^.]*$/, "");

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Settings

function listClasses() {
  $("all-classes").append(
    ...classes.map(({ name, color }) => {
      const row = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.backgroundColor = cssColor(color);
      row.append(swatch, name);
      return row;
    }),
  );
}

function fillSizes() {
  const { size } = preprocessing;
  let own = `short side ${size}`;
  if (Array.isArray(size)) own = size.toReversed().join(" x ");
  if (size === null) own = `the image's own, at most ${LARGEST_OWN_SIZE}`;
  const sides = SHORT_SIDES.filter((side) => side !== size);
  $("size").append(
    new Option(`${own} (the model's own)`, "own"),
    ...sides.map((side) => new Option(`short side ${side}`, side)),
  );
}

// What is chosen: [height, width], or the short side.
function inputSize() {
  const { value } = $("size");
  if (value !== "own") return Number(value);
  return preprocessing.size ?? LARGEST_OWN_SIZE;
}

function say(text) {
  $("status").textContent = text;
}
