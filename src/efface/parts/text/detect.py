"""Find and read the text in a picture, with the networks that come inside the rapidocr wheel."""

from __future__ import annotations

import importlib.metadata
import os
import threading
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import cv2
import numpy as np

from efface.errors import WeightsError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TILE, MARGIN = 1280, 96
"""Longest side that the detector sees at once, and how much of it at inner borders is context only, in pixels."""
SMALLEST = 736
"""Pictures whose shorter side is below this are enlarged before detection, in pixels."""
COARSER, LEGIBLE, COARSEST = 3, 50, 640
"""Each coarser look is smaller by the first, trusted with lines at least as high in it as the second, and the last one
when its longer side is at most the third, in pixels."""
KERNEL, BOX, UNCLIP = 0.3, 0.5, 1.6
"""Least probability of a pixel and of a box, and growth from kernel to text (Liao et al., DB, AAAI 2020)."""
LINE, BATCH = 48, 1280
"""Height of the lines that are recognised, and their total width in one batch, in pixels."""

_sessions: dict[tuple[str, int], InferenceSession] = {}
_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class TextBox:
    """A line of text in a picture."""

    polygon: np.ndarray
    """(4, 2) float32, x and y in pixels, clockwise from where reading starts."""
    words: str
    """What was recognised; empty where nothing was, or was not asked for."""
    confidence: float
    """Mean probability in [0, 1]: of the recognised characters, or of being text where none were asked for."""


def find_text(pixels: np.ndarray, *, words: bool = True, min_confidence: float = 0.0) -> list[TextBox]:
    """Find the text in ``pixels`` (h, w, 3) uint8 RGB of any size, in reading order.

    With ``words`` off nothing is recognised, which is quicker but takes more of what only resembles text: on
    photographs a third of what the detector finds is none, and nearly all of that has a ``confidence`` below 0.5 once
    it is read. Boxes below ``min_confidence`` are left out. Large pictures are seen in tiles, and again smaller for the
    text that is too large for a tile.
    """
    found: list[TextBox] = []
    scales = _scales(*pixels.shape[:2])
    for scale in scales:  # from coarse to fine
        least = LEGIBLE / scale if scale < scales[-1] else 0.0
        new = [box for box in _boxes(_probability(pixels, scale), scale) if _height(box.polygon) >= least]
        found += [box for box in new if not any(_holds(other.polygon, box.polygon) for other in found)]
    if words:
        read = _recognise([_straighten(pixels, box.polygon) for box in found])
        found = [replace(box, words=text, confidence=sure) for box, (text, sure) in zip(found, read, strict=True)]
    return _reading_order([box for box in found if box.confidence >= min_confidence])


def warm(words: bool = True) -> None:
    """Load the networks, so that the first :func:`find_text` finds them ready. May run in a background thread."""
    for kind in ("det", "rec") if words else ("det",):
        _session(kind)


def _session(kind: str) -> InferenceSession:
    from onnxruntime import InferenceSession, SessionOptions

    threads = _threads()
    with _lock:
        if (kind, threads) not in _sessions:
            options = SessionOptions()
            options.intra_op_num_threads = threads
            options.enable_cpu_mem_arena = False  # gives memory back, for a tenth more time
            options.log_severity_level = 4
            # only files that the wheel itself lists: another program may have downloaded models beside them
            models = [f for f in importlib.metadata.files("rapidocr") or () if f.match(f"models/*_{kind}*.onnx")]
            if not models:
                raise WeightsError("carries no models", where="the installed rapidocr", fix="Install rapidocr>=3.10")
            path = str(models[0].locate())
            _sessions[kind, threads] = InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return _sessions[kind, threads]


def _threads() -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _scales(h: int, w: int) -> list[float]:
    """Return the scales at which the picture is looked at, from coarse to fine."""
    scales = [max(1.0, min(SMALLEST / min(h, w), TILE / max(h, w)))]
    while max(h, w) * scales[0] > COARSEST:
        scales.insert(0, scales[0] / COARSER)
    return scales


def _probability(pixels: np.ndarray, scale: float) -> np.ndarray:
    """Return the probability of text, times 255, at every pixel of the scaled picture."""
    if scale != 1:
        h, w = (max(1, round(n * scale)) for n in pixels.shape[:2])
        pixels = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    h, w = pixels.shape[:2]
    whole = np.empty((h, w), np.uint8)
    for top, bottom, write_top, write_bottom in _spans(h):
        for left, right, write_left, write_right in _spans(w):
            part = _detect(pixels[top:bottom, left:right])
            write = part[write_top - top : write_bottom - top, write_left - left : write_right - left]
            whole[write_top:write_bottom, write_left:write_right] = write
    return whole


