// Runs the model, away from the thread of the page.
//
// Messages in:  {type: "load", settings, device}, then {type: "segment", id, file, size}
// Messages out: progress {loaded, total}; ready {device, threads}; result {id, labels, height,
//               width, counts, seconds}; error {id, message, isBroken}, after which a new worker
//               is needed if isBroken

import { decode, normalized, resized, targetSize } from "./image.js";
import { countClasses, labelMap } from "./labels.js";
import { fetchBytes } from "./stored.js";

const MOST_THREADS = 4; // more gain little, and take memory
const RUNTIMES = {
  wasm: { module: "ort.wasm.min.mjs", binary: "ort-wasm-simd-threaded" },
  webgpu: { module: "ort.webgpu.min.mjs", binary: "ort-wasm-simd-threaded.asyncify" },
};

let settings;
let wanted; // "auto", "webgpu" or "wasm"
let running; // {session, Tensor, device}
let queue = Promise.resolve(); // one message after the other

self.onmessage = ({ data }) => {
  queue = queue.then(() => handle(data));
};

async function handle(message) {
  try {
    if (message.type === "load") {
      ({ settings, device: wanted } = message);
      await load(wanted === "auto" ? await bestDevice() : wanted);
    } else if (running) {
      await segment(message);
    }
  } catch (error) {
    const { id } = message;
    self.postMessage({ type: "error", id, message: describe(error), isBroken: error.isBroken });
  }
}

async function bestDevice() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return adapter && !adapter.info?.isFallbackAdapter ? "webgpu" : "wasm";
}

async function load(device) {
  const { module, binary } = RUNTIMES[device];
  const address = (name) => new URL(`runtime/${name}`, import.meta.url).href;
  const [ort, wasmBinary, model] = await Promise.all([
    import(address(module)),
    ...(await download([`runtime/${binary}.wasm`, settings.model])),
  ]);
  const threads = self.crossOriginIsolated
    ? Math.min(MOST_THREADS, navigator.hardwareConcurrency)
    : 1;
  Object.assign(ort.env.wasm, {
    numThreads: threads,
    wasmBinary: wasmBinary.buffer,
    wasmPaths: { mjs: address(`${binary}.mjs`), wasm: address(`${binary}.wasm`) },
  });
  ort.env.logLevel = "error";
  try {
    const options = { executionProviders: [device], logSeverityLevel: 3 }; // errors
    const session = await ort.InferenceSession.create(model, options);
    running = { session, Tensor: ort.Tensor, device };
  } catch (error) {
    if (device === "wasm" || wanted !== "auto") throw error;
    await load("wasm");
    return;
  }
  self.postMessage({ type: "ready", device, threads });
}

// Fetch files of settings.files at the same time, and report the progress of all.
async function download(paths) {
  const loaded = {};
  const total = paths.reduce((sum, path) => sum + settings.files[path], 0);
  return paths.map((path) =>
    fetchBytes(path, settings.files[path], settings.version, (bytes) => {
      loaded[path] = bytes;
      const sum = Object.values(loaded).reduce((a, b) => a + b, 0);
      self.postMessage({ type: "progress", loaded: sum, total });
    }),
  );
}

async function segment({ id, file, size }) {
  const { preprocessing, classes } = settings;
  const seconds = {};
  let began = performance.now();
  const lap = (name) => {
    const now = performance.now();
    seconds[name] = (now - began) / 1000;
    began = now;
  };
  const bitmap = await decode(file);
  const { height, width } = bitmap;
  const channels = preprocessing.mean.length;
  const [h, w] = targetSize(height, width, size, preprocessing.multiple);
  const pixels = await resized(bitmap, [h, w], channels, preprocessing.resample);
  bitmap.close();
  const input = normalized(pixels, preprocessing);
  lap("image");
  const logits = await run(input, [1, channels, h, w]);
  lap("model");
  const labels = labelMap(logits.data, logits.dims.slice(1), height, width);
  const counts = countClasses(labels, classes.length);
  lap("labels");
  const result = { type: "result", id, labels, height, width, counts, seconds };
  self.postMessage(result, [labels.buffer]);
}

async function run(input, dims) {
  const { session, Tensor, device } = running;
  try {
    const feeds = { [session.inputNames[0]]: new Tensor("float32", input, dims) };
    const { [session.outputNames[0]]: logits } = await session.run(feeds);
    return logits;
  } catch (error) {
    if (device === "wasm" || wanted !== "auto") {
      throw Object.assign(new Error(describe(error)), { isBroken: true });
    }
    await load("wasm"); // the graphics processor lacks memory or an operation
    return run(input, dims);
  }
}

function describe(error) {
  const text = String(error?.message ?? error);
  if (/bad_alloc|out of memory|memory access|allocat/i.test(text)) {
    return "There is not enough memory. Choose a smaller size of the model's input.";
  }
  return text;
}
