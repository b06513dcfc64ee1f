// Keep a page live: listen for changes, say when the connection is lost, come back by itself.
"use strict";

(() => {
  const RETRY_MS = 1000;
  const HIDDEN_MS = 10000;
  const SILENCE_MS = 8000; // the server pings every 3 s; a frozen one never closes the connection

  const live = document.getElementById("live");
  const link = document.getElementById("link");
  if (!live || !link) return;

  let source = null;
  let heard = Date.now();
  let retry = 0;
  let leave = 0;

  const say = (state, text) => {
    if (link.dataset.state === state) return;
    link.dataset.state = state;
    link.textContent = text;
  };
  const hear = () => {
    heard = Date.now();
    say("live", link.dataset.live);
  };
  const lose = () => {
    say("lost", link.dataset.lost);
    if (source) source.close();
    source = null;
    clearTimeout(retry);
    retry = setTimeout(listen, RETRY_MS);
    document.dispatchEvent(new Event("popmi:lost"));
  };
  const listen = () => {
    if (source) source.close();
    heard = Date.now();
    source = new EventSource(live.dataset.changes);
    source.addEventListener("open", hear);
    source.addEventListener("ping", hear);
    source.addEventListener("change", () => {
      hear();
      htmx.trigger(live, "popmi:change");
    });
    source.addEventListener("ended", () => location.reload()); // signed out elsewhere: the page to sign in comes
    source.addEventListener("error", lose);
  };

  listen();
  setInterval(() => { if (source && Date.now() - heard > SILENCE_MS) lose(); }, 1000);
  // A browser opens six connections to one server: a tab that nobody sees gives its own back, and catches up later.
  document.addEventListener("visibilitychange", () => {
    clearTimeout(leave);
    if (!document.hidden && !source) listen();
    if (document.hidden) leave = setTimeout(() => { if (source) source.close(); source = null; clearTimeout(retry); }, HIDDEN_MS);
  });
  addEventListener("pagehide", () => { if (source) source.close(); source = null; clearTimeout(retry); });
  addEventListener("pageshow", (event) => { if (event.persisted) listen(); });

  // A redraw must not close what a person opened, nor lose their place in a wide table.
  let open = new Set();
  let places = new Map();
  live.addEventListener("htmx:beforeSwap", () => {
    open = new Set([...live.querySelectorAll("details[open][id]")].map((item) => item.id));
    places = new Map([...live.querySelectorAll(".scroll[aria-label]")].map((item) => [item.ariaLabel, [item.scrollLeft, item.scrollTop]]));
  });
  live.addEventListener("htmx:afterSwap", () => {
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    for (const item of live.querySelectorAll(".scroll[aria-label]")) {
      const [left, top] = places.get(item.ariaLabel) || [0, 0];
      item.scrollLeft = left;
      item.scrollTop = top;
    }
    document.dispatchEvent(new Event("popmi:drawn"));
  });
})();
