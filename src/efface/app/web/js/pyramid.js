// Draws a picture of any size: a small view of the whole, and tiles at 1:1 where that is too coarse.
import { image } from "./api.js";
import { complain } from "./tell.js";

const SIDE = 2048; // pixels of the longest side of the view
const TILE = 768;
const MOST = 60; // tiles that are kept

export class Pyramid {
  /** `url` is the rendition's address; `changed` is called whenever more can be drawn. */
  constructor(url, { width, height }, changed) {
    Object.assign(this, { url, width, height, changed, view: null, tiles: new Map(), gone: new AbortController() });
    this.loaded = this.load().catch((error) => error.name === "AbortError" || complain(error));
  }

  address(query) {
    return `${this.url}${this.url.includes("?") ? "&" : "?"}${new URLSearchParams(query)}`;
  }

  async load() {
    this.view = await image(this.address({ size: SIDE }), this.gone.signal);
    this.changed();
  }

  close() {
    this.gone.abort();
    this.view?.close();
    for (const tile of this.tiles.values()) tile.bitmap?.close();
    this.tiles.clear();
    this.view = null;
  }

  draw(context, viewport) {
    if (!this.view) return;
    context.imageSmoothingEnabled = viewport.zoom < 3;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.view, 0, 0, this.width, this.height);
    const coarse = this.view.width < this.width && viewport.zoom > (1.15 * this.view.width) / this.width;
    if (!coarse) return;
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
