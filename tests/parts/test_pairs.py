"""Which pictures of a folder are scored."""

import numpy as np
from PIL import Image

from efface.io.leftovers import SHEET, save_preview
from efface.parts.metrics.pairs import matched


def test_what_runs_leave_beside_their_results_is_not_scored(tmp_path):
    flat = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for name in ("in/a.png", "in/b_boxes.png", "out/a_clean.png", "out/b_boxes_clean.png", f"out/{SHEET}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        flat.save(tmp_path / name)
    save_preview(flat, tmp_path / "in/a_boxes.png", overwrite=False)
    found = matched(tmp_path / "out", truth=None, masks=None, inputs=tmp_path / "in")
    assert [(files.output.name, files.source.name) for files in found] == [
        ("a_clean.png", "a.png"),
        ("b_boxes_clean.png", "b_boxes.png"),
    ]
