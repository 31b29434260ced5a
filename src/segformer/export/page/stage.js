// The image with its overlay, and the class under the pointer.

import { cssColor, paint } from "./drawing.js";
import { markClass } from "./legend.js";

const MOST_SHOWN = 2048; // pixels of the overlay on the screen, wide and high
const STEP = 0.02; // of the image, for each press of an arrow key; with Shift five times that
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const $ = (id) => document.getElementById(id);

export class Stage {
  // classes: [{name, color}]. speak: called with what screen readers announce.
  constructor(classes, speak) {
    Object.assign(this, { classes, speak });
    this.frame = $("frame");
    this.photo = $("photo");
    this.overlay = $("overlay");
    this.tip = $("tip");
    this.marker = $("marker");
    this.result = null;
    this.place = null; // of the marker: [x, y], 0..1
    this.frame.addEventListener("pointermove", (event) => this.point(event));
    this.frame.addEventListener("pointerdown", (event) => this.point(event));
    this.frame.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.leave(); // a tap is over when the finger leaves
    });
    this.frame.addEventListener("keydown", (event) => this.press(event));
    this.frame.addEventListener("blur", () => this.leave());
  }

  // Show another image.
  load({ url, name }) {
    this.photo.src = url;
    this.photo.alt = name;
    this.frame.setAttribute("aria-label", `Segmented image ${name}`);
    this.place = null;
    this.leave();
  }

  // Show a result, or none. only: class id to show alone, or null.
  show(result, state, only) {
    this.result = result;
    this.frame.dataset.state = state;
    this.overlay.hidden = !result;
    if (result) paint(this.overlay, result, this.classes, { most: MOST_SHOWN, only });
  }

  setOpacity(opacity) {
    this.overlay.style.opacity = opacity;
  }

  point({ clientX, clientY }) {
    const box = this.photo.getBoundingClientRect();
    this.marker.hidden = true;
    this.tell((clientX - box.left) / box.width, (clientY - box.top) / box.height);
  }

  press(event) {
    if (event.key === "Escape") {
      this.leave();
      return;
    }
    const direction = ARROWS[event.key];
    if (!direction || !this.result) return;
    event.preventDefault();
    const step = event.shiftKey ? 5 * STEP : STEP;
    const start = this.place ?? [0.5, 0.5];
    this.place = start.map((at, i) => Math.min(0.999, Math.max(0, at + step * direction[i])));
    this.marker.hidden = false;
    this.marker.style.left = `${100 * this.place[0]}%`;
    this.marker.style.top = `${100 * this.place[1]}%`;
    const name = this.tell(...this.place);
    const [x, y] = this.place.map((at) => Math.round(100 * at));
    this.speak(`${name}, ${x}% from the left, ${y}% from the top`);
  }

  // Show the name of the class at x, y, 0..1 of the image; returns it.
  tell(x, y) {
    if (!this.result || !(x >= 0 && x < 1 && y >= 0 && y < 1)) {
      this.leave();
      return "";
    }
    const { labels, height, width } = this.result;
    const id = labels[Math.floor(y * height) * width + Math.floor(x * width)];
    const { name, color } = this.classes[id];
    this.tip.querySelector(".name").textContent = name;
    this.tip.querySelector(".swatch").style.backgroundColor = cssColor(color);
    this.tip.style.left = `${100 * x}%`;
    this.tip.style.top = `${100 * y}%`;
    this.tip.dataset.side = `${y < 0.2 ? "below" : "above"} ${x < 0.5 ? "right" : "left"}`;
    this.tip.hidden = false;
    markClass($("legend"), id);
    return name;
  }

  leave() {
    this.tip.hidden = true;
    this.marker.hidden = true;
    markClass($("legend"), null);
  }
}
