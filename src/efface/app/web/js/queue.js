// Takes pictures in, has their text found, and runs jobs for them, a few at a time.
import * as api from "./api.js";
import { app, changed } from "./app.js";
import { bytes, percent, plural } from "./dom.js";
import { exportMask } from "./masks.js";
import { Picture } from "./picture.js";
import { learn } from "./rules.js";
import { complain, say } from "./tell.js";

const ARCHIVE = /\.(zip|tar|tgz|gz|7z|rar)$/i;

let finished = () => {};
let turn = Promise.resolve(); // texts are looked for one after the other
let running = 0;
const waiting = [];

export const onFinish = (listener) => (finished = listener);

export async function addFiles(given) {
  const files = given.slice(0, Math.max(0, app.about.max_pictures - app.pictures.length - app.uploading));
  if (files.length < given.length) {
    const what = `${plural(given.length - files.length, "picture")} left out; at most ${app.about.max_pictures} are held`;
    complain(new api.Problem({ what, fix: "Remove some first, or use the command for whole folders." }));
  }
  app.uploading += files.length;
  changed();
  for (const file of files) {
    try {
      if (ARCHIVE.test(file.name)) {
        throw new api.Problem({ what: "is an archive, which is not opened here", fix: "Unpack it, and drop the folder." });
      }
      if (file.size > app.about.max_file_bytes) {
        throw new api.Problem({ what: `has ${bytes(file.size)}; at most ${bytes(app.about.max_file_bytes)} are taken` });
      }
      adopt(await api.addPicture(file));
    } catch (error) {
      complain(error, file.name);
    }
    app.uploading -= 1;
    changed();
  }
}

/** Show a picture that the server holds, with what a job made of it before. */
export function adopt(info, job = null) {
  const picture = new Picture(info);
  app.pictures.push(picture);
  app.current ??= picture;
  if (job) Object.assign(picture, { job, jobKey: null });
  say(`${info.name} added`);
  turn = picture.found = turn.then(() => findTexts(picture));
  changed();
}

async function findTexts(picture) {
  if (!app.pictures.includes(picture)) return;
  try {
    const texts = await api.texts(picture.info.id);
    await learn(texts.map(({ words }) => words)).catch((error) => complain(error, picture.info.name));
    picture.texts = texts;
    say(`${picture.info.name}: ${plural(picture.texts.length, "text")} found, ${picture.takenTexts.length} to erase`);
  } catch (error) {
    if (app.pictures.includes(picture)) complain(error, picture.info.name);
  }
  if (picture.state === "finding") picture.state = picture.job ? "done" : "ready";
  changed();
}

export function remove(picture) {
  const at = app.pictures.indexOf(picture);
  cancel(picture);
  app.pictures.splice(at, 1);
  if (app.current === picture) app.current = app.pictures[Math.min(at, app.pictures.length - 1)] || null;
  api.removePicture(picture.info.id).catch(complain);
  changed();
}

/** Put a picture into the queue of runs. Its ticket is this run's own: whoever cancels takes it away. */
export function enqueue(picture) {
  if (picture.working) return;
  Object.assign(picture, { state: "waiting", progress: 0, doing: "waiting", ticket: { job: null } });
  waiting.push(picture);
  changed();
  next();
}

export function cancel(picture) {
  const at = waiting.indexOf(picture);
  if (at >= 0) waiting.splice(at, 1);
  if (!picture.working) return;
  if (picture.ticket.job) api.dropJob(picture.ticket.job).catch(complain);
  Object.assign(picture, { ticket: null, state: picture.job ? "done" : "ready" });
  say(`${picture.info.name}: cancelled`);
  changed();
}

async function next() {
  if (running > app.about.workers || !waiting.length) return;
  running += 1;
  const picture = waiting.shift();
  const { ticket } = picture;
  try {
    await run(picture, ticket);
  } catch (error) {
    if (picture.ticket === ticket) {
      picture.state = "failed";
      complain(error, picture.info.name);
    }
  }
  running -= 1;
  changed();
  next();
}

async function run(picture, ticket) {
  const { info } = picture;
  const cancelled = () => picture.ticket !== ticket;
  await picture.found; // what is erased is what was seen
  if (cancelled()) return;
  const { key, painted } = picture;
  const rules = picture.wire();
  if (painted) await api.putMask(info.id, await exportMask(painted, info));
  if (cancelled()) return;
  const { id } = await api.beginJob(info.id, rules);
  if (cancelled()) {
    await api.dropJob(id);
    return;
  }
  ticket.job = id;
  const job = await api.follow(id, (news) => !cancelled() && hear(picture, news));
  if (cancelled()) return;
  if (job.state !== "done") throw new api.Problem(job.problem || { what: "was cancelled" }, 0);
  const old = picture.job;
  Object.assign(picture, { job, jobKey: key, iteration: null, state: "done" });
  if (old) api.dropJob(old.id).catch(() => {}); // it may be gone already
  const { residual, seconds } = job.result;
  say(`${info.name}: erased in ${seconds.toFixed(1)} seconds, ${plural(residual.left.length, "text")} left`);
  finished(picture);
}

function hear(picture, { state, progress, doing }) {
  if (!["waiting", "running"].includes(state)) return;
  if (doing !== picture.doing && picture === app.current) say(`${doing}, ${percent(progress)}`);
  Object.assign(picture, { state, progress, doing });
  changed();
}
