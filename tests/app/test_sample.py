"""`efface sample` and `efface forget`: sheets before and after, edits that stack, and clear refusals."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import efface
from efface.app.cli import run
from efface.app.commands.forget import parse_texts
from efface.app.commands.sample import GAP, sheet
from efface.core import gating
from efface.core.contract.erasers import tiny
from efface.core.eraser import editable, edited
from efface.core.fingerprint import Fingerprint
from efface.core.hub import open_pipeline
from efface.core.ops import Delta
from efface.core.plan import Plan
from efface.errors import PlanError, UsageError
from efface.verbs.sample import sample

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers
TURN = Path(__file__).parents[1] / "concepts/turn.py"
QUICK = {"steps": 2, "guidance": 2.0, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of a tiny pipeline."""
    path = tmp_path_factory.mktemp("pipeline") / "tiny"
    tiny().save_pretrained(path)
    return path


@pytest.fixture
def turn(install):
    """Install the eraser `turn`."""
    install(TURN.read_text("utf-8"), "turn")


@pytest.fixture
def plan():
    """Return a plan that moves every picture."""
    pipe = tiny()
    return Plan.of(editable(pipe), [bias(0.3)], method="moved", whole=False)


def bias(by):
    return Delta.add("unet.conv_out.bias", torch.full((8,), by))


def gated(name, by, *concepts):
    erases = [{"remove": concept, "instead": ""} for concept in concepts]
    return Plan.of(editable(tiny()), [bias(by)], method=name, whole=False, gate=True, erases=erases)


def test_edits_act_while_they_draw_and_leave_no_trace(plan):
    pipe = tiny()
    before = Fingerprint.of(editable(pipe))
    drawn = sample(pipe, ["a circle", "a star"], edits=[plan], compare=True, seeds=(0, 1), **QUICK)
    assert Fingerprint.of(editable(pipe)) == before
    assert drawn.before.shape == drawn.pictures.shape == (4, 3, 32, 32)
    assert drawn.prompts == ("a circle", "a circle", "a star", "a star")
    assert drawn.seeds == (0, 1, 0, 1)
    plain = sample(pipe, ["a circle", "a star"], seeds=(0, 1), **QUICK)
    assert plain.before is None
    assert torch.equal(plain.pictures, drawn.before)
    with_bias = tiny()
    plan.apply(editable(with_bias))
    assert torch.equal(sample(with_bias, ["a circle", "a star"], seeds=(0, 1), **QUICK).pictures, drawn.pictures)


def test_edits_come_in_strengths_and_add_up(plan):
    pipe = tiny()
    none, half, double = (
        sample(pipe, "a star", edits=[plan], strength=s, **QUICK).pictures for s in (0.0, 0.5, 2.0)
    )  # fmt: skip
    other = Plan.of(editable(pipe), [bias(0.3), Delta.add("unet.conv_in.bias", torch.zeros(8))], whole=False)
    assert torch.allclose(none, sample(pipe, "a star", **QUICK).pictures, atol=1e-6)
    assert not torch.allclose(half, double, atol=1e-2)
    assert torch.allclose(sample(pipe, "a star", edits=[plan, other], **QUICK).pictures, double, atol=1e-5)


def test_gated_edits_act_by_prompt_and_prompts_alike_are_drawn_together(monkeypatch):
    asked, share = [], {"a circle": 1.0, "a ring": 0.5, "a star": 0.0, "two stars": 0.0}

    def facilitation(pipe, prompts, concepts):
        asked.append((list(prompts), list(concepts)))
        return torch.tensor([[share[prompt] * (concept == "circle") for concept in concepts] for prompt in prompts])

    monkeypatch.setattr(gating, "facilitation", facilitation)
    pipe, plans = tiny(), [gated("one", 0.3, "oval", "circle"), gated("other", 0.1, "cross")]
    drawn = sample(pipe, [*share], edits=plans, compare=True, **QUICK)
    assert asked == [([*share], ["oval", "circle"]), ([*share], ["cross"])]
    assert torch.allclose(drawn.pictures[2:], drawn.before[2:], atol=1e-6)
    for place, strength in ((0, 1.0), (1, 0.5)):
        plain = Plan.of(editable(pipe), plans[0].ops, whole=False)
        expected = sample(pipe, [*share][place], edits=[plain], strength=strength, **QUICK).pictures
        assert torch.allclose(drawn.pictures[place : place + 1], expected, atol=1e-5)


