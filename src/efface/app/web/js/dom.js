// Builds elements, and writes figures. Strings only ever become text, never markup.

export const byId = (id) => document.getElementById(id);

/** Make an element: `on…` attributes are listeners, true and false set or leave out an attribute. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `/assets/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** Radio buttons that look like one segmented control. Returns a function that checks one of them. */
export function segmented(container, name, options, onchange) {
  container.replaceChildren(
    ...options.map(([value, label, keys]) =>
      el("label", {}, el("input", { type: "radio", name, value, "aria-keyshortcuts": keys, onchange: () => onchange(value) }), el("span", {}, label)),
    ),
  );
  return (value) => {
    for (const input of container.querySelectorAll("input")) input.checked = input.value === value;
  };
}

/** Call `draw` once in the next animation frame, however often it is asked for. */
export function once(draw) {
  let asked = 0;
  return () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      draw();
    });
  };
}

export const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)}\u00a0%`;
export const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

export function bytes(n) {
  if (n == null) return "";
  const step = n < 1e3 ? [1, "B"] : n < 1e6 ? [1e3, "kB"] : n < 1e9 ? [1e6, "MB"] : [1e9, "GB"];
  return `${(n / step[0]).toFixed(n / step[0] < 10 && step[0] > 1 ? 1 : 0)}\u00a0${step[1]}`;
}

/** Say that an element is the current one of its kind, or not. */
export function current(node, kind, is) {
  if (is) node.setAttribute("aria-current", kind);
  else node.removeAttribute("aria-current");
}
