// Ways in for files: drop (folders too), choose, paste; and a mask from a file.
import * as api from "./api.js";
import { app, changed } from "./app.js";
import { byId, plural } from "./dom.js";
import { loadMask } from "./masks.js";
import { addFiles } from "./queue.js";
import { complain, toast } from "./tell.js";

const pictures = byId("files");
const mask = byId("mask-file");
let depth = 0; // elements under the dragged files

const carriesFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
const over = (change) => {
  depth = Math.max(0, change);
  document.body.toggleAttribute("data-drop", depth > 0);
};

addEventListener("dragenter", (event) => carriesFiles(event) && over(depth + 1));
addEventListener("dragleave", (event) => carriesFiles(event) && over(depth - 1));
addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  over(0);
  addDropped([...event.dataTransfer.items].filter(({ kind }) => kind === "file"));
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files || [])];
  if (!files.length) return;
  event.preventDefault();
  addFiles(files);
});

for (const id of ["choose", "add"]) byId(id).addEventListener("click", () => pictures.click());
pictures.addEventListener("change", () => {
  addFiles([...pictures.files]);
  pictures.value = "";
});

mask.addEventListener("change", async () => {
  const [file] = mask.files;
  const picture = app.current;
  mask.value = "";
  if (!file || !picture) return;
  try {
    const { masked } = await api.putMask(picture.info.id, file); // the server reads more formats than browsers do
    if (!masked) throw new Error("the mask is empty: nothing in it is white");
    picture.mark(await loadMask(await api.mask(picture.info.id)));
    changed();
  } catch (error) {
    complain(error, file.name);
  }
});

/** Add what was dropped; of folders, and the folders in them, whatever is named as a picture. */
async function addDropped(items) {
  const folders = items.map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry?.isDirectory);
  const files = items.filter((item) => !item.webkitGetAsEntry?.()?.isDirectory).map((item) => item.getAsFile());
  try {
    const inside = (await Promise.all(folders.map(filesIn))).flat();
    const named = inside.filter(({ name }) => app.about.suffixes.some((suffix) => name.toLowerCase().endsWith(suffix)));
    if (named.length < inside.length) toast(`${plural(inside.length - named.length, "other file")} left out`);
    addFiles([...files, ...named]);
  } catch (error) {
    complain(error, folders.map(({ name }) => name).join(", "));
  }
}

async function filesIn(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break; // it gives a hundred at a time
    found.push(...some);
  }
  found.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  return (await Promise.all(found.map(filesIn))).flat();
}

export const chooseMask = () => app.current && mask.click();
