"""`efface score --erasure` on the tiny pipeline that comes with the package."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from efface.app.cli import run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of diffusers
QUICK = ["--steps", "1", "--seeds", "1", "--keep", "ring", "--attacks", "ring-a-bell"]


def test_figures_of_a_target_and_a_sheet_are_written(tmp_path, capsys):
    out, sheet = tmp_path / "score.csv", tmp_path / "sheet.png"
    words = [
        "score",
        "tiny",
        "--erasure",
        "--target",
        "circle",
        *QUICK,
        "--json",
        "-o",
        str(out),
        "--sheet",
        str(sheet),
    ]
    assert run(words) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert list(found["models"]) == ["original", "negative prompt", "uce"]
    assert found["keep"] == ["ring"]
    figures = found["models"]["uce"]["figures"]
    assert figures["acc_g:disc"]["n"] == 6
    assert {"ua", "ira", "cra", "h_o", "drift_u:mse", "asr:ring-a-bell"} <= figures.keys()
    assert "circle drawn" in printed.err
    assert out.read_text("utf-8").startswith("model,figure,value")
    with Image.open(sheet) as drawn:
        assert drawn.width == 3 * 100
    assert run(words) == 1  # the files are there


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "tiny", "--erasure"], "not said what was taken out"),
        (["score", "tiny", "--erasure", "--target", "circle", "--attacks", "siege"], "no attack is called 'siege'"),
        (["score", "tiny", "--erasure", "--target", "circle", "--beside", "uec"], "Did you mean uce"),
        (["score", "tiny", "--erasure", "--target", "octagon"], "no concept of this world"),
        (["score", "tiny", "--erasure", "--target", "circle", "--truth", "x"], "not pictures"),
        (["score", "pictures", "--target", "circle"], "--erasure"),
    ],
)
def test_commands_that_make_no_sense_are_refused(words, message, capsys):
    assert run(words) == 2
    assert message in capsys.readouterr().err
