// Switches the stage between mask, comparison and result, and moves the split between before and after.
import { app, changed, onChange } from "./app.js";
import { byId, segmented } from "./dom.js";
import { drawPicture, present, redraw, shown } from "./stage.js";

const stage = byId("stage");
const split = byId("split");
const check = segmented(byId("modes"), "mode", [["mask", "Mask", "m"], ["compare", "Compare", "c"], ["result", "Result", "x"]], setMode);

export function setMode(mode) {
  if (mode !== "mask" && !app.current?.result) return;
  shown.mode = mode;
  show();
  redraw();
}

export function setSplit(value) {
  shown.split = Math.min(1, Math.max(0, value));
  split.style.left = `${100 * shown.split}%`;
  split.setAttribute("aria-valuenow", Math.round(100 * shown.split));
  split.setAttribute("aria-valuetext", `${Math.round(100 * shown.split)} % before`);
  drawPicture();
}

/** While `on`, show the picture as it was. */
export function peek(on) {
  if (shown.peek === on) return;
  shown.peek = on;
  redraw();
}

function show() {
  check(shown.mode);
  stage.dataset.mode = shown.mode;
  byId("modes").hidden = !app.current?.result;
  for (const id of ["split", "label-before", "label-after"]) byId(id).hidden = shown.mode !== "compare";
}

split.addEventListener("pointerdown", (event) => split.setPointerCapture(event.pointerId));
split.addEventListener("pointermove", (event) => {
  if (!split.hasPointerCapture(event.pointerId)) return;
  const { left, width } = stage.getBoundingClientRect();
  setSplit((event.clientX - left) / width);
});
split.addEventListener("keydown", (event) => {
  const to = { ArrowLeft: shown.split - 0.02, ArrowDown: shown.split - 0.02, ArrowRight: shown.split + 0.02, ArrowUp: shown.split + 0.02, Home: 0, End: 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  setSplit(to);
});

function resultUrl(picture) {
  if (!picture?.result) return undefined;
  return `/api/jobs/${picture.job.id}/view${picture.iteration ? `?iteration=${picture.iteration}` : ""}`;
}

onChange(() => {
  const picture = app.current;
  if (picture !== shown.picture) shown.mode = picture?.result ? "compare" : "mask";
  if (!picture?.result) shown.mode = "mask";
  present(picture, resultUrl(picture));
  show();
});

/** A job ended: compare, where its picture is the one in sight. */
export function arrived(picture) {
  if (picture === app.current) shown.mode = "compare";
  changed();
}

setSplit(0.5);
