from __future__ import annotations

import numpy as np
import pytest
import torch

from efface.errors import UsageError
from efface.parts.worlds.captions import caption, drawn_caption, words
from efface.parts.worlds.judge import agreement, load_judge
from efface.parts.worlds.pipeline import SLOTS, tokenizer
from efface.parts.worlds.world import FACTORS, Scene, render, scenes


@pytest.fixture(scope="module")
def drawn():
    return scenes(100, np.random.default_rng(7))


def test_picture_depends_on_its_scene_alone(drawn):
    together = render(drawn[:5])
    for i, scene in enumerate(drawn[:5]):
        assert np.array_equal(render([scene]).picture[0], together.picture[i])


def test_view_agrees_with_itself(drawn):
    view = render(drawn)
    for array in (view.picture, view.mask, view.depth, view.edges, view.boxes):
        assert array.dtype == np.float32
        assert array.min() >= 0
        assert array.max() <= 1
    assert ((view.depth > 0) == (view.mask > 0)).all()
    for scene, mask, boxes in zip(drawn, view.mask, view.boxes, strict=True):
        assert (boxes.sum(1) > 0).sum() == (2 if scene.count == "two" else 1)
        ys, xs = np.nonzero(mask[0])
        shown = boxes[boxes.sum(1) > 0]
        assert xs.min() / 32 == pytest.approx(shown[:, 0].min())
        assert (ys.max() + 1) / 32 == pytest.approx(shown[:, 3].max())


@pytest.mark.parametrize("factor", FACTORS)
def test_unknown_value_is_refused(factor):
    with pytest.raises(UsageError, match="octagon"):
        Scene(**{factor: "octagon"})


def test_captions():
    scene = Scene("half moon", "purple", "white", "striped", "two")
    assert caption(scene) == "two striped purple half moons on white"
    assert caption(scene, synonyms=True, without=["style"]) == "two violet half moons on white"
    assert caption(Scene("circle", "orange", position="left"), template="look at {}") == (
        "look at an orange circle at left on white"
    )


def test_every_word_is_one_token_and_captions_fit(drawn):
    tokens, generator = tokenizer(), np.random.default_rng(0)
    assert all(len(tokens(word).input_ids) == 3 for word in words())
    captions = [drawn_caption(scene, generator) for scene in drawn]
    assert max(len(ids) for ids in tokens(captions).input_ids) <= SLOTS
    assert {word for text in captions for word in text.split()} <= set(words())


def test_judge_knows_the_world_and_that_noise_is_nothing(drawn):
    judge = load_judge()
    shares = agreement(judge, torch.from_numpy(render(drawn).picture), drawn)
    assert min(shares.values()) >= 0.97
    noise = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert judge.names(noise)["shape"].count("none") >= 14