def _spans(length: int) -> list[tuple[int, int, int, int]]:
    """Cut ``length`` into equal overlapping tiles: where each begins and ends, and where what it writes does."""
    count = max(1, -(-(length - 2 * MARGIN) // (TILE - 2 * MARGIN)))
    edges = [round(i * length / count) for i in range(count + 1)]
    return [(max(0, a - MARGIN), min(length, b + MARGIN), a, b) for a, b in pairwise(edges)]


def _detect(tile: np.ndarray) -> np.ndarray:
    h, w = tile.shape[:2]
    if (tile == tile[0, 0]).all():
        return np.zeros((h, w), np.uint8)
    padded = cv2.copyMakeBorder(tile, 0, -h % 32, 0, -w % 32, cv2.BORDER_REPLICATE)
    x = cv2.dnn.blobFromImage(padded, 1 / 127.5, mean=(127.5,) * 3, swapRB=True)  # (1, 3, h, w) BGR in [-1, 1]
    (probability,) = _session("det").run(None, {"x": x})
    return (probability[0, 0, :h, :w] * 255 + 0.5).astype(np.uint8)


def _boxes(probability: np.ndarray, scale: float) -> list[TextBox]:
    """Return the rectangle around each island of probable pixels, grown to the text, with its mean probability."""
    bitmap = (probability > 255 * KERNEL).view(np.uint8)
    cv2.dilate(bitmap, np.ones((2, 2), np.uint8), dst=bitmap)
    boxes = []
    for contour in cv2.findContours(bitmap, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        centre, (a, b), angle = cv2.minAreaRect(contour)
        if min(a, b) < 3:
            continue
        score = _mean_inside(probability, cv2.boxPoints((centre, (a, b), angle))) / 255
        if score < BOX:
            continue
        grow = a * b * UNCLIP / (a + b)
        corners = cv2.boxPoints((centre, (a + grow, b + grow), angle))
        corners = np.roll(corners, -int(np.argmax(np.roll(corners, -1, 0)[:, 0] - corners[:, 0])), 0)
        limit = np.array(probability.shape[::-1], np.float32) - 1
        boxes.append(TextBox((np.clip(corners, 0, limit) / scale).astype(np.float32), "", score))
    return boxes


def _mean_inside(values: np.ndarray, polygon: np.ndarray) -> float:
    corners = np.round(polygon).astype(np.int32)
    x, y, w, h = cv2.boundingRect(corners)
    left, top = max(x, 0), max(y, 0)
    part = values[top : y + h, left : x + w]
    mask = cv2.fillPoly(np.zeros(part.shape, np.uint8), [corners - (left, top)], 1)
    return cv2.mean(part, mask)[0]


def _height(polygon: np.ndarray) -> float:
    """Return the shorter side of a rectangle."""
    return float(np.linalg.norm(polygon[1:3] - polygon[:2], axis=1).min())


def _holds(outer: np.ndarray, polygon: np.ndarray) -> bool:
    x, y = polygon.mean(0)
    return cv2.pointPolygonTest(outer, (float(x), float(y)), False) >= 0


def _reading_order(boxes: list[TextBox]) -> list[TextBox]:
    """Sort from the top by lines, boxes whose centres lie within half a height, and inside a line from the left."""
    lines: list[list[TextBox]] = []
    for box in sorted(boxes, key=lambda box: float(box.polygon[:, 1].mean())):
        y = box.polygon[:, 1].mean()
        first = lines[-1][0].polygon[:, 1] if lines else None
        if first is not None and y - first.mean() < np.ptp(first) / 2:
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda box: float(box.polygon[:, 0].min()))]


def _straighten(pixels: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Return the text inside ``polygon`` as a horizontal line of :data:`LINE` pixels height."""
    w, h = (max(1, round(float(np.linalg.norm(polygon[i + 1] - polygon[i])))) for i in (0, 1))
    x, y, bw, bh = cv2.boundingRect(polygon)
    corners = np.array([(0, 0), (w, 0), (w, h), (0, h)], np.float32)
    matrix = cv2.getPerspectiveTransform(polygon - np.array((x, y), np.float32), corners)
    part = np.ascontiguousarray(pixels[y : y + bh, x : x + bw])
    line = cv2.warpPerspective(part, matrix, (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    if h >= 1.5 * w:
        line = cv2.rotate(line, cv2.ROTATE_90_COUNTERCLOCKWISE)
    width = max(LINE // 2, round(line.shape[1] * LINE / line.shape[0]))
    return cv2.resize(line, (width, LINE), interpolation=cv2.INTER_AREA if line.shape[0] > LINE else cv2.INTER_LINEAR)


def _recognise(lines: list[np.ndarray]) -> list[tuple[str, float]]:
    """Read lines (48, w, 3), in batches of similar width: words, and mean probability of their characters."""
    read: dict[int, tuple[str, float]] = {}
    batch: list[int] = []
    for index in sorted(range(len(lines)), key=lambda i: lines[i].shape[1]):
        if batch and lines[index].shape[1] * (len(batch) + 1) > BATCH:
            read |= zip(batch, _read([lines[i] for i in batch]), strict=True)
            batch = []
        batch.append(index)
    if batch:
        read |= zip(batch, _read([lines[i] for i in batch]), strict=True)
    return [read[i] for i in range(len(lines))]


def _read(lines: list[np.ndarray]) -> list[tuple[str, float]]:
    """Read one batch by greedy CTC decoding (Graves et al., ICML 2006)."""
    session = _session("rec")
    x = np.zeros((len(lines), 3, LINE, max(line.shape[1] for line in lines)), np.float32)
    for row, line in zip(x, lines, strict=True):
        row[..., : line.shape[1]] = line[..., ::-1].transpose(2, 0, 1) / np.float32(127.5) - 1
    (probability,) = session.run(None, {"x": x})  # (b, w / 8, characters)
    alphabet = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    best, sure = probability.argmax(2), probability.max(2)
    new = (np.diff(best, axis=1, prepend=0) != 0) & (best != 0)  # 0 is the blank
    return [
        ("".join(alphabet[i] for i in b[n]).strip(), float(s[n].mean()) if n.any() else 0.0)
        for b, s, n in zip(best, sure, new, strict=True)
    ]
