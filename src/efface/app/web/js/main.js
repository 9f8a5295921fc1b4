// Puts the page together.
import * as api from "./api.js";
import { app, changed, onChange } from "./app.js";
import { listCatalogue } from "./catalogue.js";
import { byId, bytes, current as mark } from "./dom.js";
import { chooseMask } from "./files.js";
import { connectKeys, oneToOne, openHelp } from "./keys.js";
import { closeMethod, openMethod } from "./method-page.js";
import { listMethods } from "./method-panel.js";
import { arrived } from "./modes.js";
import { adopt, onFinish } from "./queue.js";
import "./result-panel.js";
import "./run-bar.js";
import { move, viewport } from "./stage.js";
import "./strip.js";
import { complain, say } from "./tell.js";
import { toggle } from "./texts-panel.js";
import { build, connect } from "./tools.js";

function undo() {
  if (!app.current?.history.canUndo) return;
  app.current.history.undo();
  say("undone");
  changed();
}

function redo() {
  if (!app.current?.history.canRedo) return;
  app.current.history.redo();
  say("done again");
  changed();
}

function clear() {
  app.current?.clear();
  changed();
}

function route() {
  const [page, method] = location.hash.slice(1).split("/");
  const catalogue = page === "catalogue";
  if (method) openMethod(decodeURIComponent(method));
  else closeMethod();
  byId("erase").hidden = catalogue;
  byId("catalogue").hidden = !catalogue;
  mark(byId("nav-catalogue"), "page", catalogue);
  mark(byId("nav-erase"), "page", !catalogue);
  document.title = catalogue ? "Catalogue · efface" : "efface";
}

function showZoom() {
  byId("zoom-level").textContent = app.current ? `${Math.round(100 * viewport.zoom)} %` : "";
}

function fine({ suffixes, max_file_bytes: most }) {
  const formats = ["jpg", "png", "tif", "webp", "avif", "gif", "bmp"].filter((name) => suffixes.includes(`.${name}`));
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  const where = local ? "Nothing leaves this machine." : `Pictures go to ${location.host}, and nowhere else.`;
  return `${formats.join(", ").toUpperCase()} up to ${bytes(most)}. ${where}`;
}

async function restore() {
  const [pictures, jobs] = await Promise.all([api.pictures(), api.jobs()]);
  for (const info of pictures) adopt(info, jobs.findLast((job) => job.picture === info.id && job.state === "done"));
}

build([
  ["undo", "Undo", "Ctrl+Z", undo],
  ["redo", "Redo", "Ctrl+Shift+Z", redo],
  ["load", "Load a mask from a file", "", chooseMask],
  ["clear", "Clear the mask", "", clear],
]);
connect({
  onmark: (mark) => {
    app.current.mark(mark);
    changed();
  },
  ontoggle: toggle,
});
connectKeys({ undo, redo });
onFinish(arrived);
onChange(() => {
  byId("erase").toggleAttribute("data-empty", !app.pictures.length && !app.uploading);
  byId("do-undo").disabled = !app.current?.history.canUndo;
  byId("do-redo").disabled = !app.current?.history.canRedo;
  showZoom();
});

byId("help-open").addEventListener("click", openHelp);
byId("zoom-in").addEventListener("click", () => move((view) => view.zoomTo(view.scale * 1.25)));
byId("zoom-out").addEventListener("click", () => move((view) => view.zoomTo(view.scale * 0.8)));
byId("zoom-fit").addEventListener("click", () => move((view) => view.fit()));
byId("zoom-one").addEventListener("click", oneToOne);
byId("stage").addEventListener("moved", showZoom);
addEventListener("hashchange", route);

route();
changed();
try {
  [app.about, app.methods] = await Promise.all([api.about(), api.methods()]);
  byId("files").accept = `image/*,${app.about.suffixes.join(",")}`;
  byId("welcome-fine").textContent = fine(app.about);
  listMethods();
  listCatalogue();
  changed();
  await restore();
} catch (error) {
  complain(error);
}
document.documentElement.dataset.ready = "";
