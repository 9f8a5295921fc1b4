"""FinerCut: the search finds what the output misses least, and what is left is a plain smaller model."""

import copy
import itertools

import pytest
import torch
from decoders import EVERY, IDS, continued, decoder, logits

from efface.core.method import Work
from efface.core.plan import Plan
from efface.errors import DataError, UnknownNameError, UsageError
from efface.networks.finercut import FinerCut, removals
from efface.parts.data.language import Corpus
from efface.parts.language import passes
from efface.parts.language.blocks import sublayers
from efface.parts.language.distances import compare
from efface.parts.language.silence import without

CORPUS = Corpus.of(torch.randint(40, (600,), generator=torch.Generator().manual_seed(0)), length=16)
QUICK = {"rows": 4, "length": 10, "exclude": 0.0}


def plan(model, **options):
    return FinerCut(**QUICK | options).plan(model, CORPUS, Work())


def went(made):
    return [step["gone"] for step in made.made_by["ranking"]]


def by_hand(model, metric, count):
    """Search with nothing kept: every trial is a whole pass of the model without what is gone."""
    rows, gone = CORPUS.train.rows(4, 10), []
    whole = logits(model, rows)
    while len(gone) < count:
        left = [s for s in sublayers(model) if s not in gone]
        scores = {}
        for s in left:
            with without(model, [*gone, s]):
                scores[s] = compare(metric, [(whole, logits(model, rows), rows)])[0]
        gone.append(min(left, key=lambda s: (scores[s], -s.block)))
    return [s.label for s in gone]


@pytest.mark.parametrize("name", EVERY)
def test_what_is_left_is_a_plain_model_that_writes_with_and_without_a_cache(name, tmp_path):
    model = decoder(name)
    before, expected = copy.deepcopy(model.state_dict()), logits(model)
    made = plan(model, count=3)
    assert all(v.equal(before[n]) for n, v in model.state_dict().items())
    made.save(tmp_path)
    again = Plan.load(tmp_path).apply(decoder(name))
    made.apply(model)
    assert logits(again).equal(logits(model))
    gone = [s for s in sublayers(decoder(name)) if s.label in went(made)]
    with without(reference := decoder(name), gone):
        assert logits(model).equal(logits(reference))
    assert continued(model, use_cache=True).equal(continued(model, use_cache=False))
    assert logits(made.undo(model)).equal(expected)


@pytest.mark.parametrize("metric", ["js", "released", "angular", "norm", "kl", "ppl"])
def test_the_search_equals_one_that_keeps_nothing_and_sees_all_that_is_gone(metric):
    model = decoder("Gemma2")
    assert went(plan(model, count=4, metric=metric)) == by_hand(model, metric, 4)


def test_the_order_does_not_depend_on_the_batch():
    model = decoder()
    one, four = (plan(model, count=6, batch=batch).made_by["ranking"] for batch in (1, 4))
    assert [s["gone"] for s in one] == [s["gone"] for s in four]
    assert [s["distance"] for s in one] == pytest.approx([s["distance"] for s in four], rel=1e-4)


def test_a_trial_runs_no_block_before_the_one_that_changes(monkeypatch):
    model, ran = decoder(), []
    for number, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    _, outputs = passes.block_outputs(model, IDS)
    ran.clear()
    passes.logits_from(model, IDS, outputs, 2)
    assert ran == [2]


def test_levels_and_counts():
    model = decoder()
    assert {label[0] for label in went(plan(model, level="a", ratio=1.0))} == {"A"}
    assert {label[0] for label in went(plan(model, level="m", ratio=0.67))} == {"M"}
    assert all(label in ("A0+M0", "A1+M1", "A2+M2") for label in went(plan(model, level="decoder", count=2)))
    everything = plan(model, ratio=1.0)
    assert len(went(everything)) == 6
    everything.apply(model)
    with torch.no_grad():
        bare = model.lm_head(model.model.norm(model.model.embed_tokens(IDS)))
    assert logits(model).equal(bare)
    assert everything.made_by["map"].keys() == {"attention", "ffn"}
    assert sorted(itertools.chain(*everything.made_by["map"].values())) == [1, 2, 3, 4, 5, 6]


def test_first_blocks_are_spared_until_enough_is_gone():
    order = went(plan(decoder(), ratio=1.0, exclude=0.4))
    assert all(label[1] == "2" for label in order[:2])  # int(0.4 * 3) + 1 = 2 blocks are spared
    assert went(plan(decoder(), count=1, exclude=1.0))  # nothing is open, so the bar falls


def test_modes():
    model = decoder()
    scores = {s["gone"]: s["distance"] for s in (plan(model, mode="from_scores", order=(label,), count=1)
        .made_by["ranking"][0] for label in ("A0", "M0", "A1", "M1", "A2", "M2"))}  # fmt: skip
    assert went(plan(model, mode="one_shot", ratio=1.0)) == sorted(scores, key=lambda s: (scores[s], -int(s[1])))
    assert went(plan(model, count=1))[0] == min(scores, key=scores.__getitem__)
    assert went(plan(model, mode="from_scores", order=("M1", "A2"), count=2)) == ["M1", "A2"]
    method = FinerCut(mode="random", ratio=1.0, **QUICK)
    draws = {tuple(went(method.plan(model, CORPUS, Work(seed=seed)))) for seed in range(3)}
    assert len(draws) > 1
    with pytest.raises(UnknownNameError, match="A9"):
        plan(model, mode="from_scores", order=("A9",))


def test_a_budget_of_perplexity_ends_the_search():
    model = decoder()
    steps = plan(model, ratio=1.0).made_by
    budget = 0.9999 * max(step["perplexity"] for step in steps["ranking"]) / steps["perplexity"]
    made = plan(model, ratio=1.0, ppl_budget=budget)
    assert went(made) == went(plan(model, ratio=1.0))[: len(went(made))]
    assert len(went(made)) < 6
    assert all(step["perplexity"] <= budget * made.made_by["perplexity"] for step in made.made_by["ranking"])


def test_a_second_plan_goes_on_where_the_first_ended():
    model = decoder("Phi")
    plan(model, mode="from_scores", order=("A1",), count=1).apply(model)
    second = plan(model, mode="from_scores", order=("M1",), count=1).apply
    second(model)
    assert isinstance(model.model.layers[1].input_layernorm, torch.nn.Identity)
    assert len(sublayers(model)) == 4


def test_no_text_too_short_a_text_and_too_many_layers_are_refused():
    with pytest.raises(UsageError, match="text"):
        FinerCut().plan(decoder(), None, Work())
    with pytest.raises(DataError, match="540"):
        plan(decoder(), rows=100)
    with pytest.raises(UsageError, match="7 are to go"):
        plan(decoder(), count=7)
    assert removals(decoder(), []) == []
