// Draws what lies over the picture: outlines of texts, the mark being made, the crosshair.

const GOES = "#d63020";
const STAYS = "#12795f";
const WORDS = '600 12px system-ui, sans-serif';

function outline(context, polygon) {
  context.beginPath();
  polygon.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.closePath();
}

/** Outline each text: what stays dashed in green, what goes thinly inside its mask. The one pointed at says its words. */
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
  const text = (picture.texts || []).find(({ index }) => index === hover);
  if (text) drawWords(context, viewport, text, picture.taken(text));
}

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

function drawWords(context, viewport, text, goes) {
  const label = `${text.words || "unread"}  ${Math.round(100 * text.confidence)} %`;
  const [x, y] = viewport.toStage([
    Math.min(...text.polygon.map((p) => p[0])),
    Math.min(...text.polygon.map((p) => p[1])),
  ]);
  context.save();
  context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  context.font = WORDS;
  const width = context.measureText(label).width + 16;
  const left = Math.max(4, Math.min(x, viewport.width - width - 4));
  const top = Math.max(4, y - 28);
  context.fillStyle = goes ? GOES : STAYS;
  context.beginPath();
  context.roundRect(left, top, width, 22, 6);
  context.fill();
  context.fillStyle = "#fff";
  context.textBaseline = "middle";
  context.fillText(label, left + 8, top + 11.5);
  context.restore();
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
