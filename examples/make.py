"""Draw the example pictures anew: python examples/make.py (needs scikit-image, which carries the photographs)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from efface.parts.text.render import draw
from efface.parts.text.style import Style

HERE = Path(__file__).parent
WHITE, BLACK, YELLOW, RED = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.85, 0.2), (0.75, 0.1, 0.1)
PRINT = [
    ("Opening hours", Style(size=44, colour=(0.15, 0.15, 0.2))),
    ("Monday to Friday  8 - 18", Style(size=28, colour=(0.3, 0.3, 0.35))),
    ("Saturday  9 - 13", Style(size=28, colour=RED)),
]


def write(picture: np.ndarray, texts: list[tuple[str, Style, tuple[float, float]]], name: str) -> None:
    """Save ``picture`` with each of ``texts`` (line, style, centre) on it."""
    for line, style, at in texts:
        drawn = draw(picture, [line], style, font=None, at=at)
        assert drawn is not None, line
        picture = drawn.picture
    image = Image.fromarray(np.round(np.asarray(picture) * 255).astype(np.uint8))
    image.save(HERE / name, **({"quality": 92} if name.endswith("jpg") else {"optimize": True}))


def main() -> None:
    """Draw all of them."""
    coffee = Style(size=58, colour=WHITE, outline=2, outline_colour=BLACK)
    price = Style(size=40, colour=YELLOW, rotation=8, shadow=(3, 3), shadow_blur=2)
    write(data.coffee(), [("COFFEE BREAK", coffee, (300, 60)), ("only 2.50", price, (470, 340))], "coffee.jpg")
    top, mark = Style(size=44, colour=WHITE, outline=3), Style(size=26, colour=WHITE, opacity=0.55)
    write(data.chelsea(), [("NOT AMUSED", top, (225, 262)), ("sample photo", mark, (95, 30))], "cat.png")
    title = Style(size=30, colour=WHITE, shadow=(2, 2), shadow_blur=1.5)
    clock = Style(size=22, colour=YELLOW, outline=1)
    write(
        data.rocket(),
        [("Lift-off, in front of the sea", title, (250, 390)), ("T + 00:04", clock, (560, 30))],
        "rocket.jpg",
    )
    rows, columns = np.mgrid[0:300, 0:480]
    board = np.stack(
        [0.93 - 0.1 * rows / 300, 0.91 - 0.08 * rows / 300 + 0.04 * columns / 480, np.full(rows.shape, 0.84)], -1
    )
    write(board.astype(np.float32), [(line, s, (240, 75 + 75 * i)) for i, (line, s) in enumerate(PRINT)], "board.png")


if __name__ == "__main__":
    main()
