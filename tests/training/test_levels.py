"""Iterative pruning: counts, nesting, rewinding, controls, and going on where one stopped."""

from __future__ import annotations

import copy
import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from toy import same

from efface.errors import UsageError, WeightsError
from efface.parts.data.tasks import Task
from efface.parts.sparsity.budget import Budget, best
from efface.parts.sparsity.masks import LayerCollapse, MaskSet
from efface.training.course import Course, Trained, masked
from efface.training.levels import imp, smallest
from efface.training.recipe import Train
from efface.training.tuning import tune

LAYER = Budget(rate=0.3, scope="layer", rates={"6.weight": 0.1})


def build():
    norm = nn.BatchNorm1d(12)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), norm, nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def tiny_task():
    noise = np.random.default_rng(0)
    labels = np.arange(90) % 3
    pictures = (noise.random((90, 1, 4, 4)) + labels[:, None, None, None]) / 3
    return Task.from_arrays((pictures[:60], labels[:60]), (pictures[60:], labels[60:]))


TASK = tiny_task()


@pytest.fixture
def course():
    torch.manual_seed(0)
    train = Train(steps=6, batch=8, lr=0.05, optimizer="sgd", schedule="cosine", warmup=0.3, weight_decay=1e-3)
    return Course(build(), TASK, train, every=2)


@pytest.mark.parametrize("budget", [Budget(rate=0.3), LAYER], ids=["global", "layer"])
def test_counts_are_exact_and_masks_nested(course, budget):
    levels = list(imp(course, 3, budget))
    sizes = {name: mask.numel() for name, mask in levels[0].masks.items()}
    for level in levels:
        kept = {name: count for name, (count, _) in level.masks.per_layer().items()}
        if budget.scope == "global":
            assert level.masks.kept == round(sum(sizes.values()) * 0.7**level.number)
        else:
            rates = {name: budget.rates.get(name, 0.3) for name in sizes}
            assert kept == {name: round(size * (1 - rates[name]) ** level.number) for name, size in sizes.items()}
    for thick, thin in pairwise(levels):
        assert (thick.masks & thin.masks) == thin.masks


@pytest.mark.parametrize("rewind", [0, 2])
def test_survivors_go_back_with_their_buffers_and_the_pruned_stay_zero(course, rewind):
    first, *rest = imp(course, 2, rewind=rewind)
    assert rewind or same(first.start, course.initial)
    for level in rest:
        assert same(level.start, masked(first.start, level.masks))  # bit by bit, running statistics too
        for name, mask in level.masks.items():
            assert not level.start[name][~mask].any()
            assert not level.final[name][~mask].any()
            assert level.final[name][mask].all()
        assert not same(level.final, level.start)


def test_the_network_given_stays_as_it_is(course):
    before = copy.deepcopy(course.net.state_dict())
    list(imp(course, 1))
    assert same(course.net.state_dict(), before)
    assert course.net.training


def test_what_goes_is_smallest_among_what_is_left(course):
    dense, ticket = imp(course, 1, Budget(rate=0.5))
    values = torch.cat([dense.final[name].abs().flatten() for name in dense.masks])
    gone = torch.cat([~mask.flatten() for mask in ticket.masks.values()])
    assert values[gone].max() <= values[~gone].min()


def test_training_begins_at_the_step_rewound_to(course, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "efface.training.course.tune", lambda *given, start, **k: seen.append(start) or tune(*given, start=start, **k)
    )
    list(imp(course, 2, rewind=3, controls=["shuffle"]))
    assert seen == [0, 3, 3, 3, 3]


def test_rewinding_the_learning_rate_alone_keeps_the_weights(course):
    dense, *rest = imp(course, 2, rewind=2, restart="rate")
    for before, level in pairwise([dense, *rest]):
        assert same(level.start, masked(before.final, level.masks))


def test_one_dense_run_serves_several_steps(course):
    dense = course.run(course.initial, snapshots=(0, 3))
    for rewind in (0, 3):
        shared, alone = (list(imp(course, 1, rewind=rewind, dense=run)) for run in (dense, None))
        assert same(shared[1].final, alone[1].final)
        assert shared[1].masks == alone[1].masks


