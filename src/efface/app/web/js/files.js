// Ways in for files: drop, choose, paste; and a mask from a file.
import { app, changed } from "./app.js";
import { byId } from "./dom.js";
import { loadMask } from "./masks.js";
import { addFiles } from "./queue.js";
import { complain } from "./tell.js";

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
  addFiles([...event.dataTransfer.files]);
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
    picture.mark(await loadMask(file, picture.info));
    changed();
  } catch (error) {
    complain(error, file.name);
  }
});

export const chooseMask = () => app.current && mask.click();
