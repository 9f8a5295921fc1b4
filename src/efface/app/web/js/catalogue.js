// The catalogue: every method as a card, by what it takes away, searched and filtered here.
import { app } from "./app.js";
import { byId, el, plural } from "./dom.js";
import { size } from "./method-page.js";

const FILTERS = ["find", "by-task", "by-year", "by-size", "by-usable"];
const SIZES = [["", "Any size"], ["1e6", "Weights up to 1 MB"], ["1e7", "Weights up to 10 MB"], ["Infinity", "Larger weights"], ["none", "No weights along"]];

const count = (key) => (counts, method) => counts.set(method[key], (counts.get(method[key]) || 0) + 1);

export function listCatalogue() {
  const tasks = [...app.methods.reduce(count("task"), new Map())].sort();
  const years = [...app.methods.reduce(count("year"), new Map())].sort(([a], [b]) => b - a);
  const options = (all, counted) => [["", all], ...counted.map(([value, n]) => [value, `${value} (${n})`])];
  fill("by-task", options("All tasks", tasks));
  fill("by-year", options("All years", years));
  fill("by-size", SIZES);
  show();
}

function fill(id, pairs) {
  byId(id).replaceChildren(...pairs.map(([value, label]) => el("option", { value }, label)));
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
  const { name, title, paper, year, good_at: good, kind, usable } = method;
  return el("li", {}, el("a", { class: "card", href: `#catalogue/${encodeURIComponent(name)}` },
    el("span", { class: "kicker" }, `${year} · ${paper}`),
    el("strong", {}, name),
    el("span", { class: "title" }, title),
    el("span", { class: "good" }, good),
    el("span", { class: "facts" },
      usable && el("span", { class: "badge yes" }, "usable here"),
      el("span", {}, kind === "Network" ? size(method) || "no weights along" : "changes a model of yours")),
  ));
}

function group([task, methods]) {
  return el("section", {}, el("h2", {}, task, " ", el("small", {}, String(methods.length))), el("ul", { class: "cards" }, methods.map(card)));
}

function show() {
  const found = app.methods.filter(matches);
  const groups = [...Map.groupBy(found, ({ task }) => task)];
  const usable = (methods) => methods.some((method) => method.usable);
  groups.sort(([a, these], [b, those]) => usable(those) - usable(these) || a.localeCompare(b));
  byId("cards").replaceChildren(...groups.map(group));
  byId("catalogue-count").textContent = found.length ? plural(found.length, "method") : "No method is like that.";
}

for (const id of FILTERS) byId(id).addEventListener("input", show);