@pytest.mark.parametrize("rewind", [0, 2])
def test_controls_change_one_thing(course, monkeypatch, rewind):
    runs = []
    run = Course.run
    monkeypatch.setattr(Course, "run", lambda self, *a, **k: runs.append(a) or run(self, *a, **k))
    _, level = imp(course, 1, rewind=rewind, controls=["reinit", "same-sign", "shuffle"])
    assert list(level.controls) == ["reinit", "same-sign", "shuffle"]
    _dense, (start, masks), (new, new_masks), (signed, signed_masks), (old, others) = runs
    assert masks == new_masks == signed_masks != others
    assert [k for k, _ in others.per_layer().values()] == [k for k, _ in masks.per_layer().values()]
    for name, mask in masks.items():
        assert (new[name] != start[name])[mask].all()
        assert torch.equal(signed[name].sign(), start[name].sign())
        assert torch.equal(signed[name].abs(), new[name].abs())
        assert (old[name][mask & others[name]] == start[name][mask & others[name]]).all()
        assert not old[name][~others[name]].any()


def test_same_seed_gives_same_masks_and_other_data_order_others(course):
    one, again, other = (
        [level.masks for level in imp(dataclasses.replace(course, train=dataclasses.replace(course.train, seed=s)), 2)]
        for s in (0, 0, 1)
    )
    assert one == again
    assert one != other


