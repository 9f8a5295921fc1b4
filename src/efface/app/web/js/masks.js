// Asks the mask worker.

const worker = new Worker("/assets/js/mask-worker.js", { type: "module" });
const waiting = new Map();
let tickets = 0;

worker.addEventListener("message", ({ data: { ticket, answer, error } }) => {
  const { resolve, reject } = waiting.get(ticket);
  waiting.delete(ticket);
  if (error) reject(new Error(error));
  else resolve(answer);
});

function ask(job, given) {
  const ticket = ++tickets;
  worker.postMessage({ ticket, job, ...given });
  return new Promise((resolve, reject) => waiting.set(ticket, { resolve, reject }));
}

/** Take in a mask file of the picture's size; resolves with the mark that stands for it. */
export async function loadMask(blob, { width, height }) {
  const file = ++tickets;
  const { taken } = await ask("load", { file, blob, width, height });
  if (!taken) throw new Error("the mask is empty: nothing in it is white");
  return { kind: "image", file };
}

export const previewMask = (given) => ask("preview", given);
export const exportMask = async (scene, { width, height }) => (await ask("export", { scene, width, height })).blob;
