"""Compare erasers on held-out photographs with unseen fonts, words and styles; box masks are given.

    python benchmarks/erasing.py --data bsds500 [--count 100] [--only strokefill,telea] [--residue] [--sheet sheet.png]
        [--rare 1]

Photographs, font families and words are those of the test split, which no training and no choice of settings has seen;
choices are made on ``--split val``. Prints a table, and writes it with ``-o``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from efface.io.atomic import write_json
from efface.parts.data.erase_text import evaluation_set
from efface.parts.data.photos import photographs
from efface.parts.fill import navier_stokes, telea
from efface.parts.metrics.erasing import psnr_m
from efface.parts.metrics.pixels import psnr
from efface.parts.metrics.residue import found_polygons, one_to_one
from efface.parts.metrics.structure import ssim_m
from efface.parts.text.fonts import find_fonts, split_fonts
from efface.verbs.clean import apply
from efface.verbs.rules import Rules

Case = dict[str, Any]
Eraser = Callable[[Case], np.ndarray]


def network(**rules: Any) -> Eraser:
    def erase(case: Case) -> np.ndarray:
        return apply(case["picture"], Rules(mask=case["mask"], grow=0, **rules)).picture.pixels

    return erase


def erasers(extra: list[str]) -> dict[str, Eraser]:
    known: dict[str, Eraser] = {
        "clean picture": lambda case: case["clean"],
        "nothing": lambda case: case["picture"],
        "telea, boxes": lambda case: telea(case["picture"], case["mask"]),
        "telea, exact strokes": lambda case: telea(case["picture"], case["strokes"]),
        "navier-stokes, exact strokes": lambda case: navier_stokes(case["picture"], case["strokes"]),
        "strokefill, fast": network(quality="fast"),
        "strokefill, default": network(),
        "strokefill, best": network(quality="best"),
        "deeperaser": network(method="deeperaser"),
    }
    for folder in extra:
        known[folder] = network(weights=folder)
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of photographs; made-up ones without it")
    parser.add_argument("--split", default="test", choices=("test", "val"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rare", type=float, default=0.0, help="how often a text glows, is faint or is soft")
    parser.add_argument("--only", default="", help="parts of the names to run, with commas between")
    parser.add_argument("--weights", nargs="*", default=[], help="further folders of weights")
    parser.add_argument("--residue", action="store_true", help="also count what a detector still finds")
    parser.add_argument("--sheet", type=Path, help="picture of the first results")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()

    fonts = split_fonts(find_fonts())[1]
    cases = evaluation_set(photographs(given.data, given.split), fonts, seed=20, count=given.count, rare=given.rare)
    rows, results = {}, {}
    for name, erase in erasers(given.weights).items():
        if given.only and not any(part in name for part in given.only.split(",")) and name not in given.weights:
            continue
        erase(cases[0])
        start = time.perf_counter()
        outputs = [erase(case) for case in cases]
        seconds = (time.perf_counter() - start) / len(cases)
        rows[name] = {**quality(cases, outputs, residues=given.residue), "seconds": seconds}
        results[name] = outputs
        print(f"{name:30s} " + "  ".join(f"{k} {v:.4g}" for k, v in rows[name].items()), flush=True)
    if given.sheet:
        draw_sheet(cases, results, given.sheet)
    if given.out:
        told = {"count": given.count, "split": given.split, "rare": given.rare, "rows": rows}
        write_json(given.out, told, overwrite=True)


def quality(cases: list[Case], outputs: list[np.ndarray], *, residues: bool) -> dict[str, float]:
    pairs = list(zip(cases, outputs, strict=True))
    row = {
        "psnr_m": mean(psnr_m(out, case["clean"], case["mask"]) for case, out in pairs),
        "ssim_m": mean(ssim_m(out, case["clean"], case["mask"]) for case, out in pairs),
        "psnr": mean(psnr(out, case["clean"]) for case, out in pairs),
    }
    if residues:
        # what the detector finds where the text was: on clean pictures too, where that is the floor
        found = sum(one_to_one(list(case["boxes"]), found_polygons(out)) for case, out in pairs)
        row["recall"] = 100 * found / sum(len(case["boxes"]) for case in cases)
    return row


def mean(values: Any) -> float:
    return float(np.mean(list(values)))


def draw_sheet(cases: list[Case], results: dict[str, list[np.ndarray]], path: Path, rows: int = 8) -> None:
    from PIL import Image

    height = min(c["picture"].shape[0] for c in cases[:rows])
    width = min(c["picture"].shape[1] for c in cases[:rows])
    lines = [
        np.concatenate([out[i][:height, :width] for out in (*results.values(), [c["clean"] for c in cases])], axis=1)
        for i in range(min(rows, len(cases)))
    ]
    Image.fromarray(np.concatenate(lines)).save(path)


if __name__ == "__main__":
    main()
