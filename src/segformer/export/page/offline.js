// The service worker: visits without a network, and several threads on any server.

const WAIT = 3000; // milliseconds for the service worker to start
const RELOADED = "reloaded for threads";

// Start the service worker where there can be one. button: shown when there is a new version of the
// page; loads it.
export async function keepForOffline(button) {
  const workers = navigator.serviceWorker;
  if (!workers) return; // not a secure context
  try {
    // Without the HTTP cache, which would hide a new version.js
    const registration = await workers.register("sw.js", { updateViaCache: "none" });
    offerUpdate(registration, button);
    const timeout = new Promise((resolve) => setTimeout(resolve, WAIT));
    await Promise.race([controlled(workers), timeout]);
  } catch (error) {
    console.warn("The page will need a network at each visit:", error);
  }
}

// Load the page again if only that is missing for several threads: its first load came without the
// headers that the service worker adds. Returns whether it does.
export function isReloading() {
  const useful = navigator.hardwareConcurrency > 1 && navigator.serviceWorker?.controller;
  if (self.crossOriginIsolated || !useful || sessionStorage.getItem(RELOADED)) return false;
  sessionStorage.setItem(RELOADED, "yes"); // once: in a frame, the headers may have no effect
  location.reload();
  return true;
}

function controlled(workers) {
  if (workers.controller) return null;
  return new Promise((resolve) => {
    workers.addEventListener("controllerchange", resolve, { once: true });
  });
}

function offerUpdate(registration, button) {
  const offer = () => {
    button.hidden = !(registration.waiting && registration.active); // not at the first visit
  };
  const follow = () => {
    offer();
    registration.installing?.addEventListener("statechange", offer);
  };
  follow();
  registration.addEventListener("updatefound", follow);
  button.addEventListener("click", () => {
    navigator.serviceWorker.addEventListener("controllerchange", () => location.reload());
    registration.waiting?.postMessage("activate");
  });
}
