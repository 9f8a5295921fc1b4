"""Activate-while-pruning: which weights go, what that does to neurons, and what is refused."""

from __future__ import annotations

import copy
import math
from types import FunctionType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tickets import task
from torch import nn

from efface.core.method import Work
from efface.errors import UsageError
from efface.networks.ap import Activate, ActivateWhilePruning, dnr
from efface.parts.metrics.activity import dead_neurons
from efface.parts.nn.classifiers import mlp
from efface.parts.sparsity.masks import MaskSet
from efface.training.course import Course
from efface.training.levels import Round, imp, smallest
from efface.training.recipe import Train

QUICK = {"steps": 6, "batch": 8, "lr": 0.05, "sparsity": 0.5, "q": 0.05}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def a_round(seed=0, live=0.7):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"a": (9, 8), "b": (7, 9)}
    start = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    final = {name: value + 0.5 * torch.randn(value.shape, generator=draw) for name, value in start.items()}
    masks = MaskSet({name: torch.rand(shape, generator=draw) < live for name, shape in shapes.items()})
    return Round(masks, start, final)


def picked(given, step, keep):
    """Return which weights AP takes of what the host leaves, by its cut of the round."""
    left = step(given, keep)
    assert left.kept == keep
    assert (given.masks & left) == left
    return {name: mask & ~left[name] for name, mask in step.hosted(given, keep).items()}


def flat(tensors, masks):
    return torch.cat([tensors[name][mask] for name, mask in masks.items()])


@given(st.integers(0, 1000), st.floats(0.03, 0.15))
def test_the_share_q_is_of_negative_weights_that_moved_least(seed, q):
    given, step = a_round(seed), Activate(q)
    keep = int(0.8 * given.masks.kept)
    gone = picked(given, step, keep)
    moves = {name: (value - given.start[name]).abs() for name, value in given.final.items()}
    left = step(given, keep)
    others = {name: mask & (given.final[name] < 0) for name, mask in left.items()}
    assert sum(int(mask.sum()) for mask in gone.values()) == math.floor(round(q * given.masks.kept, 6))
    assert (flat(given.final, gone) < 0).all()
    if any(mask.any() for mask in gone.values()):
        assert flat(moves, gone).max() <= flat(moves, others).min()


def test_the_host_takes_the_rest_by_magnitude():
    given = a_round()
    keep = int(0.8 * given.masks.kept)
    step = Activate(0.05)
    assert step.hosted(given, keep) == smallest(given, keep + int(0.05 * given.masks.kept))


def test_q_of_nothing_is_the_host():
    given = a_round()
    assert Activate(0.0)(given, 60) == smallest(given, 60)


def test_controls_take_others():
    given = a_round()
    keep = int(0.8 * given.masks.kept)
    still, any_, positive = (
        picked(given, Activate(0.1, pick=p), keep) for p in ("still negative", "any negative", "still positive")
    )
    assert (flat(given.final, any_) < 0).all()
    assert (flat(given.final, positive) > 0).all()
    assert any((still[name] != any_[name]).any() for name in still)
    again = picked(given, Activate(0.1, pick="any negative"), keep)
    assert all(torch.equal(any_[name], again[name]) for name in again)


def test_a_spared_layer_is_left_to_the_host():
    given = a_round()
    gone = picked(given, Activate(0.1, spared=("a",)), int(0.8 * given.masks.kept))
    assert not gone["a"].any()
    assert gone["b"].any()


def test_pro_chooses_on_what_the_host_left_trained_once_more():
    given = a_round()
    asked = []
    other = {name: -value for name, value in given.final.items()}

    def retrain(masks):
        asked.append(masks)
        return other

    keep = int(0.8 * given.masks.kept)
    pro, lite = Activate(0.1, "pro"), Activate(0.1)
    gone = picked(Round(given.masks, given.start, given.final, retrain), pro, keep)
    assert asked == [lite.hosted(given, keep)]
    assert (flat(given.final, gone) > 0).all()


@given(st.integers(0, 1000))
def test_a_cut_never_kills_a_neuron_whose_inputs_are_positive(seed):
    draw = torch.Generator().manual_seed(seed)
    layer = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
    x = torch.rand(20, 8, generator=draw)
    weight = torch.randn(6, 8, generator=draw)
    layer[0].weight.data = weight.clone()
    masks = MaskSet({"0.weight": torch.ones(6, 8, dtype=torch.bool)})
    before, rate = layer[0](x), dead_neurons(layer, [x]).dynamic
    left = Activate(0.1).activate(masks, {"0.weight": torch.zeros(6, 8)}, {"0.weight": weight}, 5)
    left.apply_(layer)
    assert (layer[0](x) >= before - 1e-6).all()
    assert dead_neurons(layer, [x]).dynamic <= rate


