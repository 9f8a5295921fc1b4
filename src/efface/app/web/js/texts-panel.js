// The texts of the picture: a list that says all that the outlines say, and the rules that choose among them.
import { app, changed, onChange } from "./app.js";
import { byId, el, percent } from "./dom.js";
import { change, rules, usePatterns } from "./rules.js";
import { drawMask, shown } from "./stage.js";

let rows = [];
let listed = null; // the texts that the rows are for

export function toggle(text) {
  const picture = app.current;
  picture.choose({ [text.index]: !picture.taken(text) });
  changed();
}

function row(text) {
  const box = el("input", { type: "checkbox", onchange: () => toggle(text) });
  const why = el("small", {});
  const node = el("li", { onpointerenter: () => light(text.index), onpointerleave: () => light(null), onfocusin: () => light(text.index), onfocusout: () => light(null) },
    el("label", {}, box, el("span", { class: "words" }, text.words || "unread"), why, el("span", { class: "sure" }, percent(text.confidence))),
  );
  return { text, node, box, why };
}

function light(index) {
  shown.hover = index;
  drawMask();
}

function all(goes) {
  if (!app.current?.texts) return;
  app.current.choose(Object.fromEntries(app.current.texts.map((text) => [text.index, goes])));
  changed();
}

function count(picture) {
  if (!picture) return "";
  if (!picture.texts) return picture.state === "finding" ? "looking …" : "not known";
  return picture.texts.length ? `${picture.texts.length} found, ${picture.takenTexts.length} to erase` : "none found";
}

onChange(() => {
  const picture = app.current;
  const texts = picture?.texts || null;
  if (texts !== listed) {
    listed = texts;
    rows = (texts || []).map(row);
    byId("texts").replaceChildren(...rows.map(({ node }) => node));
  }
  for (const { text, node, box, why } of rows) {
    box.checked = picture.taken(text);
    node.classList.toggle("stays", !box.checked);
    why.textContent = picture.why(text);
  }
  byId("texts-count").textContent = count(picture);
  byId("texts-buttons").hidden = !rows.length;
  byId("by-rules").disabled = !Object.keys(picture?.edits.choices || {}).length;
});

byId("take-all").addEventListener("click", () => all(true));
byId("keep-all").addEventListener("click", () => all(false));
byId("by-rules").addEventListener("click", () => {
  app.current?.forgetChoices();
  changed();
});

const confidence = byId("confidence");
confidence.value = rules.min_confidence;
confidence.addEventListener("input", () => {
  change({ min_confidence: Number(confidence.value) });
  showConfidence();
  changed();
});

function showConfidence() {
  const least = percent(rules.min_confidence);
  byId("confidence-out").textContent = `≥ ${least}`;
  confidence.setAttribute("aria-valuetext", `at least ${least}`);
}
showConfidence();

const fields = [byId("only"), byId("keep")];
const allWords = () => app.pictures.flatMap(({ texts }) => (texts || []).map(({ words }) => words));

async function readPatterns() {
  const [only, keep] = fields.map(({ value }) => value);
  let wrong = "";
  try {
    await usePatterns({ only, keep }, allWords);
  } catch (error) {
    wrong = `${error.message}.`;
  }
  if (fields.some(({ value }, i) => value !== [only, keep][i])) return; // typed on since
  for (const field of fields) field.setAttribute("aria-invalid", Boolean(wrong && field.value));
  byId("pattern-wrong").textContent = wrong;
  changed();
}

for (const field of fields) field.addEventListener("input", readPatterns);
