// Draws what lies over the picture: outlines of texts, the mark being made, the crosshair.

const GOES = "#d63020";
const STAYS = "#12795f";
const WORDS = "600 12px system-ui, sans-serif";
const SMALL_WORDS = "11px system-ui, sans-serif";

function outline(context, polygon) {
  context.beginPath();
  polygon.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.closePath();
}

/** Outline each text: what stays dashed in green, what goes thinly inside its mask, the one pointed at strongly. */
export function drawTexts(context, viewport, picture, hover) {
  const px = 1 / viewport.scale;
  for (const text of picture.texts || []) {
    const goes = picture.taken(text);
    const strong = text.index === hover;
    outline(context, text.polygon);
    context.lineWidth = (goes ? 1 : 3.5) * px;
    context.strokeStyle = "rgb(255 255 255 / 80%)";
    context.stroke();
    if (goes && !strong) continue;
    context.setLineDash(goes ? [] : [6 * px, 4 * px]);
    context.lineWidth = (strong ? 3 : 1.75) * px;
    context.strokeStyle = goes ? GOES : STAYS;
    context.stroke();
    context.setLineDash([]);
  }
}

/** Write its words and confidence beside each text where there is room, and beside the one pointed at in any case. */
export function drawLabels(context, viewport, picture, hover) {
  const texts = (picture.texts || []).map((text) => ({ text, box: boxOnStage(viewport, text.polygon) }));
  texts.sort((a, b) => (b.text.index === hover) - (a.text.index === hover));
  const taken = texts.map(({ box }) => box);
  context.save();
  context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  context.textBaseline = "middle";
  for (const { text, box } of texts) {
    const strong = text.index === hover;
    if (!strong && (box.w < 28 || box.y + box.h < 0 || box.y > viewport.height || box.x + box.w < 0 || box.x > viewport.width)) continue;
    context.font = strong ? WORDS : SMALL_WORDS;
    const label = `${shortened(text.words || "unread", strong ? 200 : Math.max(10, box.w / 7))}  ${Math.round(100 * text.confidence)} %`;
    const [w, h] = [context.measureText(label).width + 14, strong ? 22 : 18];
    const place = { x: Math.max(4, Math.min(box.x, viewport.width - w - 4)), y: Math.max(4, box.y - h - 5), w, h };
    if (!strong && taken.some((other) => overlap(other, place))) continue;
    taken.push(place);
    drawLabel(context, label, place, picture.taken(text) ? GOES : STAYS, strong);
  }
  context.restore();
}

function drawLabel(context, label, { x, y, w, h }, colour, strong) {
  context.fillStyle = strong ? colour : "rgb(20 16 12 / 66%)";
  context.beginPath();
  context.roundRect(x, y, w, h, 6);
  context.fill();
  context.fillStyle = "#fff";
  context.fillText(label, x + 7, y + h / 2 + 0.5);
}

const shortened = (words, most) => (words.length > most ? `${words.slice(0, most - 1).trimEnd()}…` : words);

function boxOnStage(viewport, polygon) {
  const points = polygon.map((point) => viewport.toStage(point));
  const [xs, ys] = [0, 1].map((i) => points.map((point) => point[i]));
  const [x, y] = [Math.min(...xs), Math.min(...ys)];
  return { x, y, w: Math.max(...xs) - x, h: Math.max(...ys) - y };
}

const overlap = (a, b) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;

/** Outline what is still found in a result. */
export function drawLeft(context, viewport, result) {
  const px = 1 / viewport.scale;
  for (const polygon of result?.residual.left || []) {
    outline(context, polygon);
    for (const [width, colour] of [[3.5, "rgb(255 255 255 / 80%)"], [1.75, GOES]]) {
      context.lineWidth = width * px;
      context.strokeStyle = colour;
      context.stroke();
    }
  }
}

export function drawMark(context, { kind, points, radius, erase }) {
  context.save();
  context.lineJoin = context.lineCap = "round";
  context.fillStyle = context.strokeStyle = erase ? "rgb(255 255 255 / 55%)" : "rgb(214 48 32 / 50%)";
  context.beginPath();
  if (kind === "rectangle") {
    const [[ax, ay], [bx, by]] = points;
    context.fillRect(Math.min(ax, bx), Math.min(ay, by), Math.abs(ax - bx), Math.abs(ay - by));
  } else {
    points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    if (points.length === 1) context.lineTo(points[0][0], points[0][1]);
    if (kind === "lasso") context.fill();
    else {
      context.lineWidth = 2 * radius;
      context.stroke();
    }
  }
  context.restore();
}

/** Show where a mark would begin: the circle of a brush, or a cross. */
export function drawCrosshair(context, viewport, { at: [x, y], radius, cross }) {
  const px = 1 / viewport.scale;
  const path = () => {
    context.beginPath();
    if (radius) context.arc(x, y, radius, 0, 2 * Math.PI);
    if (cross) {
      for (const [dx, dy] of [[9, 0], [0, 9]]) {
        context.moveTo(x - dx * px, y - dy * px);
        context.lineTo(x + dx * px, y + dy * px);
      }
    }
  };
  path();
  context.lineWidth = 3 * px;
  context.strokeStyle = "rgb(0 0 0 / 55%)";
  context.stroke();
  context.lineWidth = 1.25 * px;
  context.strokeStyle = "#fff";
  context.stroke();
}
