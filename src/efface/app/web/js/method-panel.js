// Edges of the mask, and the method that fills it, with its card.
import { app, changed, onChange, chosenMethod } from "./app.js";
import { byId, el, segmented } from "./dom.js";
import { openMethod, size } from "./method-page.js";
import { change, growOf, rules } from "./rules.js";

const QUALITIES = [["fast", "Fast"], ["default", "Default"], ["best", "Best"]];

const checkQuality = segmented(byId("qualities"), "quality", QUALITIES, (quality) => set({ quality, method: null, iterations: null }));

function set(values) {
  change(values);
  changed();
}

byId("grow").addEventListener("input", ({ target }) => set({ grow: target.value < 0 ? null : Number(target.value) }));
byId("feather").addEventListener("input", ({ target }) => set({ feather: Number(target.value) }));
byId("method").addEventListener("change", ({ target }) => set({ method: target.value || null, iterations: null }));
byId("iterations").addEventListener("input", ({ target }) => set({ iterations: Number(target.value) }));

export function listMethods() {
  const usable = app.methods.filter((method) => method.usable);
  byId("method").replaceChildren(
    el("option", { value: "" }, "as the quality says"),
    ...usable.map(({ name, year }) => el("option", { value: name }, `${name} (${year})`)),
  );
}

let carded;

function showCard(method) {
  if (method === carded) return;
  carded = method;
  if (!method) return byId("method-card").replaceChildren();
  const facts = [["Year", method.year], ["Size", size(method)], ["Speed", method.speed]].filter(([, value]) => value);
  byId("method-card").replaceChildren(
    el("h3", {}, method.name),
    el("p", {}, method.good_at || method.title),
    el("dl", {}, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("button", { type: "button", class: "quiet", onclick: () => openMethod(method.name) }, "Card and evidence"),
  );
}

function label(id, value, text) {
  byId(id).value = value;
  byId(id).setAttribute("aria-valuetext", text);
  byId(`${id}-out`).textContent = text;
}

onChange(() => {
  const auto = app.current ? `auto, ${growOf(app.current.info)} px` : "auto";
  label("grow", rules.grow ?? -1, rules.grow === null ? auto : `${rules.grow} px`);
  label("feather", rules.feather, `${rules.feather} px`);
  checkQuality(rules.method ? null : rules.quality);
  byId("method").value = rules.method || "";
  const method = chosenMethod(rules);
  byId("iterations-row").hidden = !method?.iterations;
  if (method?.iterations) label("iterations", rules.iterations ?? method.iterations, String(rules.iterations ?? method.iterations));
  showCard(method);
});
