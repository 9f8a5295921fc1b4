// Tells people what happened: toasts for the eyes, a live region for the ears.
import { byId, el, icon } from "./dom.js";

export function say(text) {
  const live = byId("live");
  if (live.textContent !== text) live.textContent = text;
}

export function toast(text, { wrong = false, fix = "" } = {}) {
  const note = el("div", { class: wrong ? "toast wrong" : "toast", role: wrong ? "alert" : "status" },
    el("p", {}, text, fix && el("small", {}, fix)),
    el("button", { type: "button", class: "icon", "aria-label": "Dismiss", onclick: () => note.remove() }, icon("close")),
  );
  byId("toasts").append(note);
  setTimeout(() => note.remove(), wrong ? 15000 : 5000);
}

/** Show an error of the server or of the page, with the name of the picture it is about. */
export function complain(error, name = "") {
  const what = error.message || String(error);
  toast(name && !what.includes(name) ? `${name}: ${what}` : what, { wrong: true, fix: error.fix || "" });
}
