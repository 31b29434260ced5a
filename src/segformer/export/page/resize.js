// Resizing as Pillow does it: antialiased, one direction after the other, each result rounded to
// 8 bits. The results are equal to Pillow's, bit for bit.

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

// Weight of a source pixel at distance x from the center of the target pixel, in target pixels when
// an image is reduced, and the distance from which on it is zero.
const FILTERS = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  hamming: {
    support: 1,
    // Pillow's constants are of single precision
    weight: (x) =>
      Math.abs(x) >= 1
        ? 0
        : sinc(x) * (Math.fround(0.54) + Math.fround(0.46) * Math.cos(Math.PI * x)),
  },
  bicubic: {
    support: 2,
    weight: (distance) => {
      const x = Math.abs(distance);
      if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
      return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
    },
  },
  lanczos: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

const FRACTION_BITS = 22; // weights are integers, in units of 2 ** -22

// Resizes an image whose rows arrive in strips, so that the image itself need not be in memory.
export class Resizer {
  // source, target: [height, width]. channels: of the result.
  constructor(source, target, channels, resample = "bilinear") {
    this.channels = channels;
    [this.height, this.width] = target;
    this.sourceHeight = source[0];
    this.columns = taps(source[1], this.width, resample);
    this.rows = taps(source[0], this.height, resample);
    this.wide = new Uint8Array(source[0] * this.width * channels);
    this.filled = 0; // values of `wide`
  }

  // Add rows. pixels: values of whole rows, `step` values for each pixel, of which the first
  // `channels` are used.
  push(pixels, step) {
    const { channels, width, wide } = this;
    const { first, count, weights, most, sourceSize } = this.columns;
    const stride = sourceSize * step;
    let { filled } = this;
    for (let row = 0; row < pixels.length; row += stride) {
      for (let x = 0; x < width; x++) {
        const start = row + first[x] * step;
        const end = start + count[x] * step;
        for (let channel = 0; channel < channels; channel++) {
          let sum = 1 << (FRACTION_BITS - 1);
          let tap = x * most;
          for (let at = start + channel; at < end; at += step) sum += pixels[at] * weights[tap++];
          wide[filled++] = clip(sum >> FRACTION_BITS);
        }
      }
    }
    this.filled = filled;
  }

  // (height, width, channels) values, once all rows have been added.
  finish() {
    const { first, count, weights, most } = this.rows;
    const stride = this.width * this.channels;
    if (this.filled !== this.sourceHeight * stride) throw new Error("rows are missing");
    const resized = new Uint8Array(this.height * stride);
    const sums = new Float64Array(stride); // exact: whole numbers below 2 ** 53
    for (let y = 0; y < this.height; y++) {
      sums.fill(1 << (FRACTION_BITS - 1));
      for (let i = 0; i < count[y]; i++) {
        const weight = weights[y * most + i];
        const start = (first[y] + i) * stride;
        for (let at = 0; at < stride; at++) sums[at] += this.wide[start + at] * weight;
      }
      for (let at = 0; at < stride; at++) {
        resized[y * stride + at] = clip(sums[at] >> FRACTION_BITS);
      }
    }
    return resized;
  }
}

const clip = (value) => (value < 0 ? 0 : value > 255 ? 255 : value);

// Which source pixels make up each target pixel along one side: `count[i]` from `first[i]` on, with
// `weights[i * most]` and following.
function taps(sourceSize, targetSize, resample) {
  if (resample === "nearest") return nearestTaps(sourceSize, targetSize);
  const filter = FILTERS[resample];
  if (!filter) throw new Error(`no filter ${resample}`);
  const scale = sourceSize / targetSize;
  const reduction = Math.max(scale, 1);
  const support = filter.support * reduction;
  const most = 2 * Math.ceil(support) + 1;
  const first = new Int32Array(targetSize);
  const count = new Int32Array(targetSize);
  const weights = new Int32Array(targetSize * most);
  for (let i = 0; i < targetSize; i++) {
    const center = (i + 0.5) * scale;
    first[i] = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(sourceSize, Math.trunc(center + support + 0.5));
    count[i] = end - first[i];
    const exact = [];
    for (let at = first[i]; at < end; at++) {
      exact.push(filter.weight((at - center + 0.5) * (1 / reduction)));
    }
    const sum = exact.reduce((total, weight) => total + weight, 0);
    exact.forEach((weight, k) => {
      const scaled = (sum === 0 ? weight : weight / sum) * (1 << FRACTION_BITS);
      weights[i * most + k] = Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
  }
  return { first, count, weights, most, sourceSize };
}

function nearestTaps(sourceSize, targetSize) {
  const scale = sourceSize / targetSize;
  const first = new Int32Array(targetSize);
  let position = scale / 2; // added up, as Pillow does, for the same rounding
  for (let i = 0; i < targetSize; i++, position += scale) {
    first[i] = Math.min(Math.trunc(position), sourceSize - 1);
  }
  const count = new Int32Array(targetSize).fill(1);
  const weights = new Int32Array(targetSize).fill(1 << FRACTION_BITS);
  return { first, count, weights, most: 1, sourceSize };
}
