// What became of the picture: how much text is left, its figures, iterates, the files, and the same as code.
import * as api from "./api.js";
import { app, changed, onChange } from "./app.js";
import { byId, el, icon, percent, plural } from "./dom.js";
import { toast } from "./tell.js";

const panel = byId("result");
let shownJob = null;

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    toast(`${what} copied`);
  } catch {
    const area = el("textarea", { readonly: true, rows: 4, "aria-label": what }, text); // no clipboard without https
    panel.append(area);
    area.select();
  }
}

function verdict({ residual, masked }) {
  if (!masked) return "Nothing was taken away";
  if (!residual.before) return "Erased";
  return residual.left.length ? `${plural(residual.left.length, "text")} still found` : "No text left";
}

function facts({ residual, seconds, masked, flat, method }) {
  const left = residual.recall == null ? null : ["Still read", percent(residual.recall)];
  const rows = [left, ["Time", `${seconds.toFixed(1)} s`], ["Erased area", percent(masked, 1)], flat ? ["Filled exactly", percent(flat)] : null, ["Method", method]];
  return el("dl", { class: "facts" }, rows.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function iterates(picture, { iterations }) {
  if (!iterations) return null;
  const out = el("output", {}, `${iterations} of ${iterations}`);
  const oninput = ({ target }) => {
    const value = Number(target.value);
    picture.iteration = value === iterations ? null : value;
    out.textContent = `${value} of ${iterations}`;
    byId("download").href = api.downloadUrl(picture.job.id, picture.iteration);
    changed();
  };
  return el("div", { class: "row" },
    el("label", { for: "iterate" }, "Iterate"),
    el("input", { type: "range", id: "iterate", min: 1, max: iterations, value: picture.iteration ?? iterations, oninput }),
    out,
  );
}

function fill(picture) {
  const { job, result } = picture;
  panel.replaceChildren(
    el("h2", { id: "result-title", class: result.residual.left.length ? "some-left" : "none-left" }, verdict(result)),
    el("p", { class: "stale", id: "stale", hidden: true }, "The settings changed since. Erase again to see what they give."),
    facts(result),
    iterates(picture, result) || "",
    el("ul", { class: "notes" }, result.notes.map((note) => el("li", {}, note))),
    el("div", { class: "buttons" },
      el("a", { class: "button primary", id: "download", href: api.downloadUrl(job.id, picture.iteration), download: true }, icon("down"), "Download"),
      el("a", { class: "button", id: "download-mask", href: api.maskUrl(job.id), download: true }, "Mask"),
    ),
    el("div", { class: "buttons" },
      el("button", { type: "button", class: "small", id: "copy-command", onclick: () => copy(result.command, "Command") }, icon("copy"), "Copy as command"),
      el("button", { type: "button", class: "small", id: "copy-python", onclick: () => copy(result.python, "Python") }, icon("copy"), "Copy as Python"),
    ),
    result.needs_mask ? el("p", { class: "fine" }, "Both read the mask from a file: download it too.") : "",
  );
}

onChange(() => {
  const picture = app.current;
  panel.hidden = !picture?.result;
  if (panel.hidden) {
    shownJob = null;
    return;
  }
  if (picture.job !== shownJob) {
    shownJob = picture.job;
    fill(picture);
  }
  byId("stale").hidden = !picture.stale;
});
