// The tools of the stage, by pointer, by touch and by keyboard.
import { byId, el, icon } from "./dom.js";
import { drawMask, move, shown, viewport } from "./stage.js";
import { say } from "./tell.js";

export const TOOLS = [
  ["pick", "Choose text", "v", "Click a text to take or keep it; drag to move the picture"],
  ["brush", "Brush", "b", "Paint what goes"],
  ["rectangle", "Rectangle", "r", "Drag over what goes"],
  ["lasso", "Lasso", "l", "Draw around what goes"],
  ["eraser", "Mask eraser", "e", "Rub out what shall stay"],
  ["hand", "Move", "h", "Drag the picture; the space bar does the same"],
];
const STEP = 24; // CSS pixels that an arrow key moves

const layer = byId("mask-layer");
const stage = byId("stage");
const pointers = new Map();
let tool = "pick";
let radius = 20;
let dragging = null; // "mark", "pan" or "pinch"
let pressed = null; // where the pointer went down, while it may still be a click
let spaceHeld = false;
let done = () => {};
let toggled = () => {};

export function connect({ onmark, ontoggle }) {
  [done, toggled] = [onmark, ontoggle];
}

const kindOf = { brush: "brush", eraser: "brush", rectangle: "rectangle", lasso: "lasso" };
const panning = () => tool === "hand" || spaceHeld;

export function choose(name) {
  tool = name;
  stage.dataset.tool = name;
  for (const button of byId("tools").querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === name);
  byId("size").hidden = !["brush", "eraser"].includes(name);
  shown.crosshair = null;
  shown.labels = name === "pick"; // painters see the picture
  drawMask();
}

export function resize(value) {
  radius = Math.min(400, Math.max(1, Math.round(value)));
  byId("brush-size").value = radius;
  byId("brush-size-out").textContent = `${2 * radius} px`;
  if (shown.crosshair) shown.crosshair.radius &&= radius;
  drawMask();
}

export const brushRadius = () => radius;

/** Which text lies at a point of the picture; of those that overlap, the smallest. */
export function textAt([x, y]) {
  const hit = (shown.picture?.texts || []).filter(({ polygon }) => inside(polygon, x, y));
  return hit.sort((a, b) => area(a.polygon) - area(b.polygon))[0] || null;
}

function inside(polygon, x, y) {
  let odd = false;
  polygon.forEach(([ax, ay], i) => {
    const [bx, by] = polygon[(i + 1) % polygon.length];
    if (ay > y !== by > y && x < ax + ((y - ay) * (bx - ax)) / (by - ay)) odd = !odd;
  });
  return odd;
}

function area(polygon) {
  return Math.abs(polygon.reduce((sum, [x, y], i) => {
    const [nx, ny] = polygon[(i + 1) % polygon.length];
    return sum + x * ny - nx * y;
  }, 0));
}

function begin(at, alt) {
  const kind = kindOf[tool];
  const points = kind === "rectangle" ? [at, at] : [at];
  shown.mark = { kind, points, radius: kind === "brush" ? radius : 0, erase: tool === "eraser" || alt };
  dragging = "mark";
}

function extend(at) {
  const { mark } = shown;
  if (mark.kind === "rectangle") mark.points = [mark.points[0], at];
  else mark.points.push(at);
}

function finish() {
  dragging = null;
  const { mark } = shown;
  const [[ax, ay], [bx, by]] = [mark.points[0], mark.points.at(-1)];
  const nothing = mark.kind === "rectangle" ? Math.min(Math.abs(ax - bx), Math.abs(ay - by)) < 1 : mark.kind === "lasso" && mark.points.length < 3;
  if (nothing) shown.mark = null;
  else {
    mark.done = true; // still drawn until the preview holds it
    done({ kind: mark.kind, points: mark.points, radius: mark.radius, erase: mark.erase });
  }
  drawMask();
}

/** Give up the mark being made; false where there is none. */
export function giveUp() {
  if (dragging !== "mark") return false;
  dragging = shown.mark = null;
  drawMask();
  return true;
}

const at = (event) => {
  const { left, top } = layer.getBoundingClientRect();
  return [event.clientX - left, event.clientY - top];
};

layer.addEventListener("pointerdown", (event) => {
  if (!shown.picture || event.button > 1) return;
  layer.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, at(event));
  if (pointers.size === 2) {
    giveUp();
    dragging = "pinch";
    return;
  }
  pressed = at(event);
  const draws = shown.mode === "mask" && kindOf[tool] && !panning() && event.button === 0;
  if (draws) begin(viewport.toPicture(at(event)), event.altKey);
  else dragging = "pan";
  stage.toggleAttribute("data-dragging", dragging === "pan");
  drawMask();
});

