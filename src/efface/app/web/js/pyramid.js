// Draws a picture of any size: views of the whole, each half of the one before, and tiles at 1:1 where those are too coarse.
import { image } from "./api.js";
import { complain } from "./tell.js";

const SIDE = 2048; // pixels of the longest side of the first view
const SMALLEST = 512; // no view is made smaller than that
const TILE = 768;
const MOST = 60; // tiles that are kept

export class Pyramid {
  /** `url` is the rendition's address; `changed` is called whenever more can be drawn. */
  constructor(url, { width, height }, changed) {
    Object.assign(this, { url, width, height, changed, views: [], tiles: new Map(), gone: new AbortController() });
    this.loaded = this.load().catch((error) => error.name === "AbortError" || complain(error));
  }

  address(query) {
    return `${this.url}${this.url.includes("?") ? "&" : "?"}${new URLSearchParams(query)}`;
  }

  async load() {
    for (let view = await image(this.address({ size: SIDE }), this.gone.signal); view; view = await half(view)) {
      if (this.gone.signal.aborted) return view.close();
      this.views.push(view);
      this.changed();
    }
  }

  /** Whether nothing that was asked for is still on its way. */
  get settled() {
    return this.ready && [...this.tiles.values()].every(({ bitmap }) => bitmap);
  }

  get ready() {
    return this.views.length > 0;
  }

  close() {
    this.gone.abort();
    for (const view of this.views) view.close();
    for (const tile of this.tiles.values()) tile.bitmap?.close();
    this.tiles.clear();
    this.views = [];
  }

  draw(context, viewport) {
    if (!this.ready) return;
    const [largest] = this.views;
    const needed = viewport.zoom * this.width;
    context.imageSmoothingEnabled = viewport.zoom < 3;
    context.drawImage(this.views.findLast((view) => view.width >= needed) || largest, 0, 0, this.width, this.height);
    if (largest.width === this.width || needed <= 1.15 * largest.width) return;
    const { x, y, w, h } = viewport.region;
    for (let top = y - (y % TILE); top < y + h; top += TILE) {
      for (let left = x - (x % TILE); left < x + w; left += TILE) this.drawTile(context, left, top);
    }
  }

  drawTile(context, x, y) {
    const key = `${x},${y}`;
    const tile = this.tiles.get(key) || this.fetch(key, x, y);
    this.tiles.delete(key);
    this.tiles.set(key, tile); // the last in the map was used last
    if (tile.bitmap) context.drawImage(tile.bitmap, x, y);
  }

  fetch(key, x, y) {
    const tile = { bitmap: null };
    const [w, h] = [Math.min(TILE, this.width - x), Math.min(TILE, this.height - y)];
    image(this.address({ x, y, w, h }), this.gone.signal).then(
      (bitmap) => {
        tile.bitmap = bitmap;
        this.changed();
      },
      () => this.tiles.delete(key), // asked for again when it is drawn again
    );
    for (const [old, { bitmap }] of this.tiles) {
      if (this.tiles.size < MOST) break;
      bitmap?.close();
      this.tiles.delete(old);
    }
    return tile;
  }
}

/** Make a view of half the size, away from the page's thread; null where it would be too small. */
async function half(view) {
  const [width, height] = [view.width, view.height].map((n) => Math.round(n / 2));
  if (Math.max(width, height) < SMALLEST || Math.min(width, height) < 1) return null;
  return createImageBitmap(view, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
}
