"""The neighbourhood of a concept goes with it, what lies beyond is held, and no kept text is taken for a neighbour."""

import pytest
import torch
from tiny import tiny

from efface.concepts.realera import RealEra, Text, around, claimed, given
from efface.core.eraser import Concepts, editable
from efface.core.method import Work
from efface.core.ops import Delta, Map
from efface.errors import UsageError
from efface.parts.concepts.attention import cross_attention
from efface.parts.concepts.maps import factor, mapped
from efface.parts.concepts.neighbours import alike, sample_neighbours
from efface.parts.concepts.rollout import noise_prediction
from efface.parts.concepts.slots import encode, last_words
from efface.training import baselines

QUICK = {"steps": 2, "rollouts": 2, "rollout_steps": 3, "batch": 2, "lr": 1e-2}
KEEP = ("square", "a red star")
WORK = Work()


@pytest.fixture(scope="module")
def pipe():
    return tiny()


def plan(pipe, concepts=None, **params):
    return RealEra(**{"stages": "map", **QUICK, **params}).plan(pipe, concepts or Concepts.of("circle", "", KEEP), WORK)


def matrix(made):
    (op,) = made.ops
    return op.matrix


def away(made):
    return float((matrix(made) - torch.eye(32, dtype=torch.float64)).norm())


def samples(text, first, **limits):
    generator = torch.Generator().manual_seed(0)
    return around(text, first, lambda e: sample_neighbours(e, n=6, generator=generator, **limits))


def test_with_nobody_near_or_beyond_it_is_uce(pipe):
    concepts = Concepts.of(["circle", "star"], ["square", ""], "a red ring")
    (expected,) = baselines.uce(pipe, concepts)
    found = matrix(plan(pipe, concepts, neighbours=0, beyond=0, kept=1.0))
    torch.testing.assert_close(found, expected.matrix, rtol=0, atol=1e-6)


def test_the_more_what_lies_beyond_is_held_the_less_is_edited(pipe):
    free, held, tight = (away(plan(pipe, held=held)) for held in (0.0, 1.0, 1e6))
    assert held < free
    assert tight < 1e-3 * free


def test_neighbours_go_with_the_concept(pipe):
    text, (first,) = given(encode(pipe, ["circle"])), last_words(pipe, ["circle"])
    rows = samples(text, first, cos=(0.8, 0.9), max_dist=0.6).embeds[:, first:].double()
    guide = encode(pipe, [""]).embeds[0, -1].double()

    def left(made):
        return float((rows @ matrix(made).T - guide).norm())

    assert left(plan(pipe, beyond=0)) < left(plan(pipe, beyond=0, neighbours=0))


def test_their_number_hardly_matters(pipe):
    few, many = (matrix(plan(pipe, neighbours=n, beyond=n)) for n in (4096, 8192))
    assert (few - many).norm() < 0.05 * many.norm()


def test_the_start_stays_when_it_is_kept(pipe):
    start = encode(pipe, [""]).embeds[0, 0].double()
    torch.testing.assert_close(matrix(plan(pipe, kept=1e6)) @ start, start, rtol=0, atol=1e-4)
    text, (first,) = given(encode(pipe, ["red circle"])), last_words(pipe, ["red circle"])
    near = samples(text, first, cos=(0.8, 0.9)).embeds
    assert torch.equal(near[:, :first], text.embeds[:, :first].expand(6, -1, -1))
    assert not torch.isclose(near[:, first:], text.embeds[:, first:]).any(2).all()


def test_pooled_embeddings_have_neighbours_as_well(pipe):
    text = Text(given(encode(pipe, ["circle"])).embeds, torch.randn(1, 48))
    near = samples(text, 1, cos=(0.8, 0.9))
    cosine = torch.cosine_similarity(near.pooled, text.pooled)
    assert near.pooled.shape == (6, 48)
    assert ((cosine > 0.799) & (cosine < 0.901)).all()


def test_a_kept_text_claims_what_is_nearer_to_it(pipe):
    kept = encode(pipe, ["", "a blue star", "square"])
    own = encode(pipe, ["circle"]).embeds[0, 2]
    ends = kept.embeds[kept.first_end]
    near = torch.stack([own, ends[1], ends[2], torch.lerp(own, ends[1], 0.01)])
    assert claimed(near, own, kept).tolist() == [False, True, True, False]
    assert not claimed(near, own, encode(pipe, [""])).any()


def test_words_are_whole_near_and_neither_kept_nor_the_concept(pipe):
    assert {"circle", "disc"} <= set(alike(pipe, "circle"))
    assert not {"circl", "!"} & set(alike(pipe, "circle"))
    concepts = Concepts.of("circle", "ring", KEEP)
    (mined,) = plan(pipe, concepts, mine="words", cos=(0.05, 1.0), neighbours=8).made_by["nearby"]
    assert 0 < len(mined) <= 8
    assert not {"circle", "ring", "square", "red", "star", "a"} & set(mined)
    assert plan(pipe, concepts).made_by["nearby"] == [[]]
    none = plan(pipe, concepts, mine="words", cos=(0.999, 1.0), near=0.9, beyond=0)
    torch.testing.assert_close(matrix(none), matrix(plan(pipe, concepts, neighbours=0, beyond=0)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mine", ["random", "words", "mixed"])
def test_adapters_come_before_the_map(pipe, mine):
    made = plan(pipe, Concepts.of(["circle", "star"], ["square", ""], KEEP), stages="both", mine=mine)
    *adapters, last = made.ops
    assert isinstance(last, Map)
    assert all(isinstance(op, Delta) and ".attn2." in op.target and op.given["down"].shape[0] == 4 for op in adapters)
    assert {"neigh", "beyond"} <= made.made_by.keys()
    assert made.made_by["erases"][1] == {"remove": "star", "instead": ""}


def test_adapters_alone_touch_no_more_than_they_say(pipe):
    made = plan(pipe, stages="adapters", layers=r"attn2\.to_q")
    assert {op.target.removesuffix(".weight")[-4:] for op in made.ops} == {"to_q"}
    assert "spectral_norm" not in made.made_by
    assert made.made_by["neigh"][0] > 0


def test_adapters_that_have_not_learned_do_nothing(pipe):
    made = plan(pipe, stages="adapters", lr=0.0)
    x, text = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0)), encode(pipe, ["circle"]).embeds
    with torch.no_grad():
        before = noise_prediction(pipe, x, 500, text)
        made.apply(editable(pipe))
        after = noise_prediction(pipe, x, 500, text)
        made.undo(editable(pipe))
    assert torch.equal(before, after)


def test_untouched_layers_do_on_mapped_texts_what_edited_ones_do(pipe):
    m = torch.eye(32, dtype=torch.float64) + 0.1 * torch.randn(32, 32, dtype=torch.float64)
    layers, text = cross_attention(pipe.unet), given(encode(pipe, ["circle"]))
    box, op = editable(pipe), Map("unet", tuple(layers), *factor(m))
    expected = [layer(mapped(text.embeds, m)) for layer in layers.values()]
    undo = op.apply(box)
    found = [layer(text.embeds) for layer in layers.values()]
    undo(box)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"cos": (0.9, 0.8)}, "no range"),
        ({"cos": (0.9,)}, "no limits"),
        ({"near": 1.3}, "no limits"),
        ({"cos": (0.5, 0.8), "near": 0.5}, r"Give 0\.6 or more"),
    ],
)
def test_limits_that_exclude_each_other_are_refused(pipe, wrong, told):
    with pytest.raises(UsageError, match=told):
        plan(pipe, **wrong)
