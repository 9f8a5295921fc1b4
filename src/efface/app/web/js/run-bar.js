// The bar with what to do next: erase, erase all, or cancel, and how far it is.
import { app, onChange } from "./app.js";
import { byId, percent, plural } from "./dom.js";
import { cancel, enqueue } from "./queue.js";

export function startOne() {
  if (!byId("start").disabled && app.current) enqueue(app.current);
}

export function startAll() {
  app.pictures.filter(needsRun).forEach(enqueue);
}

export function cancelAll() {
  app.pictures.filter((picture) => picture.working).forEach(cancel);
}

const empty = (picture) => picture.texts !== null && !picture.takenTexts.length && !picture.edits.marks.length;
const needsRun = (picture) => !picture.working && !empty(picture) && (!picture.result || picture.stale);

function label(picture) {
  if (!picture || picture.texts === null) return "Erase";
  if (picture.result && !picture.stale) return "Erase again";
  if (picture.edits.marks.length) return "Erase the mask";
  const n = picture.takenTexts.length;
  return n ? `Erase ${plural(n, "text")}` : "Nothing to erase";
}

onChange(() => {
  const picture = app.current;
  const working = app.pictures.filter(({ working }) => working);
  const open = app.pictures.filter(needsRun);
  byId("start").textContent = label(picture);
  byId("start").disabled = !picture || picture.working || empty(picture);
  byId("start").classList.toggle("primary", !picture?.result || picture.stale);
  byId("start").hidden = Boolean(picture?.working);
  byId("start-all").hidden = app.pictures.length < 2 || !open.length;
  byId("start-all").textContent = `Erase all ${open.length}`;
  byId("cancel").hidden = !working.length;
  byId("cancel").textContent = working.length > 1 ? `Cancel all ${working.length}` : "Cancel";
  byId("progress").hidden = !working.length;
  const shown = picture?.working ? picture : working[0];
  if (!shown) return;
  byId("progress-bar").value = shown.progress;
  const name = shown === picture ? "" : `${shown.info.name}: `;
  byId("progress-what").textContent = `${name}${shown.doing || shown.state} ${shown.progress ? percent(shown.progress) : ""}`;
});

byId("start").addEventListener("click", startOne);
byId("start-all").addEventListener("click", startAll);
byId("cancel").addEventListener("click", cancelAll);
