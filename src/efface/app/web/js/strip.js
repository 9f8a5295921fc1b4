// The strip of pictures under the stage: which there are, which is shown, and how each of them stands.
import { archiveUrl } from "./api.js";
import { app, changed, onChange } from "./app.js";
import { byId, current, el, icon, percent } from "./dom.js";
import { remove } from "./queue.js";

const WORDS = { finding: "looking for text", ready: "ready", waiting: "waiting", running: "running", done: "done", failed: "failed" };
const items = new Map();

function state(picture) {
  if (picture.state === "running") return percent(picture.progress);
  if (picture.state === "done" && picture.stale) return "changed";
  return WORDS[picture.state];
}

function make(picture) {
  const { info } = picture;
  const status = el("span", { class: "state" });
  const show = el("button", { type: "button", class: "thumb", onclick: () => select(picture) },
    el("img", { src: `${info.view}?size=240`, alt: "", loading: "lazy" }),
    el("span", { class: "name" }, info.name),
    status,
  );
  const gone = el("button", { type: "button", class: "icon drop-one", "aria-label": `Remove ${info.name}`, onclick: () => drop(picture) }, icon("close"));
  return { node: el("li", {}, show, gone), show, status };
}

function drop(picture) {
  remove(picture);
  byId(app.pictures.length ? "add" : "choose").focus();
}

export function select(picture) {
  app.current = picture;
  changed();
}

/** Show the next picture, or with -1 the one before. */
export function step(by) {
  const at = app.pictures.indexOf(app.current);
  if (at >= 0) select(app.pictures[(at + by + app.pictures.length) % app.pictures.length]);
}

function offerAll(ready) {
  const link = byId("download-all");
  link.hidden = ready.length < 2;
  if (link.hidden) return;
  link.href = archiveUrl(ready.map(({ job, iteration }) => ({ job: job.id, iteration })));
  link.replaceChildren(icon("down"), el("span", {}, `All ${ready.length}`));
  link.setAttribute("aria-label", `Download all ${ready.length} results`);
}

onChange(() => {
  for (const [picture, { node }] of items) {
    if (!app.pictures.includes(picture)) {
      node.remove();
      items.delete(picture);
    }
  }
  for (const picture of app.pictures) {
    if (!items.has(picture)) {
      items.set(picture, make(picture));
      byId("pictures").append(items.get(picture).node);
    }
    const { node, show, status } = items.get(picture);
    node.dataset.state = picture.state;
    node.style.setProperty("--progress", picture.progress);
    status.textContent = state(picture);
    show.setAttribute("aria-label", `${picture.info.name}, ${state(picture)}`);
    current(show, "true", picture === app.current);
  }
  byId("add").toggleAttribute("data-busy", app.uploading > 0);
  offerAll(app.pictures.filter(({ result }) => result));
});
