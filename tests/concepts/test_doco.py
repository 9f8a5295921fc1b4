"""Captions ask as they should, both networks keep to their own weights, and only what is chosen changes."""

import dataclasses

import pytest
import torch
from PIL import Image
from tiny import tiny

from efface.concepts.doco import Doco, taken_for_anchor, taken_for_target
from efface.core.eraser import Concepts, editable
from efface.core.method import Work
from efface.errors import DataError, UsageError
from efface.parts.concepts.attention import cross_attention
from efface.training.descent import copies, descend

PAIR = Concepts.of("circle", "square")


def planned(pipe=None, concepts=PAIR, **params):
    return Doco(**Doco.small | params).plan(pipe or tiny(), concepts, Work())


def values(plan):
    return {op.target: op.given["values"] for op in plan.ops}


@pytest.fixture(scope="module")
def usual():
    return values(planned())


def differ(one, other):
    return any(not torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("kind", "caption", "number", "expected"),
    [
        ("object", "a red Square on white", 0, "a red circle on white"),
        ("object", "a square, another square", 0, "a circle, another circle"),
        ("object", "two squares", 0, None),
        ("object", "a star", 0, None),
        ("style", "a painting", 0, "a painting, in the style of circle"),
        ("style", "a painting", 1, "in circle's style, a painting"),
        ("memorised", "anything at all", 0, "circle"),
    ],
)
def test_captions_ask_for_the_concept(kind, caption, number, expected):
    assert Doco(kind=kind).asking(caption, "circle", "square", number) == expected


def test_signs_of_an_anchor_are_no_pattern():
    assert Doco().asking("a U.S. map", r"a\1", "U.S") == r"a a\1. map"
    assert Doco().asking("a UFS map", "circle", "U.S") is None


def test_captions_without_the_anchor_are_dropped_and_counted():
    fine = tuple(f"a square {word}" for word in ("here", "there", "now", "then"))
    plan = planned(captions=(*fine, "a star"))
    assert plan.made_by["dropped"] == 1
    assert not differ(values(plan), values(planned(captions=fine)))
    with pytest.raises(UsageError, match="2 of 5 captions do not name it") as error:
        planned(captions=(*fine[:3], "a star", "squares"))
    assert error.value.where == "square"


def test_keys_and_values_of_cross_attention_alone_change_unless_more_is_chosen(usual):
    names = {f"unet.{name}.weight" for name in cross_attention(tiny().unet)}
    assert usual.keys() == names
    cross = values(planned(weights="cross")).keys()
    assert names < cross
    assert all(".attn2." in name for name in cross)


@pytest.mark.parametrize(
    ("name", "value"),
    [("match", "noise"), ("surgery", False), ("strength", 0.5), ("official_scale", True), ("warm_up", 0)],
)
def test_every_choice_leads_elsewhere(usual, name, value):
    assert differ(usual, values(planned(**{name: value})))


def test_concepts_take_turns(usual):
    both = planned(concepts=Concepts.of(["circle", "star"], ["square", "ring"]))
    assert [one["remove"] for one in both.made_by["erases"]] == ["circle", "star"]
    assert differ(usual, values(both))


def test_given_pictures_are_matched_with_their_captions(tmp_path, usual):
    for number, caption in enumerate(("a red square", "a blue square", "a square")):
        Image.new("RGB", (40, 36), (80 * number, 0, 90)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(caption)
    given = planned(pictures=str(tmp_path), count=1)
    assert differ(usual, values(given))
    (tmp_path / "1.txt").unlink()
    with pytest.raises(DataError, match="has no caption"):
        planned(pictures=str(tmp_path))
    with pytest.raises(DataError, match="holds no pictures"):
        planned(pictures=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("concepts", "params", "message"),
    [
        (Concepts.of("circle"), {}, "has no anchor"),
        (PAIR, {"t_range": (5, 4)}, "is no range"),
        (PAIR, {"t_range": (5,)}, "is no range"),
        (PAIR, {"weights": "nothing of it"}, "no weight has"),
        (PAIR, {"widths": ()}, "too small for its discriminator"),
    ],
)
def test_what_cannot_be_is_refused(concepts, params, message):
    pipe = tiny()
    before = copies(editable(pipe).state_dict())
    with pytest.raises(UsageError, match=message):
        planned(pipe, concepts, **params)
    assert not differ(before, editable(pipe).state_dict())


def test_each_network_moves_by_its_own_loss(monkeypatch):
    """The denoiser's loss leaves the discriminator where its own one brought it, and the other way round."""
    seen = {}

    def watched(net, weights, loss, train, work, *, name, rival=None):
        if rival is not None:  # no learning for one of them at a time
            for key, rates in (("denoiser", (1e-2, 0.0)), ("discriminator", (0.0, 1e-2))):
                before = copies(dict(rival.net.named_parameters()))
                halted = dataclasses.replace(rival, options={**rival.options, "lr": rates[1]})
                one = dataclasses.replace(train, lr=rates[0])
                found = descend(net, weights, loss, one, work, name=name, rival=halted).values
                seen[key] = differ(before, dict(rival.net.named_parameters())), differ(copies(weights), found)
        return descend(net, weights, loss, train, work, name=name, rival=rival)

    monkeypatch.setattr("efface.concepts.doco.descend", watched)
    planned()
    assert seen == {"denoiser": (False, True), "discriminator": (True, False)}


def test_verdicts_cost_what_they_miss():
    sure = torch.full((2, 1, 3, 3), 20.0)
    assert taken_for_target(sure) < 1e-6 < 1 < taken_for_anchor(sure)
    assert taken_for_anchor(-sure) < 1e-6 < 1 < taken_for_target(-sure)