class TestFolder:
    @pytest.mark.parametrize("stop", [1, 2, 3])
    def test_levels_go_on_where_they_stopped(self, course, tmp_path, monkeypatch, stop):
        arguments = {"rewind": 2, "controls": ["shuffle"]}
        whole = list(imp(course, 2, **arguments))
        begun = imp(course, 2, **arguments, folder=tmp_path)
        for _ in range(stop):
            next(begun)
        begun.close()
        if stop == 3:
            monkeypatch.setattr(Course, "run", None)  # nothing is left to train
        for level, expected in zip(imp(course, 2, **arguments, folder=tmp_path), whole, strict=True):
            assert same(level.start, expected.start)
            assert same(level.final, expected.final)
            assert level.masks == expected.masks
            assert (level.ticket, level.controls) == (expected.ticket, expected.controls)

    def test_a_level_torn_while_it_was_stored_is_trained_again(self, course, tmp_path):
        whole = list(imp(course, 1, folder=tmp_path))
        (tmp_path / "level_01/level.json").unlink()
        assert same(list(imp(course, 1, folder=tmp_path))[1].final, whole[1].final)

    @pytest.mark.parametrize(
        "change", [{"rewind": 1}, {"budget": LAYER}, {"controls": ["shuffle"]}, {"restart": "rate"}]
    )
    def test_levels_of_another_experiment_are_refused(self, course, tmp_path, change):
        next(imp(course, 1, folder=tmp_path))
        with pytest.raises(UsageError, match="another network, training or way"):
            next(imp(course, 1, folder=tmp_path, **change))

    def test_other_initial_weights_are_another_experiment(self, course, tmp_path):
        next(imp(course, 1, folder=tmp_path))
        with torch.no_grad():
            course.net[1].weight[0, 0] += 1
        with pytest.raises(UsageError, match="another network"):
            next(imp(course, 1, folder=tmp_path))

    @pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"controls": {}, "ticket": {}, "experiment": ""})])
    def test_a_damaged_level_is_named(self, course, tmp_path, text):
        next(imp(course, 1, folder=tmp_path))
        (tmp_path / "level_00/level.json").write_text(text)
        with pytest.raises(WeightsError, match="level_00"):
            next(imp(course, 1, folder=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"levels": 0}, "prune nothing"),
        ({"rewind": 6}, "step 6 is not one of the 6 steps"),
        ({"rewind": -1}, "step -1"),
        ({"restart": "momentum"}, "momentum"),
        ({"controls": ["redraw"]}, "redraw"),
        ({"dense": Trained({}, {0: {}}, None), "rewind": 2}, "no snapshot at step 2"),
        ({"levels": 40, "budget": LAYER}, "level .* would leave nothing"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_trained(course, monkeypatch, arguments, match):
    monkeypatch.setattr(Course, "run", None)
    with pytest.raises(UsageError, match=match):
        next(imp(course, **{"levels": 1, **arguments}))


def test_a_layer_that_a_global_ranking_empties_is_named(course):
    with torch.no_grad():
        course.net[4].weight.mul_(1e-3)
    frozen = dataclasses.replace(course, train=dataclasses.replace(course.train, lr=1e-6))
    with pytest.raises(LayerCollapse, match=r"4\.weight"):
        list(imp(frozen, 1, Budget(rate=0.7)))


class TestRedrawn:
    def test_is_another_initialisation_and_always_the_same(self, course):
        before = torch.get_rng_state()
        one, two = course.redrawn(), course.redrawn()
        assert same(one, two)
        assert not torch.equal(one["1.weight"], course.initial["1.weight"])
        assert torch.equal(torch.get_rng_state(), before)

    def test_takes_a_function_that_builds(self, course):
        assert course.redrawn(build).keys() == course.initial.keys()

    def test_a_module_that_cannot_draw_is_named(self, course):
        class Scale(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(3))

        net = nn.Sequential(build(), Scale())
        with pytest.raises(UsageError, match=r"1: Scale has weights but no reset_parameters"):
            dataclasses.replace(course, net=net).redrawn()

    @pytest.mark.parametrize(
        ("fresh", "match"),
        [
            (lambda: nn.Linear(2, 2), "another form"),
            (lambda: build().apply(lambda m: [p.data.fill_(np.random.rand()) for p in m.parameters()]), "each time"),
        ],
    )
    def test_a_function_that_builds_something_else_is_refused(self, course, fresh, match):
        with pytest.raises(UsageError, match=match):
            course.redrawn(fresh)


class TestBudget:
    masks = MaskSet({"a": torch.ones(30, 10, dtype=torch.bool), "b": torch.ones(7, 10, dtype=torch.bool)})

    @pytest.mark.parametrize("sparsity", [0.05, 0.2, 0.5, 0.9, 0.97])
    @pytest.mark.parametrize("budget", [Budget(), Budget(scope="layer", rates={"b": 0.1})], ids=["global", "layer"])
    def test_whole_levels_reach_a_sparsity(self, budget, sparsity):
        lowered, levels = budget.reaching(self.masks, sparsity)
        kept = lowered.keep(self.masks, levels)
        total = kept if isinstance(kept, int) else sum(kept.values())
        assert total == pytest.approx(370 * (1 - sparsity), abs=0.5 if isinstance(kept, int) else 1)
        assert lowered.rate <= budget.rate
        if levels > 1:
            fewer = budget.keep(self.masks, levels - 1)
            assert (fewer if isinstance(fewer, int) else sum(fewer.values())) > 370 * (1 - sparsity) - 1

    def test_one_level_is_enough_where_it_takes_all_at_once(self):
        assert Budget(rate=0.9).reaching(self.masks, 0.9)[1] == 1

    @pytest.mark.parametrize("settings", [{"rate": 0.0}, {"rate": 1.0}, {"scope": "net"}, {"rates": {"a": 0.1}}])
    def test_shares_out_of_range_are_refused(self, settings):
        with pytest.raises(UsageError):
            Budget(**settings)

    @pytest.mark.parametrize("sparsity", [0.0, 1.0, -1.0, float("nan")])
    def test_sparsities_out_of_range_are_refused(self, sparsity):
        with pytest.raises(UsageError, match="sparsity"):
            Budget().reaching(self.masks, sparsity)

    def test_a_share_for_an_unknown_layer_is_refused(self):
        with pytest.raises(UsageError, match="Did you mean"):
            Budget(scope="layer", rates={"aa": 0.1}).keep(self.masks, 1)


def test_the_best_are_taken_among_the_living_alone():
    masks = MaskSet({"a": torch.tensor([True, False, True, True])})
    scores = {"a": torch.tensor([1.0, 9.0, 0.0, 3.0])}
    assert best(scores, masks, 2)["a"].tolist() == [True, False, False, True]
    assert best(scores, masks, {"a": 3}) == masks


def test_a_prune_step_is_given_what_it_asks_for(course):
    seen = []

    def prune(round, keep):
        seen.append((round, keep, round.retrain(smallest(round, keep))))
        return smallest(round, keep)

    levels = list(imp(course, 2, rewind=1, prune=prune))
    for (given, keep, retrained), (before, after) in zip(seen, pairwise(levels), strict=True):
        assert (given.masks, given.start, given.final) == (before.masks, before.start, before.final)
        assert keep == after.masks.kept
        assert same(retrained, after.final)  # rewound and trained alike
