// The keyboard: what each key does, and the page of help that says so.
import { app } from "./app.js";
import { byId, el, icon } from "./dom.js";
import { peek, setMode } from "./modes.js";
import { startAll, startOne, cancelAll } from "./run-bar.js";
import { move, shown } from "./stage.js";
import { step } from "./strip.js";
import { TOOLS, brushRadius, choose, giveUp, holdSpace, key as stageKey, resize } from "./tools.js";

const help = byId("help");
const zoom = (factor) => move((view) => view.zoomTo(view.scale * factor));
export const oneToOne = () => move((view) => view.zoomTo(1 / devicePixelRatio));

/** Build the keys; `actions` are those that the toolbar has too. */
export function connectKeys({ undo, redo }) {
  const groups = [
    ["Tools", [
      ...TOOLS.map(([name, label, key]) => [key, label, () => choose(name)]),
      ["[", "Smaller brush", () => resize(brushRadius() / 1.25)],
      ["]", "Larger brush", () => resize(brushRadius() * 1.25 + 1)],
      ["Ctrl+z", "Undo", undo],
      ["Ctrl+Shift+z", "Redo", redo],
      ["Ctrl+y", "Redo", redo],
    ]],
    ["Pictures", [
      ["a", "Add pictures", () => byId("files").click()],
      ["PageUp", "The picture before", () => step(-1)],
      ["PageDown", "The next picture", () => step(1)],
      ["Ctrl+Enter", "Erase", startOne],
      ["Ctrl+Shift+Enter", "Erase all", startAll],
      ["Escape", "Give up the mark, else cancel", () => giveUp() || cancelAll()],
      ["d", "Download", () => app.current?.result && byId("download").click()],
    ]],
    ["View", [
      ["m", "Mask", () => setMode("mask")],
      ["c", "Compare", () => setMode("compare")],
      ["x", "Result", () => setMode("result")],
      ["o", "Show the picture as it was, while held", () => peek(true)],
      ["+", "Zoom in", () => zoom(1.25)],
      ["-", "Zoom out", () => zoom(0.8)],
      ["1", "Zoom to 1:1", oneToOne],
      ["0", "Fit", () => move((view) => view.fit())],
      ["?", "This help", openHelp],
    ]],
  ];
  const byKey = new Map(groups.flatMap(([, keys]) => keys.map(([key, , run]) => [key, run])));
  document.addEventListener("keydown", (event) => press(event, byKey));
  document.addEventListener("keyup", release);
  fillHelp(groups);
}

function press(event, byKey) {
  if (document.querySelector("dialog[open]") || byId("erase").hidden) return;
  const typing = event.target.matches("input:not([type=range], [type=checkbox], [type=radio]), textarea, select");
  const ctrl = event.ctrlKey || event.metaKey;
  if (event.altKey || (typing && !(ctrl && event.key === "Enter"))) return;
  const onStage = event.target === byId("mask-layer");
  if (onStage && shown.picture && !ctrl && stageKey(event)) return event.preventDefault();
  if (event.key === " " && (onStage || event.target === document.body)) {
    holdSpace(true);
    return event.preventDefault();
  }
  const named = event.key.length > 1 ? event.key : event.key.toLowerCase();
  const shift = event.shiftKey && (named.length > 1 || /[a-z]/.test(named)) ? "Shift+" : "";
  const run = byKey.get(`${ctrl ? "Ctrl+" : ""}${shift}${named}`) || (named === "=" && !ctrl && byKey.get("+"));
  if (!run) return;
  event.preventDefault();
  run();
}

function release(event) {
  if (event.key === " ") holdSpace(false);
  if (event.key.toLowerCase() === "o") peek(false);
}

export function openHelp() {
  help.showModal();
}

function fillHelp(groups) {
  const keys = (text) => text.split("+").map((part) => el("kbd", {}, { " ": "Space", "": "+" }[part] || (part.length === 1 ? part.toUpperCase() : part)));
  help.replaceChildren(
    el("button", { type: "button", class: "icon close", "aria-label": "Close", onclick: () => help.close() }, icon("close")),
    el("h2", { id: "help-title" }, "Keyboard"),
    el("p", {}, "On the picture, the arrow keys move a crosshair (with Shift in small steps); Space begins and ends a mark of the chosen tool, or takes and keeps the text under it. With Alt a mark is rubbed out. The wheel zooms, two fingers zoom and move."),
    el("div", { class: "keys" }, groups.map(([title, rows]) => el("section", {}, el("h3", {}, title),
      el("dl", {}, rows.map(([key, label]) => [el("dt", {}, key === "+" ? el("kbd", {}, "+") : keys(key)), el("dd", {}, label)]))))),
  );
  help.addEventListener("click", (event) => event.target === help && help.close());
}
