"""Every round puts the concept farther out of reach, by the map that solving layer by layer gives."""

import pytest
import torch
from tiny import tiny

from efface.concepts.rece import Rece
from efface.core.eraser import Concepts, editable
from efface.core.method import Work
from efface.errors import UsageError
from efface.parts.concepts.attention import cross_attention
from efface.parts.concepts.maps import RIDGE, gram, uce
from efface.parts.concepts.slots import TEMPLATES, aligned, encode
from efface.training import baselines

KEEP = ("square", "a red star", "a blue cross", "two rings")
WORK = Work()


@pytest.fixture(scope="module")
def pipe():
    return tiny()


def plan(pipe, *concepts, keep=KEEP, work=WORK, **params):
    return Rece(**params).plan(pipe, Concepts.of(concepts or ("circle",), keep=keep), work)


def matrix(made):
    (op,) = made.ops
    return op.matrix


def test_without_rounds_it_is_uce(pipe):
    concepts = Concepts.of("circle", "square")
    found = Rece(rounds=0).plan(pipe, concepts, WORK)
    (expected,) = baselines.uce(pipe, concepts)
    torch.testing.assert_close(matrix(found), expected.matrix, rtol=0, atol=1e-5)
    assert len(found.made_by["rho"]) == 1


@pytest.mark.parametrize("pull", ["zero", "guide", "concept"])
def test_every_round_puts_the_concept_farther_away(pipe, pull):
    rho = plan(pipe, pull=pull, lam=1e-6).made_by["rho"]
    assert len(rho) == 4
    assert rho[1] > 5 * rho[0]
    assert rho == sorted(rho)


def test_rounds_are_what_the_paper_solves_layer_by_layer(pipe):
    lam, kept, ridge = 1e-3, 0.3, 1e-2
    made = plan(pipe, rounds=1, lam=lam, kept=kept, round_ridge=ridge)
    layers = [layer.weight.double() for layer in cross_attention(pipe.unet).values()]
    keep = encode(pipe, ["", *KEEP]).embeds.flatten(0, 1).double()
    first = uce(*aligned(pipe, "circle", "", TEMPLATES), keep, kept=kept, ridge=RIDGE)
    edited = [weight @ first for weight in layers]
    rows, guide = (part.double() for part in aligned(pipe, "circle", "", rows="all"))
    eye = torch.eye(rows.shape[1], dtype=torch.float64)
    strength = lam * gram(layers).trace() / len(eye)
    left = strength * eye + sum(w.T @ w for w in edited)
    right = sum(w.T @ w0 for w, w0 in zip(edited, layers, strict=True))
    derived = torch.stack([torch.linalg.solve(left, right @ c) for c in rows])
    gram_all = derived.T @ derived / len(derived) + kept * keep.T @ keep / len(keep)
    pull = ridge * gram_all.trace() / len(eye) * eye
    for weight, before in zip(layers, edited, strict=True):
        values = (before @ guide.T) @ derived / len(derived) + kept * (before @ keep.T) @ keep / len(keep)
        after = (values + before @ pull) @ torch.linalg.inv(gram_all + pull)
        torch.testing.assert_close(weight @ matrix(made), after, rtol=0, atol=1e-5)


def test_several_concepts_are_erased_together_whatever_their_order(pipe):
    one, other = matrix(plan(pipe, "circle", "red")), matrix(plan(pipe, "red", "circle"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert plan(pipe, "circle", "red").made_by["erases"][1] == {"remove": "red", "instead": ""}


def test_texts_to_keep_are_kept_better_than_others(pipe):
    layer = next(iter(cross_attention(pipe.unet).values()))
    rows = encode(pipe, KEEP).embeds
    before, moved = layer(rows), []
    for keep in (KEEP, ()):
        made = plan(pipe, keep=keep)
        made.apply(editable(pipe))
        moved.append(float((layer(rows) - before).norm() / before.norm()))
        made.undo(editable(pipe))
    assert moved[0] < moved[1] / 2


@pytest.mark.parametrize("slots", ["all", "content"])
def test_the_start_that_all_prompts_share_stays(pipe, slots):
    start = encode(pipe, [""]).embeds[0, 0].double()
    moved = matrix(plan(pipe, slots=slots)) @ start - start
    assert moved.norm() < 0.1 * start.norm()


def test_a_lam_that_makes_embeddings_short_is_told(pipe):
    lines = []
    made = plan(pipe, lam=1.0, work=Work(progress=lines.append))
    assert any("above 0.01" in note for note in made.made_by["notes"])
    assert set(made.made_by["notes"]) <= set(lines)
    assert not any("above 0.01" in note for note in plan(pipe, lam=1.0, rescale=True).made_by["notes"])
    for wrong in ({"lam": 0.0}, {"ridge": 0.0}, {"slots": "some"}, {"rounds": -1}):
        with pytest.raises(UsageError):
            Rece(**wrong)


def test_facts_tell_how_far_the_edit_goes(pipe):
    few, many = plan(pipe, rounds=1), plan(pipe, rounds=3)
    for name in ("weight_distance", "kept_drift"):
        assert 0 < few.made_by[name] < many.made_by[name]
    assert few.made_by["spectral_norm"] > 0
