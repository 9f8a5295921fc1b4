"""Measure how much memory cleaning takes, in fresh processes, against the bound that was given.

    python benchmarks/memory.py [--megapixels 100] [--memory 2GB] [--suffix .png] [--weights FOLDER]
    python benchmarks/memory.py --constants [--method strokefill]

The first finds and takes away text that was drawn in many places of one huge picture, and fails where the process's
peak is above 1.2 times the bound. The second measures the constants in verbs/clean.py and on the cards, on pictures
that are masked all over: what a process takes that sees hardly any pixels, and what each more that the network sees
at once adds. Without weights an untrained network of full size is measured, which takes as much.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from efface.core.catalogue import entry
from efface.io.weights import save_weights
from efface.parts.data.photos import photographs
from efface.parts.units import parse_bytes

CHILD = """
import json, resource, sys
from efface.app.cli import run
code = run(json.loads(sys.argv[1]))
print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), file=sys.stderr)
sys.exit(code)
"""
SIZES = 256, 512, 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=100)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--suffix", default=".png", choices=(".png", ".jpg", ".tif", ".webp", ".bmp", ".ppm"))
    parser.add_argument("--method", default="strokefill")
    parser.add_argument("--weights", type=Path, help="default: an untrained network")
    parser.add_argument("--constants", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = given.weights or untrained(given.method, folder / "weights")
        if given.constants:
            constants(folder, weights)
            return 0
        side = round((given.megapixels * 1e6) ** 0.5)
        path = folder / f"huge{given.suffix}"
        make_picture(side).save(path)
        peak, seconds, item = clean(path, "--memory", given.memory, "--weights", weights)
    ratio = peak / parse_bytes(given.memory)
    print(f"{side} x {side} {given.suffix}: {len(item['texts'])} texts, {item['scores']['masked']:.1%} masked")
    print(f"peak {peak / 1e6:.0f} MB, {ratio:.2f} times --memory {given.memory}, {seconds:.0f} s")
    return int(ratio > 1.2)


def constants(folder: Path, weights: Path) -> None:
    """Print the peak for pictures of several sizes that one crop covers, and the straight line between them."""
    peaks = []
    for side in SIZES:
        path = folder / f"{side}.png"
        make_picture(side).save(path)
        peaks.append(clean(path, "--box", f"0,0,{side},{side}", "--memory", "100GB", "--weights", weights)[0])
        print(f"{side} x {side}: {peaks[-1] / 1e6:.0f} MB")
    slope, fixed = np.polyfit(np.square(SIZES), peaks, 1)
    print(f"{fixed / 1e6:.0f} MB and {slope:.0f} bytes for each pixel")


def make_picture(side: int) -> Image.Image:
    """Return photographs side by side, with text of all sizes on them."""
    tile = Image.fromarray(photographs(None, "test")[0])
    picture = Image.new("RGB", (side, side))
    for top in range(0, side, tile.height):
        for left in range(0, side, tile.width):
            picture.paste(tile, (left, top))
    draw = ImageDraw.Draw(picture)
    for number, height in enumerate((24, 40, 64, 100, 160, 300) * 4):
        at = number % 4 * side // 4 + height, number // 4 * side // 6 + height
        if at[0] + 8 * height < side:
            draw.text(at, f"Number {number}", (250, 240, 90), ImageFont.load_default(height))
    return picture


def untrained(method: str, folder: Path) -> Path:
    """Save the weights of a network as it is before training."""
    made = entry(method).load()()
    save_weights(folder, made.build().state_dict(), {"method": method, "params": made.params()})
    return folder


def clean(path: Path, *options: object) -> tuple[int, float, dict]:
    """Run `efface clean` and return its peak in bytes, its seconds, and what it says about the picture."""
    words = ["clean", str(path), "--json", "--overwrite", *map(str, options)]
    start = time.perf_counter()
    child = subprocess.run([sys.executable, "-c", CHILD, json.dumps(words)], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise SystemExit(child.stdout + child.stderr)
    peak = json.loads(child.stderr.splitlines()[-1])["peak"]
    return peak, seconds, json.loads(child.stdout)["items"][0]["details"]


if __name__ == "__main__":
    sys.exit(main())