layer.addEventListener("pointermove", (event) => {
  const here = at(event);
  const before = pointers.get(event.pointerId);
  if (before) pointers.set(event.pointerId, here);
  if (dragging === "mark") for (const part of event.getCoalescedEvents?.() || [event]) extend(viewport.toPicture(at(part)));
  else if (dragging === "pinch" && before) pinch(event.pointerId, before, here);
  else if (dragging === "pan" && before) {
    if (Math.hypot(here[0] - pressed?.[0], here[1] - pressed?.[1]) > 4) pressed = null;
    if (!pressed) move((view) => view.pan(here[0] - before[0], here[1] - before[1]));
  }
  hover(viewport.toPicture(here));
});

function pinch(id, before, here) {
  const other = [...pointers].find(([key]) => key !== id)?.[1];
  if (!other) return;
  const distance = (point) => Math.max(1, Math.hypot(point[0] - other[0], point[1] - other[1]));
  move((view) => {
    view.zoomTo((view.scale * distance(here)) / distance(before), other);
    view.pan((here[0] - before[0]) / 2, (here[1] - before[1]) / 2);
  });
}

function hover(point) {
  const radiusShown = ["brush", "eraser"].includes(tool) && !panning() ? radius : 0;
  shown.crosshair = radiusShown ? { at: point, radius: radiusShown, cross: false } : null;
  shown.hover = tool === "pick" && shown.mode === "mask" ? textAt(point)?.index ?? null : null;
  stage.toggleAttribute("data-over-text", shown.hover !== null);
  drawMask();
}

for (const name of ["pointerup", "pointercancel"]) {
  layer.addEventListener(name, (event) => {
    pointers.delete(event.pointerId);
    stage.removeAttribute("data-dragging");
    if (dragging === "mark") {
      if (name === "pointerup") finish();
      else giveUp();
    } else if (dragging === "pan" && pressed && tool === "pick" && shown.mode === "mask" && name === "pointerup") {
      const text = textAt(viewport.toPicture(at(event)));
      if (text) toggled(text);
    }
    if (pointers.size === 0) dragging = null;
    pressed = null;
  });
}

layer.addEventListener("pointerleave", () => {
  shown.crosshair = shown.hover = null;
  drawMask();
});

layer.addEventListener("wheel", (event) => {
  if (!shown.picture) return;
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 16 : 1;
  if (event.shiftKey) move((view) => view.pan(-event.deltaY * lines, 0));
  else move((view) => view.zoomTo(view.scale * Math.exp(-event.deltaY * lines * 0.0016), at(event)));
}, { passive: false });

/** Work a tool without a pointer: arrow keys move the crosshair or the picture, Space begins and ends a mark. */
export function key(event) {
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (arrows[event.key]) {
    const step = event.shiftKey ? 4 : STEP;
    step_(arrows[event.key].map((n) => n * step));
    return true;
  }
  if (event.key !== " " || !shown.crosshair?.cross) return false;
  const point = shown.crosshair.at;
  if (tool === "pick") {
    const text = textAt(point);
    if (text) toggled(text);
    else say("no text here");
  } else if (dragging === "mark") {
    finish();
    say("mark made");
  } else {
    begin(point, event.altKey);
    say("mark begun");
  }
  drawMask();
  return true;
}

function step_([dx, dy]) {
  if (panning() || shown.mode !== "mask") return move((view) => view.pan(-dx, -dy));
  const from = viewport.toStage(shown.crosshair?.at || viewport.toPicture([viewport.width / 2, viewport.height / 2]));
  const to = viewport.toPicture([from[0] + dx, from[1] + dy]);
  const { width, height } = shown.picture.info;
  const point = [Math.min(width, Math.max(0, to[0])), Math.min(height, Math.max(0, to[1]))];
  shown.crosshair = { at: point, radius: ["brush", "eraser"].includes(tool) ? radius : 0, cross: true };
  const text = textAt(point);
  if (tool === "pick") {
    if (text && text.index !== shown.hover) say(`${text.words || "unread text"}, ${shown.picture.taken(text) ? "goes" : "stays"}`);
    shown.hover = text?.index ?? null;
  }
  if (dragging === "mark") extend(point);
  drawMask();
}

/** The space bar held over the stage moves the picture with any tool. */
export function holdSpace(held) {
  spaceHeld = held;
  stage.toggleAttribute("data-panning", held);
}

/** Build the toolbar; `actions` are further buttons: [id, label, icon, keys, run]. */
export function build(actions) {
  const button = (id, label, keys, attributes) =>
    el("button", { type: "button", class: "icon", title: `${label} (${keys})`, "aria-label": label, ...attributes }, icon(id));
  byId("tools").replaceChildren(
    ...TOOLS.map(([id, label, keys]) => button(id, label, keys.toUpperCase(), { "data-tool": id, "aria-keyshortcuts": keys, onclick: () => choose(id) })),
    el("span", { class: "bar", role: "separator" }),
    ...actions.map(([id, label, keys, run]) => button(id, label, keys, { id: `do-${id}`, onclick: run })),
  );
  byId("brush-size").addEventListener("input", (event) => resize(Number(event.target.value)));
  choose("pick");
  resize(radius);
}
