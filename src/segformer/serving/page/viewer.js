// The results on the page: the image with its overlay, the classes, the downloads. Gradio runs this
// file as a function with `element`, `props` and `watch`. props.value is a list of results:
// {name, state: "waiting" | "done" | "failed", problem, height, width, classes: [{id, name, color,
// fraction}], image, ids, label_map, overlay, summary}; the last five are files with a url.

const STEP = 0.02; // of the image, for each press of an arrow key; with Shift five times that
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const EDGE = 0.35; // brightness of the edges between classes
const NO_CLASS = { name: "no class", color: [0, 0, 0] }; // of models whose classes overlap
const FILES = {
  label_map: (stem) => `${stem}.png`,
  overlay: (stem) => `${stem}_overlay.jpg`,
  summary: (stem) => `${stem}.json`,
};

const $ = (selector) => element.querySelector(selector);
const [viewer, frame, photo, overlay] = [$(".viewer"), $(".frame"), $(".photo"), $(".overlay")];
const [tip, marker, divider] = [$(".tip"), $(".marker"), $(".divider")];
const [opacity, compare] = [$(".opacity input"), $(".compare input")];
const links = { label_map: $("a.label_map"), overlay: $("a.overlay_file"), summary: $("a.summary") };

let results = [];
let shown = null; // the result on the stage
let ids = null; // {values, height, width} of the result on the stage, once they have been loaded
let place = null; // of the marker: [x, y], 0..1
const hidden = new Set(); // names of the classes that are not shown

const cssColor = (color) => `rgb(${color.join(" ")})`;
const percent = (fraction) =>
  fraction > 0 && fraction < 0.001 ? "< 0.1%" : `${(100 * fraction).toFixed(1)}%`;
const speak = (text) => ($(".spoken").textContent = text);

function create(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// Take over the results from the server; the first new one is shown.
function update() {
  const before = results;
  results = props.value ?? [];
  const isNew = results.length > before.length;
  const index = isNew ? before.length : Math.max(0, before.indexOf(shown));
  for (const [i, result] of results.entries()) {
    const former = before[i]?.state;
    if (result.state !== "waiting" && (former === undefined || former === "waiting")) announce(result);
  }
  show(results[Math.min(index, results.length - 1)] ?? null);
}

function announce({ name, state, problem, classes }) {
  if (state === "failed") return speak(`${name}: ${problem}`);
  const largest = classes.filter(({ fraction }) => fraction).slice(0, 3);
  speak(`${name}: ${largest.map((entry) => `${entry.name} ${percent(entry.fraction)}`).join(", ")}`);
}

async function show(result) {
  const changed = result?.image?.url !== shown?.image?.url;
  shown = result;
  viewer.dataset.state = result?.state ?? "empty";
  $(".hint").hidden = Boolean(result) && result.state !== "waiting";
  $(".hint").textContent =
    result?.state === "waiting"
      ? `${result.name} is being segmented.`
      : "Results are shown here. Choose images, take a photo, or try the example.";
  $(".problem").hidden = result?.state !== "failed";
  $(".problem").textContent = result?.problem ? `${result.name}: ${result.problem}` : "";
  const done = result?.state === "done";
  for (const part of [frame, $(".compare"), $(".panel")]) part.hidden = !done;
  showImages();
  if (!done) {
    ids = null;
    return;
  }
  showLegend();
  showLinks();
  if (!changed) return;
  leave();
  place = null;
  ids = null;
  frame.style.setProperty("--width", result.width);
  frame.style.setProperty("--height", result.height);
  photo.src = result.image.url;
  photo.alt = result.name;
  frame.setAttribute("aria-label", `Segmented image ${result.name}`);
  const loaded = await loadIds(result.ids.url);
  if (shown === result) {
    ids = loaded;
    paint();
  }
}

// Class ids from an image whose red and green levels are their low and high byte.
async function loadIds(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const [height, width] = [image.naturalHeight, image.naturalWidth];
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { height, width });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const values = new Uint16Array(height * width);
  for (let i = 0; i < values.length; i++) values[i] = data[4 * i] + 256 * data[4 * i + 1];
  return { values, height, width };
}

// Paint the classes that are shown, with dark edges.
function paint() {
  if (!ids) return;
  const { values, height, width } = ids;
  const colors = new Map(shown.classes.map((entry) => [entry.id, entry]));
  const inks = [1, EDGE].map((brightness) => {
    const table = new Uint32Array(1 << 16);
    for (const { id, name, color } of colors.values()) {
      if (hidden.has(name)) continue;
      const levels = color.map((level) => Math.round(level * brightness));
      table[id] = new Uint32Array(Uint8Array.of(...levels, 255).buffer)[0];
    }
    return table;
  });
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const id = values[at];
      const edge =
        (x + 1 < width && values[at + 1] !== id) || (y + 1 < height && values[at + width] !== id);
      pixels[at] = inks[edge ? 1 : 0][id];
    }
  }
  Object.assign(overlay, { height, width });
  overlay.getContext("2d").putImageData(image, 0, 0);
  frame.dataset.painted = shown.name;
}

