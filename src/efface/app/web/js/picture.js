// One picture of the strip: what is known of it, what its user decided, and what became of it.
import { History } from "./history.js";
import { growOf, rules, whyStays } from "./rules.js";

let marks = 0;
const NOTHING = { marks: [], choices: {} };

export class Picture {
  /** `info` is the server's description. */
  constructor(info) {
    Object.assign(this, { info, texts: null, job: null, jobKey: "", iteration: null, ticket: null });
    this.state = "finding"; // finding, ready, waiting, running, done, failed
    this.progress = 0;
    this.doing = "";
    /** `marks` in the order they were made; `choices`: index of a text -> whether it goes, whatever the rules say. */
    this.history = new History(NOTHING);
  }

  get edits() {
    return this.history.state;
  }

  get working() {
    return this.state === "waiting" || this.state === "running";
  }

  get result() {
    return this.job?.state === "done" ? this.job.result : null;
  }

  /** Whether the result is known to be no longer what the settings would give. */
  get stale() {
    return this.result !== null && this.jobKey !== null && this.jobKey !== this.key;
  }

  get key() {
    return JSON.stringify([this.wire(), this.edits.marks.map((mark) => mark.id)]);
  }

  taken(text) {
    return this.edits.choices[text.index] ?? whyStays(text) === "";
  }

  /** Why a text stays, or goes although the rules keep it; empty where there is nothing to say. */
  why(text) {
    const reason = whyStays(text);
    if (this.taken(text)) return reason && "your choice";
    return reason || "kept by you";
  }

  get takenTexts() {
    return (this.texts || []).filter((text) => this.taken(text));
  }

  /** What the mask is made of, before it grows: outlines of texts, then marks. */
  get scene() {
    return { polygons: this.takenTexts.map((text) => text.polygon), marks: this.edits.marks };
  }

  choose(choices) {
    this.history.push({ ...this.edits, choices: { ...this.edits.choices, ...choices } });
  }

  forgetChoices() {
    this.history.push({ ...this.edits, choices: {} });
  }

  mark(mark) {
    this.history.push({ ...this.edits, marks: [...this.edits.marks, { ...mark, id: ++marks }] });
  }

  clear() {
    this.history.push({ marks: [], choices: Object.fromEntries((this.texts || []).map((text) => [text.index, false])) });
  }

  /** Whether something was rubbed out: then only the mask as a whole says what goes. */
  get whole() {
    return this.texts !== null && this.edits.marks.some((mark) => mark.erase);
  }

  /** The marks that are sent as the picture's painted mask, or null where the rules say everything. */
  get painted() {
    if (this.whole) return this.scene;
    return this.edits.marks.length ? { polygons: [], marks: this.edits.marks } : null;
  }

  /** The rules as the server takes them. */
  wire() {
    const chosen = (goes) => Object.keys(this.edits.choices).filter((i) => this.edits.choices[i] === goes).map(Number);
    const whole = this.whole;
    return {
      texts: !whole,
      take: whole ? [] : chosen(true),
      leave: whole ? [] : chosen(false),
      mask: this.painted !== null,
      min_confidence: rules.min_confidence,
      only: rules.only || null,
      keep: rules.keep ? [rules.keep] : [],
      grow: this.painted === null ? rules.grow : growOf(this.info),
      feather: rules.feather,
      quality: rules.quality,
      method: rules.method,
      iterations: rules.iterations,
    };
  }
}
