// Draws the stage: the picture, its result beside the split, the mask, the outlines of texts, and the mark being made.
import { byId, once } from "./dom.js";
import { previewMask } from "./masks.js";
import { drawCrosshair, drawLabels, drawLeft, drawMark, drawTexts } from "./overlay.js";
import { Pyramid } from "./pyramid.js";
import { growOf, rules } from "./rules.js";
import { Viewport } from "./viewport.js";

/** Room for the tools around a fitted picture, beside it and on narrow screens below it. */
const WIDE = { left: 84, top: 28, right: 28, bottom: 28 };
const NARROW = { left: 12, top: 60, right: 12, bottom: 66 };
const BUSIEST = 1.5e6; // pixels of a mask preview

export const viewport = new Viewport();
/** What is shown beside the picture itself; tools, the texts list and the split write here and then ask to draw. */
export const shown = { picture: null, mode: "mask", split: 0.5, hover: null, labels: true, mark: null, crosshair: null, peek: false };

const stage = byId("stage");
const below = byId("picture-layer");
const above = byId("mask-layer");
let before = null;
let after = null;
let leaving = null; // the result that was shown before, until the next one has arrived
let preview = null;
let computing = false;
let outdated = false;

export const drawPicture = once(() => {
  const context = start(below);
  if (!shown.picture) return;
  const result = after?.ready ? after : leaving;
  const useAfter = result && shown.mode !== "mask" && !shown.peek;
  if (!useAfter || shown.mode === "compare") before?.draw(context, viewport);
  if (useAfter) {
    context.save();
    if (shown.mode === "compare") clipRight(context);
    result.draw(context, viewport);
    context.restore();
  }
  showBusy();
});

export const drawMask = once(() => {
  const context = start(above);
  if (!shown.picture || shown.peek) return;
  if (shown.mode !== "mask") {
    drawLeft(context, viewport, shown.picture.result);
    return;
  }
  if (preview) {
    const { x, y, w, h } = preview.region;
    context.drawImage(preview.bitmap, x, y, w, h);
  }
  showBusy();
  drawTexts(context, viewport, shown.picture, shown.hover);
  if (shown.labels) drawLabels(context, viewport, shown.picture, shown.hover);
  if (shown.mark) drawMark(context, shown.mark);
  if (shown.crosshair) drawCrosshair(context, viewport, shown.crosshair);
});

function showBusy() {
  stage.ariaBusy = Boolean(shown.picture) && (!before.settled || Boolean(after && !after.settled) || computing);
}

/** Draw all again, and the mask's preview anew. */
export function redraw() {
  drawPicture();
  drawMask();
  refresh();
}

/** Show a picture, or the same with another result. */
export function present(picture, resultUrl) {
  if (picture !== shown.picture) {
    before?.close();
    preview?.bitmap.close();
    leave(after);
    leave(null);
    [before, after, preview] = [null, null, null];
    shown.picture = picture;
    if (picture) {
      before = new Pyramid(picture.info.view, picture.info, drawPicture);
      viewport.show(picture.info);
    }
  }
  if (resultUrl !== after?.url) {
    leave(after);
    after = resultUrl ? new Pyramid(resultUrl, picture.info, drawPicture) : null;
    if (after) after.loaded.then(() => leave(null));
    else leave(null);
  }
  redraw();
}

/** Let a result go only when the next one goes, or has arrived. */
function leave(result) {
  if (leaving !== result) leaving?.close();
  leaving = result;
}

function start(canvas) {
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  viewport.apply(context);
  return context;
}

function clipRight(context) {
  const [x] = viewport.toPicture([shown.split * viewport.width, 0]);
  const [left, top] = viewport.toPicture([0, 0]);
  context.beginPath();
  context.rect(Math.max(x, left), top, viewport.width / viewport.scale + 1, viewport.height / viewport.scale + 1);
  context.clip();
}

/** Compute the preview of the part in sight; while one is computed, only the last wish is remembered. */
async function refresh() {
  const picture = shown.picture;
  if (!picture || shown.mode !== "mask") return;
  if (computing) {
    outdated = true;
    return;
  }
  computing = true;
  outdated = false;
  const region = viewport.region;
  const scale = Math.min(viewport.zoom, 1, Math.sqrt(BUSIEST / Math.max(1, region.w * region.h)));
  const given = { scene: picture.scene, region, scale, grow: growOf(picture.info), feather: rules.feather };
  const next = region.w && region.h ? await previewMask(given).catch(() => null) : null;
  computing = false;
  if (next && picture === shown.picture) {
    preview?.bitmap.close();
    preview = next;
    if (shown.mark?.done) shown.mark = null; // it is part of the preview now
    drawMask();
  } else {
    next?.bitmap.close();
  }
  if (outdated) refresh();
}

new ResizeObserver(() => {
  const { clientWidth, clientHeight } = stage;
  for (const canvas of [below, above]) {
    canvas.width = Math.round(clientWidth * devicePixelRatio);
    canvas.height = Math.round(clientHeight * devicePixelRatio);
  }
  viewport.insets = matchMedia("(width < 860px)").matches ? NARROW : WIDE;
  viewport.resize(clientWidth, clientHeight);
  redraw();
  stage.dispatchEvent(new CustomEvent("moved"));
}).observe(stage);

/** Change the viewport and draw what follows from it. */
export function move(change) {
  change(viewport);
  redraw();
  stage.dispatchEvent(new CustomEvent("moved"));
}
