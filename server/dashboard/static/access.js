// Somebody is signed in: what htmx sends carries the form's secret, and the session's end shows the page to sign in.
"use strict";

(() => {
  const secret = document.querySelector('meta[name="csrf"]')?.content;
  document.addEventListener("htmx:configRequest", (event) => {
    if (event.detail.verb !== "get") event.detail.headers["X-CSRF-Token"] = secret;
  });

  const look = () => fetch("/account", { redirect: "manual", cache: "no-store" }).then((answer) => {
    if (answer.type === "opaqueredirect") location.reload();
  }, () => {});

  // An event stream does not tell whether nobody answers or somebody refuses.
  document.addEventListener("popmi:lost", look);
  // A page that was signed out while it lay in the browser's store of past pages must not be shown from there.
  addEventListener("pageshow", (event) => { if (event.persisted) look(); });
})();