function showImages() {
  const rows = results.map((result) => {
    const button = create("button", "");
    button.type = "button";
    button.dataset.state = result.state;
    button.setAttribute("aria-label", `${result.name}, ${result.state}`);
    button.title = result.name;
    if (result === shown) button.setAttribute("aria-current", "true");
    if (result.image) {
      const image = create("img", "");
      Object.assign(image, { src: result.image.url, alt: "" });
      button.append(image);
    }
    button.addEventListener("click", () => {
      const at = results.indexOf(result);
      show(result);
      $(`.images li:nth-child(${at + 1}) button`).focus();
    });
    const row = document.createElement("li");
    row.append(button);
    return row;
  });
  $(".images").replaceChildren(...rows);
  $(".images").hidden = results.length < 2;
}

function showLegend() {
  const rows = shown.classes
    .filter(({ fraction }) => fraction)
    .map(({ id, name, color, fraction }) => {
      const box = create("input", "");
      Object.assign(box, { type: "checkbox", checked: !hidden.has(name) });
      box.addEventListener("change", () => {
        if (box.checked) hidden.delete(name);
        else hidden.add(name);
        paint();
      });
      const swatch = create("span", "swatch");
      swatch.style.backgroundColor = cssColor(color);
      const bar = create("span", "bar");
      bar.style.setProperty("--fraction", fraction);
      bar.style.setProperty("--color", cssColor(color));
      const label = create("label", "");
      label.append(box, swatch, create("span", "name", name), create("span", "fraction", percent(fraction)), bar);
      const row = document.createElement("li");
      row.dataset.id = id;
      row.append(label);
      return row;
    });
  $(".legend").replaceChildren(...rows);
}

function showLinks() {
  const stem = shown.name.replace(/\.[^.]*$/, "");
  for (const [kind, link] of Object.entries(links)) {
    link.href = shown[kind].url;
    link.download = FILES[kind](stem);
  }
}

function showAll(all) {
  for (const { name } of shown?.classes ?? []) {
    if (all) hidden.delete(name);
    else hidden.add(name);
  }
  showLegend();
  paint();
}

// Show the name of the class at x, y, 0..1 of the image; returns it.
function tell(x, y) {
  if (!ids || !(x >= 0 && x < 1 && y >= 0 && y < 1)) {
    leave();
    return "";
  }
  const id = ids.values[Math.floor(y * ids.height) * ids.width + Math.floor(x * ids.width)];
  const { name, color } = shown.classes.find((entry) => entry.id === id) ?? NO_CLASS;
  $(".tip .name").textContent = name;
  $(".tip .swatch").style.backgroundColor = cssColor(color);
  tip.style.left = `${100 * x}%`;
  tip.style.top = `${100 * y}%`;
  tip.dataset.side = `${y < 0.2 ? "below" : "above"} ${x < 0.5 ? "right" : "left"}`;
  tip.hidden = false;
  mark(id);
  return name;
}

function mark(id) {
  for (const row of element.querySelectorAll(".legend li"))
    row.classList.toggle("pointed", row.dataset.id === String(id));
}

function leave() {
  tip.hidden = true;
  marker.hidden = true;
  mark(null);
}

function point({ clientX, clientY }) {
  const box = photo.getBoundingClientRect();
  marker.hidden = true;
  tell((clientX - box.left) / box.width, (clientY - box.top) / box.height);
}

function press(event) {
  if (event.key === "Escape") leave();
  const direction = ARROWS[event.key];
  if (!direction || !ids) return;
  event.preventDefault();
  const step = event.shiftKey ? 5 * STEP : STEP;
  place = (place ?? [0.5, 0.5]).map((at, i) =>
    Math.min(0.999, Math.max(0, at + step * direction[i])),
  );
  marker.hidden = false;
  marker.style.left = `${100 * place[0]}%`;
  marker.style.top = `${100 * place[1]}%`;
  const name = tell(...place);
  const [x, y] = place.map((at) => Math.round(100 * at));
  speak(`${name}, ${x}% from the left, ${y}% from the top`);
}

function setOpacity() {
  $(".opacity .amount").textContent = `${opacity.value}%`;
  opacity.setAttribute("aria-valuetext", `${opacity.value}%`);
  overlay.style.opacity = opacity.value / 100;
}

// Left of the divider there is the image, right of it the overlay.
function setDivider() {
  const at = Number(compare.value);
  overlay.style.clipPath = `inset(0 0 0 ${at}%)`;
  divider.hidden = at === 0 || at === 100;
  divider.style.left = `${at}%`;
  compare.setAttribute("aria-valuetext", `${at}% of the image without colors`);
}

frame.addEventListener("pointermove", point);
frame.addEventListener("pointerdown", point);
frame.addEventListener("pointerleave", (event) => {
  if (event.pointerType === "mouse") leave(); // a tap is over when the finger leaves
});
frame.addEventListener("keydown", press);
frame.addEventListener("blur", leave);
opacity.addEventListener("input", setOpacity);
compare.addEventListener("input", setDivider);
$("[data-show=all]").addEventListener("click", () => showAll(true));
$("[data-show=none]").addEventListener("click", () => showAll(false));
setOpacity();
setDivider();
watch("value", update);
update();
