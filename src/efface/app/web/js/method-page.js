// A method's page: card, hyper-parameters, weights, and its claim as measured.
import * as api from "./api.js";
import { bytes, byId, el, icon } from "./dom.js";
import { complain } from "./tell.js";

const dialog = byId("method-page");
const HIDDEN = ["title", "paper", "year", "task", "good_at", "speed"]; // said elsewhere on the page

export const size = (method) => (method.weight_bytes == null ? "" : bytes(method.weight_bytes));

export function paper(text) {
  const link = (id) => el("a", { href: `https://arxiv.org/abs/${id.slice(6)}`, rel: "noopener noreferrer", target: "_blank" }, id);
  return text.split(/(arXiv:[\d.]*\d)/).map((part, i) => (i % 2 ? link(part) : part));
}

export async function openMethod(name) {
  try {
    const page = await api.method(name);
    dialog.replaceChildren(...build(page));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  } catch (error) {
    complain(error, name);
  }
}

function build(page) {
  const card = Object.entries(page.card).filter(([key, value]) => !HIDDEN.includes(key) && value !== "" && String(value) !== "");
  return [
    el("button", { type: "button", class: "icon close", "aria-label": "Close", onclick: () => dialog.close() }, icon("close")),
    el("p", { class: "kicker" }, page.task, " · ", String(page.year), " · ", paper(page.paper)),
    el("h2", { id: "method-page-title" }, page.name),
    el("p", { class: "lead" }, page.title),
    el("p", {}, page.good_at),
    page.speed ? el("p", {}, page.speed) : "",
    evidence(page),
    el("h3", {}, "What it does"),
    ...page.doc.split(/\n\s*\n/).map(paragraph),
    el("h3", {}, "Card"),
    el("dl", { class: "table" }, card.map(([key, value]) => [el("dt", {}, key.replaceAll("_", " ")), el("dd", {}, Array.isArray(value) ? value.join(", ") : String(value))])),
    ...weights(page.weights),
    page.params.length ? el("h3", {}, "Hyper-parameters") : "",
    page.params.length ? params(page.params) : "",
  ];
}

/** A paragraph of a docstring, in which ``double quotes`` mark code. */
function paragraph(text) {
  const parts = text.replace(/\s*\n\s*/g, " ").split("``");
  return el("p", {}, parts.map((part, i) => (i % 2 ? el("code", {}, part) : part)));
}

function weights(folders) {
  const total = (card) => Object.values(card.files || {}).reduce((sum, file) => sum + (file.bytes || 0), 0);
  const rows = Object.entries(folders).map(([name, card]) => [el("dt", {}, name), el("dd", {}, bytes(total(card)))]);
  return rows.length ? [el("h3", {}, "Weights that come along"), el("dl", { class: "table" }, rows)] : [];
}

function params(list) {
  const range = ({ low, high, choices }) => choices ? choices.join(", ") : low == null && high == null ? "" : `${low ?? "…"} to ${high ?? "…"}`;
  const cells = (tag, values) => el("tr", {}, values.map((value) => el(tag, {}, String(value))));
  return el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Hyper-parameters" }, el("table", {},
    el("thead", {}, cells("th", ["name", "default", "range", "is"])),
    el("tbody", {}, list.map((param) => cells("td", [param.name, JSON.stringify(param.default), range(param), param.help]))),
  ));
}

function evidence({ result, plot, name }) {
  if (!result) return el("p", { class: "fine" }, "No evidence is stored here; measure it with ", el("code", {}, `efface check ${name}`), ".");
  return el("section", { class: "evidence" },
    el("h3", {}, "Evidence ", el("span", { class: result.shown ? "badge yes" : "badge no" }, result.shown ? "shown" : "not shown")),
    el("p", {}, result.claim.statement),
    ...result.effects.map(effect),
    plot ? el("img", { class: "plot", src: plot, alt: `Plot of what was measured for ${name}` }) : "",
    el("p", { class: "fine" }, `Beside ${result.claim.baseline}. ${result.data}. ${result.seeds.length} seeds, ${Math.round(result.seconds)} s, ${result.machine}.`),
  );
}

/** One effect: a bar for each arm, as long as its mean over the seeds, with a tick for each seed. */
function effect({ name, rule, measured, shown, unit, note }) {
  const most = Math.max(...Object.values(measured).flat().map(Math.abs), 1e-12);
  const bars = Object.entries(measured).map(([arm, values]) => {
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const bar = el("span", { class: "bar" }, values.map((value) => placed(el("i", {}), Math.abs(value) / most)));
    bar.style.setProperty("--length", Math.abs(mean) / most);
    return el("div", { class: "arm" }, el("span", {}, arm), bar, el("span", { class: "mean" }, `${Number(mean.toPrecision(3))} ${unit}`));
  });
  return el("figure", { class: "effect" },
    el("figcaption", {}, el("b", {}, name), el("span", { class: shown ? "badge yes" : "badge no" }, shown ? "shown" : "not shown"), el("small", {}, rule)),
    ...bars,
    note ? el("p", { class: "fine" }, note) : "",
  );
}

function placed(tick, share) {
  tick.style.setProperty("--at", share);
  return tick;
}

export const closeMethod = () => dialog.close();

dialog.addEventListener("close", () => {
  if (location.hash.includes("/")) history.replaceState(null, "", "#catalogue");
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // the backdrop
});
