// Paints masks away from the page's thread: the live preview of a part, and the whole mask as a file.
import { squaredDistances } from "./distance.js";
import { paint } from "./raster.js";

const TINT = [214, 48, 32];
const FILL = 0.32;
const LINE = 1.5; // pixels of the screen
const images = new Map();

const jobs = {
  /** Take in a mask from the server, whose levels are 0 and 255, as a stencil. */
  async load({ file, blob }) {
    const bitmap = await createImageBitmap(blob);
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i];
    context.putImageData(pixels, 0, 0);
    images.set(file, canvas.transferToImageBitmap());
    return {};
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
