// From an image file to the model's input, as the command line prepares it.

import { Resizer } from "./resize.js";

const STRIP_PIXELS = 1 << 21; // read at a time: 8 MB
const STRIP_ROWS = 2048; // at most, as the sides of canvases and textures are limited
const SMALLEST_SIDE = 32; // of the model's input
const LONGEST_RATIO = 16; // of the long to the short side that a resize to a short side keeps

// Decode a file, upright, without conversion of colors or transparency.
export async function decode(file) {
  try {
    return await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    throw new Error("This browser cannot decode the file. Use a JPEG, PNG or WebP image.");
  }
}

// Height and width at which an image goes into the model. size: [height, width], or the short
// side, or null for the image's own size.
export function targetSize(height, width, size, multiple) {
  let sides = size;
  if (!Array.isArray(size)) {
    const short = size ?? Math.min(height, width);
    const ratio = Math.max(height, width) / Math.min(height, width);
    const kept = size === null ? ratio : Math.min(ratio, LONGEST_RATIO);
    const long = size === null ? Math.max(height, width) : Math.trunc(short * kept);
    sides = height <= width ? [short, long] : [long, short];
    sides = sides.map((side) => Math.ceil(side / multiple) * multiple);
  }
  return sides.map((side) => Math.max(SMALLEST_SIDE, side));
}

// Resize an ImageBitmap to [height, width]; returns Uint8Array (height, width, channels). One
// channel is gray.
export async function resized(bitmap, size, channels, resample) {
  const resizer = new Resizer([bitmap.height, bitmap.width], size, channels, resample);
  for await (const rgba of strips(bitmap)) {
    if (channels === 1) resizer.push(gray(rgba), 1);
    else resizer.push(rgba, 4);
  }
  return resizer.finish();
}

// (height, width, C) 8-bit values -> Float32Array (C, height, width), normalized.
export function normalized(pixels, { mean, std, rescale }) {
  const channels = mean.length;
  const area = pixels.length / channels;
  const values = new Float32Array(pixels.length);
  for (let channel = 0; channel < channels; channel++) {
    const scale = Math.fround(rescale / std[channel]);
    const shift = Math.fround(mean[channel] / std[channel]);
    const table = Float32Array.from({ length: 256 }, (_, v) => Math.fround(v * scale) - shift);
    const start = channel * area;
    for (let i = 0; i < area; i++) values[start + i] = table[pixels[i * channels + channel]];
  }
  return values;
}

// Whole rows of an ImageBitmap as RGBA, a few at a time.
async function* strips(bitmap) {
  const { height, width } = bitmap;
  const rows = Math.min(height, STRIP_ROWS, Math.max(1, Math.floor(STRIP_PIXELS / width)));
  const canvas = new OffscreenCanvas(width, rows);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.globalCompositeOperation = "copy";
  let straight; // reads transparent images; a canvas loses the colors of transparent pixels
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    if (straight) {
      yield await straight.read(bitmap, top, count);
      continue;
    }
    context.drawImage(bitmap, 0, top, width, count, 0, 0, width, count);
    const rgba = context.getImageData(0, 0, width, count).data;
    if (isOpaque(rgba)) {
      yield rgba;
      continue;
    }
    straight = StraightReader.create(width);
    yield straight ? await straight.read(bitmap, top, count) : rgba;
  }
}

function isOpaque(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return false;
  return true;
}

// Gray as Pillow computes it: ITU-R 601 in 16-bit fixed point.
function gray(rgba) {
  const values = new Uint8Array(rgba.length / 4);
  for (let i = 0; i < values.length; i++) {
    const at = 4 * i;
    values[i] = (19595 * rgba[at] + 38470 * rgba[at + 1] + 7471 * rgba[at + 2] + 0x8000) >> 16;
  }
  return values;
}

// Reads colors that are not multiplied with the opacity, which only WebGL can.
class StraightReader {
  // Null where WebGL is missing or the image too wide for it.
  static create(width) {
    const gl = new OffscreenCanvas(1, 1).getContext("webgl");
    if (!gl || width > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
    return new StraightReader(gl);
  }

  constructor(gl) {
    this.gl = gl;
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  }

  async read(bitmap, top, rows) {
    const { gl } = this;
    const options = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
    const strip = await createImageBitmap(bitmap, 0, top, bitmap.width, rows, options);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, strip);
    const texture = gl.getParameter(gl.TEXTURE_BINDING_2D);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    const rgba = new Uint8Array(4 * bitmap.width * rows);
    gl.readPixels(0, 0, bitmap.width, rows, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
    strip.close();
    return rgba;
  }
}