def test_both_arms_take_as_many_steps(monkeypatch):
    taken = []
    run = Course.run
    monkeypatch.setattr(Course, "run", lambda self, *a, **k: taken.append(self.train.steps) or run(self, *a, **k))
    course = Course(net(), task(), Train(steps=4, batch=8, lr=0.05, optimizer="sgd"))
    counts = []
    for prune in (smallest, Activate(0.05), Activate(0.05, "pro")):
        taken.clear()
        list(imp(course, 2, prune=prune))
        counts.append(sum(taken))
    assert counts == [12, 12, 20]  # pro trains twice for each cut, and says so


class TestPlan:
    def plan(self, model, **params):
        return ActivateWhilePruning(**{**QUICK, **params}).plan(model, task(), Work())

    def test_masks_convolutions_and_linear_layers_alone(self):
        model = net()
        before = copy.deepcopy(model.state_dict())
        made = self.plan(model)
        assert [op.target for op in made.ops] == ["1.weight", "4.weight"]
        after = made.apply(model).state_dict()
        assert sum(int(after[k].count_nonzero()) for k in ("1.weight", "4.weight")) == 114
        assert all(torch.equal(v, before[k]) for k, v in after.items() if k not in ("1.weight", "4.weight"))

    @pytest.mark.parametrize("params", [{}, {"variant": "pro"}, {"skip_first": True, "q": 0.01}, {"q": 0.0}])
    def test_tells_of_dead_neurons_and_of_each_cut(self, params):
        first, *rest = self.plan(net(), **params).made_by["levels"]
        q = params.get("q", QUICK["q"])
        assert "cut" not in first["dead"]
        kept = [sum(level["per_layer"].values()) for level in (first, *rest)]
        for level, before in zip(rest, kept, strict=False):
            dead = level["dead"]
            assert 0 <= dead["dynamic"] <= 1
            assert set(dead["per_layer"]) == {"3"}
            assert sum(dead["cut"]["taken"].values()) == int(q * before)
            assert not params.get("skip_first") or not dead["cut"]["taken"]["1.weight"]

    def test_keeps_levels_to_go_on_from(self, tmp_path):
        whole, again = (self.plan(net(), folder=str(tmp_path)) for _ in range(2))
        assert whole.after == again.after
        assert whole.made_by == again.made_by

    def test_levels_of_another_process_are_known_again(self, tmp_path):
        course = Course(net(), task(), Train(steps=2, batch=8, optimizer="sgd"))
        there, here = (FunctionType(smallest.__code__, smallest.__globals__, "smallest") for _ in range(2))
        next(imp(course, 1, prune=Activate(0.05, host=there), folder=tmp_path))
        next(imp(course, 1, prune=Activate(0.05, host=here), folder=tmp_path))
        with pytest.raises(UsageError, match="another"):
            next(imp(course, 1, prune=Activate(0.04, host=here), folder=tmp_path))

    @pytest.mark.parametrize(
        ("model", "params", "match"),
        [
            (net, {"q": 0.2}, "leaves nothing"),
            (net, {"q": 0.5}, "leaves nothing"),
            (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Tanh()), {}, "no neuron can die"),
        ],
    )
    def test_refuses_what_cannot_be(self, model, params, match):
        with pytest.raises(UsageError, match=match):
            self.plan(model(), **params)


def test_a_network_without_enough_negative_weights_is_refused():
    given = a_round()
    positive = Round(given.masks, given.start, {name: value.abs() for name, value in given.final.items()})
    with pytest.raises(UsageError, match="negative weights are to go, and there are 0"):
        Activate(0.1)(positive, 60)


def test_cuts_of_single_layers_are_refused():
    with pytest.raises(UsageError, match="Prune globally"):
        Activate(0.1)(a_round(), {"a": 5, "b": 5})


def test_dnr_is_that_of_the_part_asked_for():
    model = mlp((16, 12, 3))
    found = dnr(model, task(), split="test", limit=10)
    examples = task().test
    index = examples.order(0, 0, 10)
    hidden = model[:3](examples.take(index)["picture"])
    assert found.dynamic == pytest.approx(float((hidden == 0).float().mean()))
    assert found.layers["relu1"].inputs == 10
