// Large files of the page, kept in the browser's cache for visits without a network.

// Name of the cache of one version of the page; sw.js uses the same.
export function cacheName(version) {
  return `segformer ${new URL(".", import.meta.url).pathname} ${version}`;
}

// The bytes of a file beside this module, from the cache or the network.
// size: expected number of bytes. onProgress: called with the number of bytes so far.
export async function fetchBytes(path, size, version, onProgress) {
  const url = new URL(path, import.meta.url).href;
  const cache = await openCache(version);
  const stored = await cache?.match(url);
  const response = stored ?? (await fetch(url));
  if (!response.ok) throw new Error(`${path}: the server answered ${response.status}`);
  const bytes = new Uint8Array(size);
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (loaded + value.length > size) throw new Error(`${path} is longer than ${size} bytes`);
    bytes.set(value, loaded);
    loaded += value.length;
    onProgress(loaded);
  }
  if (loaded < size) throw new Error(`${path} ends after ${loaded} of ${size} bytes`);
  // Without space in the cache, the page still works, with a network
  if (!stored) await cache?.put(url, new Response(bytes)).catch(() => {});
  return bytes;
}

async function openCache(version) {
  try {
    return await caches.open(cacheName(version)); // secure contexts only
  } catch {
    return null;
  }
}
