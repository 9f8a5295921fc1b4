// Speaks with the server. Every refusal becomes a Problem that says what, where and what to do.

export class Problem extends Error {
  constructor({ what = "", where = "", fix = "" }, status, wait = 0) {
    super(what || `the server answered ${status}`);
    Object.assign(this, { name: "Problem", where, fix, status, wait });
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ what: "the server does not answer", fix: "See whether `efface serve` still runs." }, 0);
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Problem(body, answer.status, Number(answer.headers.get("Retry-After")) || 1);
}

/** Ask again, as often as the server says that too much is waiting. */
async function patiently(path, options) {
  for (;;) {
    try {
      return await ask(path, options);
    } catch (error) {
      if (error.status !== 429) throw error;
      await new Promise((go) => setTimeout(go, 1000 * error.wait));
    }
  }
}

const json = async (answer) => (await answer).json();
const sending = (method, value) => ({ method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
const raw = (method, body) => ({ method, headers: { "Content-Type": "application/octet-stream" }, body });

export const about = () => json(ask("/api/about"));
export const methods = () => json(ask("/api/methods"));
export const method = (name) => json(ask(`/api/methods/${encodeURIComponent(name)}`));
export const pictures = () => json(ask("/api/pictures"));
export const jobs = () => json(ask("/api/jobs"));
export const addPicture = (file) => json(ask(`/api/pictures?name=${encodeURIComponent(file.name || "pasted.png")}`, raw("POST", file)));
export const removePicture = (id) => ask(`/api/pictures/${id}`, { method: "DELETE" });
export const texts = (id) => json(patiently(`/api/pictures/${id}/texts`));
export const choose = (words) => json(ask("/api/pictures/choose", sending("POST", words)));
export const putMask = (id, blob) => json(ask(`/api/pictures/${id}/mask`, raw("PUT", blob)));
export const mask = async (id) => (await ask(`/api/pictures/${id}/mask`)).blob();
export const beginJob = (picture, rules) => json(patiently("/api/jobs", sending("POST", { picture, rules })));
export const dropJob = (id) => ask(`/api/jobs/${id}`, { method: "DELETE" });
export const maskUrl = (job) => `/api/jobs/${job}/mask`;
export const downloadUrl = (job, iteration) => `/api/jobs/${job}/download${iteration ? `?iteration=${iteration}` : ""}`;

export const archiveUrl = (jobs) => `/api/jobs/archive?${new URLSearchParams(jobs.map(({ job, iteration }) => ["job", iteration ? `${job}:${iteration}` : job]))}`;

export async function image(url, signal) {
  const blob = await (await ask(url, { signal })).blob();
  return createImageBitmap(blob);
}

/** Follow a job by server-sent events, telling each state, until it ends; resolves with the last one. */
export function follow(id, tell) {
  return new Promise((resolve, reject) => {
    const events = new EventSource(`/api/jobs/${id}/events`);
    events.addEventListener("job", (event) => {
      const job = JSON.parse(event.data);
      tell(job);
      if (!["waiting", "running"].includes(job.state)) {
        events.close();
        resolve(job);
      }
    });
    events.addEventListener("error", () => {
      if (events.readyState !== EventSource.CLOSED) return; // the browser is connecting again by itself
      reject(new Problem({ what: "the server no longer tells how the job goes" }, 0));
    });
  });
}
