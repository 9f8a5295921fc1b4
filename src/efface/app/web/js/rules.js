// The rules that all pictures share, and what they decide about a text that was found.

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

/** Read a regular expression as Python writes it: `(?i)` in front ignores case. */
function pattern(text) {
  if (!text) return null;
  const [, flags = "", source] = /^(?:\(\?([ims]+)\))?(.*)$/s.exec(text);
  return new RegExp(source, `u${flags}`);
}

let compiled = { only: null, keep: null };

/** Change rules; a regular expression that is none is an error, and the rules stay as they were. */
export function change(values) {
  const next = { ...rules, ...values };
  const patterns = { only: pattern(next.only), keep: pattern(next.keep) };
  Object.assign(rules, values);
  compiled = patterns;
}

/** Say why a text stays; an empty answer means that the rules take it. */
export function whyStays(text) {
  if (text.confidence < rules.min_confidence) return "not sure enough";
  if (compiled.keep?.test(text.words)) return "words to keep";
  if (compiled.only && !compiled.only.test(text.words)) return "other words";
  return "";
}

/** By how many pixels the mask of a picture grows. */
export function growOf({ width, height }) {
  return rules.grow ?? Math.max(2, Math.round(0.005 * Math.min(width, height)));
}
