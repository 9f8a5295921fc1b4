"""Time the main job on a 1-megapixel photograph with text on about 5 % of it: cold, warm, and the network alone.

    python benchmarks/speed.py [--data bsds500] [--repeat 5] [-o speed.json]

Cold is a whole new process, `efface clean PICTURE`, that finds the text by itself; time and peak memory are the
process's. Warm is a second picture in a process that has everything loaded. Also times `import efface` and
`efface --help`, in seconds of CPU. Figures are medians.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from efface.core.trained import load
from efface.io.atomic import write_json
from efface.parts import crops
from efface.parts.data.photos import photographs
from efface.parts.text.render import draw
from efface.parts.text.style import Style
from efface.verbs.clean import apply
from efface.verbs.rules import Rules

SIZE = 1250, 800
TEXTS = [
    ("Summer in the old town", (400, 100), Style(size=52, outline=2)),
    ("late opening on Fridays", (820, 600), Style(size=40, shadow=(2, 2))),
    ("picture desk", (1090, 760), Style(size=26, opacity=0.7)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of photographs; made-up ones without it")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        Image.fromarray(make_picture(given.data)).save(path, quality=92)
        figures = measure(path, given.repeat)
    for name, value in figures.items():
        print(f"{name:32s} {value:.3f}")
    if given.out:
        write_json(given.out, figures, overwrite=True)


def make_picture(data: Path | None) -> np.ndarray:
    photo = photographs(data, "test")[0]
    picture = np.asarray(Image.fromarray(photo).resize(SIZE, Image.Resampling.LANCZOS))
    for line, at, style in TEXTS:
        drawn = draw(picture, [line], style, font=None, at=at)
        assert drawn is not None
        picture = np.round(drawn.picture * 255).astype(np.uint8)
    return picture


def measure(path: Path, repeat: int) -> dict[str, float]:
    efface = [sys.executable, "-m", "efface"]
    clean = [*efface, "clean", str(path), "--overwrite"]
    cold = [run(clean) for _ in range(repeat)]
    cleaned = apply(path, Rules())
    return {
        "megapixels": SIZE[0] * SIZE[1] / 1e6,
        "share masked": cleaned.scores["masked"],
        "cold, seconds": statistics.median(seconds for seconds, _ in cold),
        "cold, CPU seconds": statistics.median(cpu for _, cpu in cold),
        "cold, peak MB": peak_of_children(),
        "warm, seconds": median_time(lambda: apply(path, Rules()), repeat),
        "warm, network part, seconds": statistics.median(network_part(path, cleaned.mask) for _ in range(repeat)),
        "import efface, CPU seconds": min(run([sys.executable, "-c", "import efface"])[1] for _ in range(repeat))
        - min(run([sys.executable, "-c", "pass"])[1] for _ in range(repeat)),
        "efface --help, CPU seconds": min(run([*efface, "--help"])[1] for _ in range(repeat)),
    }


def network_part(path: Path, mask: np.ndarray) -> float:
    """Return how long the loaded network takes for all crops of the picture, in seconds."""
    picture = np.asarray(Image.open(path), np.float32).transpose(2, 0, 1) / 255
    network = load("strokefill")
    card = network.method.card
    boxes = crops.crops_around(mask, context=card.radius + 2, multiple=card.multiple, smallest=card.smallest)

    def read(box: crops.Box) -> np.ndarray:
        return np.ascontiguousarray(picture[:, *box.slices])

    start = time.perf_counter()
    crops.apply(lambda x, m: network.run(x, mask=m), read, lambda *_: None, mask, boxes, multiple=card.multiple)
    return time.perf_counter() - start


def run(command: list[str]) -> tuple[float, float]:
    """Return the wall and CPU seconds of a process."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used


def peak_of_children() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def median_time(job: Callable[[], object], repeat: int) -> float:
    job()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
