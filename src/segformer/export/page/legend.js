// The list of classes in an image.

import { cssColor, percent } from "./drawing.js";

// Fill the list. entries: [{id, name, color, fraction}], largest first. only: class id that is shown
// alone, or null. toggle: called with the id of a class that is pressed.
export function showLegend(list, entries, only, toggle) {
  const focused = list.contains(document.activeElement) && document.activeElement.dataset.id;
  list.replaceChildren(...entries.map((entry) => legendRow(entry, only, toggle)));
  if (focused) list.querySelector(`[data-id="${focused}"]`)?.focus();
}

// Mark the class under the pointer.
export function markClass(list, id) {
  for (const button of list.querySelectorAll("button")) {
    button.classList.toggle("pointed", button.dataset.id === String(id));
  }
}

function legendRow({ id, name, color, fraction }, only, toggle) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.id = id;
  button.title = "Show this class alone";
  button.setAttribute("aria-pressed", only === id);
  button.addEventListener("click", () => toggle(id));
  const swatch = span("swatch", "");
  swatch.style.backgroundColor = cssColor(color);
  const bar = span("bar", "");
  bar.style.setProperty("--fraction", fraction);
  bar.style.setProperty("--color", cssColor(color));
  button.append(swatch, span("name", name), span("fraction", percent(fraction)), bar);
  const row = document.createElement("li");
  row.append(button);
  return row;
}

function span(className, text) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = text;
  return element;
}
