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

/** Take in a black and white mask of the picture's size; resolves with the mark that stands for it. */
export async function loadMask(blob) {
  const file = ++tickets;
  await ask("load", { file, blob });
  return { kind: "image", file };
}

export const previewMask = (given) => ask("preview", given);
export const exportMask = async (scene, { width, height }) => (await ask("export", { scene, width, height })).blob;
