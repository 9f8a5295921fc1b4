// Exact Euclidean distances to a mask (Felzenszwalb and Huttenlocher, Distance Transforms of Sampled Functions, 2012).

const FAR = 1e9;

/** Squared distance of every pixel to the nearest one whose alpha is at least half; `rgba` has w * h pixels. */
export function squaredDistances(rgba, w, h) {
  const squares = new Float32Array(w * h);
  for (let x = 0; x < w; x++) column(rgba, squares, x, w, h);
  const row = new Float32Array(w);
  const vertex = new Int32Array(w);
  const border = new Float32Array(w + 1);
  for (let y = 0; y < h; y++) envelope(squares.subarray(y * w, (y + 1) * w), row, vertex, border);
  return squares;
}

function column(rgba, squares, x, w, h) {
  let since = FAR;
  for (let y = 0; y < h; y++) {
    since = rgba[4 * (y * w + x) + 3] >= 128 ? 0 : since + 1;
    squares[y * w + x] = since;
  }
  for (let y = h - 1, until = FAR; y >= 0; y--) {
    const i = y * w + x;
    until = Math.min(until + 1, squares[i]);
    squares[i] = until >= FAR ? FAR : until * until;
  }
}

/** Replace `values` by the lower envelope of the parabolas that stand on them. */
function envelope(values, copy, vertex, border) {
  const n = values.length;
  copy.set(values);
  let last = -1;
  for (let q = 0; q < n; q++) {
    if (copy[q] >= FAR) continue;
    let cut = -Infinity;
    while (last >= 0) {
      const p = vertex[last];
      cut = (copy[q] + q * q - copy[p] - p * p) / (2 * (q - p));
      if (cut > border[last]) break;
      last--;
      cut = -Infinity;
    }
    last++;
    vertex[last] = q;
    border[last] = cut;
  }
  if (last < 0) return;
  for (let q = 0, k = 0; q < n; q++) {
    while (k < last && border[k + 1] < q) k++;
    const d = q - vertex[k];
    values[q] = d * d + copy[vertex[k]];
  }
}
