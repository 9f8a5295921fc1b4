from __future__ import annotations

import pytest
import torch

from efface.errors import UsageError
from efface.parts.worlds.erasing import asked, factor_of, held_out, kept, neutral, prompts, world_judge
from efface.parts.worlds.world import Scene, render


@pytest.mark.parametrize("concept", ["circle", "half moon", "purple", "striped", "left", "pink"])
def test_prompts_of_both_splits_differ_and_name_the_concept(concept):
    tests, edits = prompts(concept, count=12), prompts(concept, "edit", count=12)
    assert len({*tests, *edits}) == 24
    assert all(concept in text for text in tests + edits)


def test_all_values_are_asked_for_alike():
    both = (prompts("circle"), prompts("square"))
    assert [a.replace("circle", "square") for a in both[0]] == both[1]
    assert prompts("circle", word="disc") == [text.replace("circle", "disc") for text in both[0]]


def test_neighbours_come_first_and_the_usual_is_not_asked_for():
    assert kept("square", 2) == ("diamond", "circle")
    assert len(kept("circle")) == 7
    assert kept("striped") == ("outlined", "blurry", "noisy")
    assert "circle" not in kept("circle")


def test_wordings():
    texts = asked("circle", ["ring"], count=2)
    assert list(texts) == ["circle", "ring", "disc", "two circles"]
    assert texts["disc"][0] == texts["circle"][0].replace("circle", "disc")
    assert texts["two circles"][0] == "this is two red circles on black"
    assert list(asked("half moon", ["ring"])) == ["half moon", "ring", "two half moons"]
    assert list(asked("green", ["red"])) == ["green", "red"]
    assert neutral("circle") == "shape"
    assert neutral("purple") == ""


@pytest.mark.parametrize("concept", ["plain", "one", "centre", "octagon", ""])
def test_what_captions_do_not_name_is_refused(concept):
    with pytest.raises(UsageError, match="no concept of this world"):
        factor_of(concept)


def test_judge_sees_held_out_pictures_and_an_empty_ground():
    judge = world_judge()
    pictures, labels = held_out("circle", 100)
    seen = judge(pictures)
    right = [a == b for a, b in zip(seen.names("shape"), labels, strict=True)]
    assert sum(right) >= 97
    assert seen.features is not None
    assert len(seen.features) == 100
    ground = torch.from_numpy(render([Scene(background="grey")]).picture)[:, :, :1, :1].expand(-1, -1, 32, 32)
    empty = judge(ground)
    assert empty.names("shape") == ["none"]
    assert empty.names("background") == ["grey"]
