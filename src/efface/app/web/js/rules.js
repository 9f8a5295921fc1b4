// The rules that all pictures share, and what they decide about a text that was found.
import * as api from "./api.js";

export const rules = {
  min_confidence: 0.5,
  only: "",
  keep: "",
  grow: null, // null: as it suits the picture
  feather: 2,
  quality: "default",
  method: null,
  iterations: null,
};

const SOME = 2000; // words in one question
/** Words -> why the patterns let them stay; the server says it, so that what is shown is what a job does. */
let stays = new Map();
let patterns = { only: "", keep: "" };
let wishes = 0;

export function change(values) {
  Object.assign(rules, values);
}

async function ask({ only, keep }, words) {
  if (!only && !keep) return new Map();
  const all = [...new Set(words)];
  const reasons = [];
  do {
    const some = all.slice(reasons.length, reasons.length + SOME);
    reasons.push(...(await api.choose({ words: some, only: only || null, keep: keep ? [keep] : [] })));
  } while (reasons.length < all.length);
  return new Map(all.map((word, i) => [word, reasons[i]]));
}

/** Take up patterns, once it is known what they say of `words()`. A wrong one is an error, and the rules stay. */
export async function usePatterns(wanted, words) {
  const wish = ++wishes;
  let found;
  do found = await ask(wanted, words());
  while (found.size && !words().every((word) => found.has(word))); // a picture came in meanwhile
  if (wish !== wishes) return;
  [patterns, stays] = [wanted, found];
  change(wanted);
}

/** Learn what the patterns say of words that come in. */
export async function learn(words) {
  let asked;
  let found;
  while (asked !== patterns) [asked, found] = [patterns, await ask(patterns, words)];
  for (const [word, reason] of found) stays.set(word, reason);
}

/** Say why a text stays; an empty answer means that the rules take it. */
export function whyStays(text) {
  if (text.confidence < rules.min_confidence) return "not sure enough";
  return stays.get(text.words) || "";
}

/** By how many pixels the mask of a picture grows. */
export function growOf({ width, height }) {
  return rules.grow ?? Math.max(2, Math.round(0.005 * Math.min(width, height)));
}
