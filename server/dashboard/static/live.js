// Keep a page live: listen for changes, say when the connection is lost, come back by itself.
"use strict";

(() => {
  const RETRY_MS = 1000;
  const HIDDEN_MS = 10000;
  const SILENCE_MS = 8000; // the server pings every 3 s; a frozen one never closes the connection

  const live = document.getElementById("live");
  const link = document.getElementById("link");
  if (!live || !link) return;
  link.textContent = link.dataset.begin;

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

  // A page in sections says which it has; only the others come, each to be put in its place.
  live.addEventListener("htmx:configRequest", (event) => {
    const parts = [...live.querySelectorAll(".part[data-part]")];
    if (event.detail.elt === live && parts.length) event.detail.parameters.have = parts.map((part) => part.dataset.part).join(".");
  });

  // A redraw must not close what a person opened or untick what they ticked, nor lose their place in a wide table.
  let kept = null;
  const remember = (home) => {
    kept = {
      open: [...home.querySelectorAll("details[open][id]")].map((item) => item.id),
      shown: [...home.querySelectorAll("[popover][id]")].filter((item) => item.matches(":popover-open")).map((item) => item.id),
      ticked: new Map([...home.querySelectorAll("input[type=checkbox][id], input[type=radio][id]")].map((item) => [item.id, item.checked])),
      typed: new Map([...home.querySelectorAll("input[type=search][id], input[type=number][id], select[id]")].map((item) => [item.id, item.value])),
      places: new Map([...home.querySelectorAll(".scroll[aria-label]")].map((item) => [item.ariaLabel, [item.scrollLeft, item.scrollTop]])),
      late: new Map([...home.querySelectorAll("details.lazy[open][id] > .late")].map((item) => [item.parentElement.id, item.innerHTML])),
      focus: home.contains(document.activeElement) ? document.activeElement.id : "",
    };
  };
  const restore = (home) => {
    if (!kept) return;
    for (const [id, html] of kept.late) {
      const late = document.getElementById(id)?.querySelector(":scope > .late");
      if (late) late.innerHTML = html;
    }
    for (const id of kept.open) document.getElementById(id)?.setAttribute("open", "");
    for (const [id, checked] of kept.ticked) {
      const box = document.getElementById(id);
      if (box) box.checked = checked;
    }
    for (const [id, value] of kept.typed) {
      const field = document.getElementById(id);
      if (field && id !== "picked") field.value = value;
    }
    for (const id of kept.shown) document.getElementById(id)?.showPopover();
    for (const item of home.querySelectorAll(".scroll[aria-label]")) {
      const [left, top] = kept.places.get(item.ariaLabel) || [0, 0];
      item.scrollLeft = left;
      item.scrollTop = top;
    }
    if (kept.focus) document.getElementById(kept.focus)?.focus({ preventScroll: true });
    kept = null;
  };
  const told = () => {
    const clock = document.getElementById("clock");
    return clock ? `${clock.dataset.epoch}.${clock.dataset.done}` : "";
  };
  let round = told();
  live.addEventListener("htmx:beforeSwap", (event) => { if (event.detail.target === live) remember(live); });
  live.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target === live) restore(live);
    document.dispatchEvent(new Event("popmi:drawn"));
  });
  live.addEventListener("htmx:oobBeforeSwap", (event) => remember(event.detail.target));
  live.addEventListener("htmx:oobAfterSwap", (event) => {
    restore(event.target);
    document.dispatchEvent(new Event("popmi:drawn"));
  });
  // A finished round: curves fetch its points, and open tables come again.
  document.addEventListener("popmi:drawn", () => {
    // Without a clock the record cannot be read now: nothing to fetch.
    if (!told() || told() === round) return;
    round = told();
    document.dispatchEvent(new Event("popmi:finished"));
    for (const item of live.querySelectorAll("details.lazy[open]")) htmx.trigger(item, "popmi:round");
  });
})();
