// Keeps the page for visits without a network. It also adds the headers with which a browser allows
// several threads, so that servers need not send them.

importScripts("version.js"); // self.VERSION, self.SHELL: written by the export

const PREFIX = `segformer ${new URL(".", self.location).pathname} `;
const CACHE = PREFIX + self.VERSION; // as in stored.js, which adds the large files

self.addEventListener("install", (event) => {
  const requests = self.SHELL.map((path) => new Request(path, { cache: "reload" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(requests)));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(removeOldVersions().then(() => self.clients.claim()));
});

self.addEventListener("message", ({ data }) => {
  if (data === "activate") self.skipWaiting();
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const inside = request.url.startsWith(self.registration.scope);
  if (request.method === "GET" && inside) event.respondWith(answer(request));
});

async function removeOldVersions() {
  const names = await caches.keys();
  const old = names.filter((name) => name.startsWith(PREFIX) && name !== CACHE);
  await Promise.all(old.map((name) => caches.delete(name)));
}

async function answer(request) {
  const cache = await caches.open(CACHE);
  const address = request.url.replace(/[?#].*$/, "").replace(/\/index\.html$/, "/");
  const stored = await cache.match(address);
  return isolated(stored ?? (await fetch(request)));
}

function isolated(response) {
  if (response.status === 0) return response;
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  const { status, statusText } = response;
  return new Response(response.body, { status, statusText, headers });
}
