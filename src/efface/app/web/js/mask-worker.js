// Paints masks away from the page's thread: the live preview of a part, and the whole mask as a file.
import { squaredDistances } from "./distance.js";
import { paint } from "./raster.js";

const TINT = [214, 48, 32];
const FILL = 0.32;
const LINE = 1.5; // pixels of the screen
const images = new Map();

const jobs = {
  /** Read a mask from a file: what is bright goes, or what is opaque where only alpha says anything. */
  async load({ file, blob, width, height }) {
    const bitmap = await createImageBitmap(blob).catch(() => null);
    if (!bitmap) throw new Error("this is not a picture that the browser can read");
    if (bitmap.width !== width || bitmap.height !== height) {
      throw new Error(`the mask has ${bitmap.width} x ${bitmap.height} pixels, the picture ${width} x ${height}`);
    }
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const pixels = context.getImageData(0, 0, width, height);
    const taken = toAlpha(pixels.data);
    context.putImageData(pixels, 0, 0);
    images.set(file, await createImageBitmap(canvas));
    return { taken };
  },

  /** Show the mask in a region as grown and feathered: a tint, with a line along its edge. */
  preview({ scene, region, scale, grow, feather }) {
    const [w, h] = [region.w, region.h].map((n) => Math.max(1, Math.round(n * scale)));
    const canvas = new OffscreenCanvas(w, h);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.setTransform(scale, 0, 0, scale, -region.x * scale, -region.y * scale);
    paint(context, scene, images);
    const pixels = context.getImageData(0, 0, w, h);
    tint(pixels.data, squaredDistances(pixels.data, w, h), grow * scale, feather * scale);
    context.putImageData(pixels, 0, 0);
    return { bitmap: canvas.transferToImageBitmap(), region };
  },

  /** Write the whole mask, before it grows, as a black and white PNG. */
  async export({ scene, width, height }) {
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    paint(context, scene, images);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    return { blob: await canvas.convertToBlob({ type: "image/png" }) };
  },
};

function toAlpha(data) {
  let transparent = false;
  let colours = 0;
  for (let i = 0, first = -1; i < data.length; i += 4) {
    if (data[i + 3] < 128) transparent = true;
    else {
      const colour = (data[i] << 16) | (data[i + 1] << 8) | data[i + 2];
      if (first < 0) first = colour;
      else if (colour !== first) colours = 1;
    }
  }
  let taken = 0;
  for (let i = 0; i < data.length; i += 4) {
    const luma = 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
    const goes = data[i + 3] >= 128 && ((transparent && !colours) || luma >= 127.5);
    data[i] = data[i + 1] = data[i + 2] = 255;
    data[i + 3] = goes ? 255 : 0;
    taken += goes;
  }
  return taken;
}

function tint(data, squares, grow, feather) {
  const outer = (grow + feather + 2) ** 2;
  for (let i = 0, p = 0; i < squares.length; i++, p += 4) {
    let alpha = 0;
    if (squares[i] <= outer) {
      const d = Math.sqrt(squares[i]) - grow;
      if (d <= 0) alpha = FILL;
      else if (d <= LINE) alpha = 0.95;
      else alpha = Math.max(0, FILL * (1 - d / (feather + 1)));
    }
    data[p] = TINT[0];
    data[p + 1] = TINT[1];
    data[p + 2] = TINT[2];
    data[p + 3] = 255 * alpha;
  }
}

self.addEventListener("message", async ({ data: { ticket, job, ...given } }) => {
  try {
    const answer = await jobs[job](given);
    self.postMessage({ ticket, answer }, answer.bitmap ? [answer.bitmap] : []);
  } catch (error) {
    self.postMessage({ ticket, error: error.message });
  }
});