def test_what_cannot_be_drawn_is_refused(plan):
    pipe = tiny()
    with pytest.raises(UsageError, match="nothing would be drawn"):
        sample(pipe, [], **QUICK)
    with pytest.raises(UsageError, match="eulr"):
        sample(pipe, "a star", sampler="eulr", **QUICK)
    with pytest.raises(PlanError, match="is given twice"):
        sample(pipe, "a star", edits=[plan, plan], **QUICK)
    with pytest.raises(PlanError, match="-1 is no strength"):
        sample(pipe, "a star", edits=[plan], strength=-1, **QUICK)
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(1)
    with pytest.raises(PlanError, match="other weights"):
        sample(pipe, "a star", edits=[plan], **QUICK)
    assert sample(pipe, "a star", edits=[plan], sibling=True, **QUICK).pictures.shape == (1, 3, 32, 32)


def test_a_sheet_has_a_picture_for_each_place():
    shown = sheet([torch.full((3, 4, 6), value) for value in (0.0, 0.5, 1.0)], 2)
    assert shown.size == (2 * 6 * 32 + GAP, 2 * 4 * 32 + GAP)
    assert [shown.getpixel(place) for place in ((0, 0), (200, 0), (0, 140), (192, 0))] == [
        (0, 0, 0), (128, 128, 128), (255, 255, 255), (255, 255, 255)
    ]  # fmt: skip


def test_forget_and_sample_from_the_command_line(folder, turn, tmp_path, capfd):
    edit, other, out = tmp_path / "edit", tmp_path / "other", tmp_path / "out.png"
    words = ["forget", str(folder), "--remove", "circle", "--instead", "square", "--keep", "a star; a cross"]
    assert run([*words, "--method", "turn", "-o", str(edit), "--json", "--set", "noise=0.5"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["out"] == str(edit)
    assert told["keep"] == 2
    assert told["params"] == {"noise": 0.5}
    more = ["--method", "turn", "-o", str(other), "--export", str(tmp_path / "lora"), "--form", "lora"]
    assert run(["forget", str(folder), "--remove", "ring", *more]) == 0
    printed = capfd.readouterr()
    assert "turn takes out 'ring'" in printed.out
    assert "Exported as lora" in printed.out
    assert printed.err == ""
    edits = ["--edit", str(edit), "--edit", str(other), "--strength", "0.8"]
    assert run(["sample", str(folder), "a circle", *edits, "--grid", "3", "--steps", "2", "-o", str(out)]) == 0
    printed = capfd.readouterr()
    assert printed.out == f"{out}: 3 of 'a circle', before above after\n"
    assert printed.err == ""
    with Image.open(out) as image:
        assert image.size == (3 * 128 + 2 * GAP, 2 * 128 + GAP)
    half = ["export", str(folder), str(edit), str(other), "--strength", "0.5"]
    assert run([*half, "-o", str(tmp_path / "whole")]) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'whole'}\n"
    pipe = open_pipeline(folder)
    with edited(pipe, [Plan.load(path).scaled(0.5) for path in (edit, other)]):
        expected = pipe.unet.state_dict()
        for name, weight in open_pipeline(tmp_path / "whole").unet.state_dict().items():
            assert torch.equal(weight, expected[name])
    assert run([*half, "-o", str(tmp_path / "whole")]) == 1
    assert "exists already" in capfd.readouterr().err
    with pytest.raises(UsageError, match="no edit is given"):
        efface.export(pipe, [], tmp_path / "none")


def test_refusals_of_the_command_line(folder, turn, tmp_path, capfd):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    base = ["forget", str(folder), "--method", "turn"]
    for words, code, match in (
        ([*base, "--remove", "circle", "--keep", "circle; ring"], 2, "is to go and to stay"),
        ([*base, "--remove", "circle", "-o", str(tmp_path / "taken")], 1, "exists already"),
        (["forget", str(folder), "--method", "lth", "--remove", "circle"], 2, "takes concepts out"),
        (["forget", str(tmp_path), "--method", "turn", "--remove", "circle"], 3, "holds no pipeline"),
        (
            ["sample", str(folder), "a star", "--edit", str(tmp_path / "taken"), "-o", str(tmp_path / "a.png")],
            3,
            "plan",
        ),
    ):
        assert run(words) == code
        assert match in capfd.readouterr().err
    assert run([*base, "--remove", "circle", "--dry-run", "-o", str(tmp_path / "dry")]) == 0
    assert not (tmp_path / "dry").exists()
    assert not (tmp_path / "a").exists()


def test_texts_to_keep_come_from_a_file_or_from_the_line(tmp_path):
    (tmp_path / "keep.txt").write_text("a star; or two\n\n  a cross \n", "utf-8")
    assert parse_texts(str(tmp_path / "keep.txt")) == ("a star; or two", "a cross")
    assert parse_texts("a star; a cross;") == ("a star", "a cross")
    assert parse_texts("a star; " * 200) == ("a star",) * 200
    assert parse_texts(None) == ()
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no text file"):
        parse_texts(str(tmp_path / "bad.txt"))
