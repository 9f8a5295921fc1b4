// The catalogue: every method as a card, searched and filtered here.
import { app } from "./app.js";
import { byId, el, plural } from "./dom.js";
import { openMethod, size } from "./method-page.js";

const SIZES = [["", "Any size"], ["1e6", "Weights up to 1 MB"], ["1e7", "Weights up to 10 MB"], ["Infinity", "Larger weights"], ["none", "No weights here"]];

export function listCatalogue() {
  const tasks = [...new Set(app.methods.map(({ task }) => task))].sort();
  const years = [...new Set(app.methods.map(({ year }) => year))].sort((a, b) => b - a);
  const options = (pairs) => pairs.map(([value, label]) => el("option", { value }, label));
  byId("by-task").replaceChildren(...options([["", "All tasks"], ...tasks.map((task) => [task, task])]));
  byId("by-year").replaceChildren(...options([["", "All years"], ...years.map((year) => [year, year])]));
  byId("by-size").replaceChildren(...options(SIZES));
  show();
}

function ofSize({ weight_bytes: n }, wanted) {
  if (!wanted) return true;
  if (wanted === "none") return n == null;
  return n != null && (wanted === "Infinity" ? n > 1e7 : n <= Number(wanted));
}

function matches(method) {
  const text = [method.name, method.title, method.paper, method.task, method.good_at].join(" ").toLowerCase();
  const words = byId("find").value.toLowerCase().split(/\s+/);
  return words.every((word) => text.includes(word))
    && (!byId("by-task").value || method.task === byId("by-task").value)
    && (!byId("by-year").value || String(method.year) === byId("by-year").value)
    && ofSize(method, byId("by-size").value)
    && (!byId("by-usable").checked || method.usable);
}

function card(method) {
  return el("li", {}, el("button", { type: "button", class: "card", onclick: () => openMethod(method.name) },
    el("span", { class: "kicker" }, `${method.task} · ${method.year}`),
    el("strong", {}, method.name),
    el("span", { class: "title" }, method.title),
    el("span", { class: "good" }, method.good_at),
    el("span", { class: "facts" }, el("span", {}, method.paper), size(method) && el("span", {}, size(method)), method.usable && el("span", { class: "badge yes" }, "usable here")),
  ));
}

function show() {
  const found = app.methods.filter(matches);
  byId("cards").replaceChildren(...found.map(card));
  byId("catalogue-count").textContent = found.length ? plural(found.length, "method") : "No method is like that.";
}

for (const id of ["find", "by-task", "by-year", "by-size", "by-usable"]) byId(id).addEventListener("input", show);
