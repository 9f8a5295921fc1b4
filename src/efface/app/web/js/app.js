// What the parts of the page share: the pictures, the one that is shown, and the news that something changed.
import { once } from "./dom.js";

export const app = { about: null, methods: [], pictures: [], current: null, uploading: 0 };

const listeners = [];

export const onChange = (listener) => listeners.push(listener);

/** Let every part show anew what it shows, in the next frame. */
export const changed = once(() => listeners.forEach((listener) => listener()));

/** The method that the rules mean. */
export function chosenMethod(rules) {
  const name = rules.method || app.about?.qualities[rules.quality];
  return app.methods.find((method) => method.name === name) || null;
}
