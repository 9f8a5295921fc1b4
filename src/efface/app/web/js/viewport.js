// Where the picture lies on the stage: screen = picture * scale + offset, in CSS pixels.

export class Viewport {
  constructor() {
    Object.assign(this, { scale: 1, x: 0, y: 0, width: 1, height: 1, picture: { width: 1, height: 1 }, fitted: true });
    this.insets = { left: 24, top: 24, right: 24, bottom: 24 }; // room that the fitted picture leaves
  }

  /** Screen pixels of the device that show one pixel of the picture. */
  get zoom() {
    return this.scale * devicePixelRatio;
  }

  resize(width, height) {
    const [dx, dy] = [(width - this.width) / 2, (height - this.height) / 2];
    Object.assign(this, { width, height });
    if (this.fitted) this.fit();
    else this.pan(dx, dy);
  }

  show(picture) {
    this.picture = picture;
    this.fit();
  }

  fit() {
    const { width, height } = this.picture;
    const { left, top, right, bottom } = this.insets;
    const room = [this.width - left - right, this.height - top - bottom].map((n) => Math.max(n, 16));
    this.scale = Math.min(room[0] / width, room[1] / height, 4 / devicePixelRatio);
    this.x = left + (room[0] - width * this.scale) / 2;
    this.y = top + (room[1] - height * this.scale) / 2;
    this.fitted = true;
  }

  pan(dx, dy) {
    const { width, height } = this.picture;
    const keep = 64; // some of the picture always stays in sight
    this.x = Math.min(this.width - keep, Math.max(keep - width * this.scale, this.x + dx));
    this.y = Math.min(this.height - keep, Math.max(keep - height * this.scale, this.y + dy));
    this.fitted = false;
  }

  /** Zoom to `scale`, so that the point of the stage stays where it is. */
  zoomTo(scale, [px, py] = [this.width / 2, this.height / 2]) {
    const smallest = 16 / Math.max(this.picture.width, this.picture.height);
    const next = Math.min(32, Math.max(smallest, scale));
    this.x = px - ((px - this.x) * next) / this.scale;
    this.y = py - ((py - this.y) * next) / this.scale;
    this.scale = next;
    this.pan(0, 0);
  }

  toPicture([px, py]) {
    return [(px - this.x) / this.scale, (py - this.y) / this.scale];
  }

  toStage([x, y]) {
    return [x * this.scale + this.x, y * this.scale + this.y];
  }

  /** The part of the picture in sight, in whole pixels. */
  get region() {
    const [left, top] = this.toPicture([0, 0]).map((n) => Math.max(0, Math.floor(n)));
    const [right, bottom] = this.toPicture([this.width, this.height]).map(Math.ceil);
    const w = Math.min(this.picture.width, right) - left;
    const h = Math.min(this.picture.height, bottom) - top;
    return { x: left, y: top, w: Math.max(0, w), h: Math.max(0, h) };
  }

  /** Let a canvas of the stage draw in pixels of the picture; whole pixels of the screen keep 1:1 sharp. */
  apply(context) {
    const [x, y] = [this.x, this.y].map((n) => Math.round(n * devicePixelRatio));
    context.setTransform(this.zoom, 0, 0, this.zoom, x, y);
  }
}
