// Label maps in colors, on a canvas of their own that lies over the image.

const EDGE = 0.35; // brightness of the edges between classes
const LARGEST_SIDE = 4096; // of an overlay that is saved; image viewers can open it

// The size of an image of which no side is longer than `most`.
export function fitted(height, width, most) {
  const ratio = Math.min(1, most / Math.max(height, width));
  return [height, width].map((side) => Math.max(1, Math.round(side * ratio)));
}

// Paint a label map on a canvas, at most `most` pixels wide and high; with `only`, that class alone.
export function paint(canvas, { labels, height, width }, classes, { most, only = null }) {
  const [rows, columns] = fitted(height, width, most);
  const ids = sampled(labels, height, width, rows, columns);
  const [plain, dark] = [1, EDGE].map((brightness) =>
    Uint32Array.from(classes, ({ color }, id) => {
      if (only !== null && id !== only) return 0;
      const [red, green, blue] = color.map((value) => Math.round(value * brightness));
      return new Uint32Array(Uint8Array.of(red, green, blue, 255).buffer)[0];
    }),
  );
  const image = new ImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let y = 0, at = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++, at++) {
      const id = ids[at];
      const edge =
        (x + 1 < columns && ids[at + 1] !== id) || (y + 1 < rows && ids[at + columns] !== id);
      pixels[at] = (edge ? dark : plain)[id];
    }
  }
  canvas.height = rows;
  canvas.width = columns;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// A JPEG of the image, the colors over it, and a legend below. legend: [{name, color, fraction}].
export async function overlayFile(photo, result, classes, opacity, legend) {
  const [height, width] = fitted(result.height, result.width, LARGEST_SIDE);
  const colors = document.createElement("canvas");
  paint(colors, result, classes, { most: LARGEST_SIDE });
  const font = Math.max(12, Math.min(28, Math.round(width / 36)));
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  context.font = `${font}px sans-serif`;
  const places = legendPlaces(context, legend, width, font);
  canvas.width = width;
  canvas.height = height + places.height;
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(photo, 0, 0, width, height);
  context.globalAlpha = opacity;
  context.drawImage(colors, 0, 0, width, height);
  context.globalAlpha = 1;
  context.font = `${font}px sans-serif`; // a new size resets the context
  context.textBaseline = "middle";
  for (const { text, color, x, y } of places.entries) {
    context.fillStyle = cssColor(color);
    context.fillRect(x, height + y - font / 2, font, font);
    context.fillStyle = "black";
    context.fillText(text, x + 1.5 * font, height + y);
  }
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
}

export const cssColor = (color) => `rgb(${color.join(" ")})`;

export const percent = (fraction) =>
  fraction > 0 && fraction < 0.001 ? "< 0.1%" : `${(100 * fraction).toFixed(1)}%`;

// Nearest pixels of a label map.
function sampled(labels, height, width, rows, columns) {
  if (rows === height && columns === width) return labels;
  const ids = new labels.constructor(rows * columns);
  const from = Int32Array.from({ length: columns }, (_, x) =>
    Math.floor(((x + 0.5) * width) / columns),
  );
  for (let y = 0, at = 0; y < rows; y++) {
    const start = Math.floor(((y + 0.5) * height) / rows) * width;
    for (let x = 0; x < columns; x++) ids[at++] = labels[start + from[x]];
  }
  return ids;
}

function legendPlaces(context, legend, width, font) {
  const line = 1.8 * font;
  let [x, y] = [font, line];
  const entries = legend.map(({ name, color, fraction }) => {
    const text = `${name}  ${percent(fraction)}`;
    const length = context.measureText(text).width + 2.5 * font;
    if (x > font && x + length > width) [x, y] = [font, y + line];
    const place = { text, color, x, y };
    x += length + font;
    return place;
  });
  return { entries, height: Math.ceil(y + line) };
}
