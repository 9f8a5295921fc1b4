"""Rewinding to an early step, and the stability that says how early."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tickets import task
from torch import nn

from efface.core.method import Work
from efface.errors import UsageError
from efface.networks.lth_rewind import RewoundTicket, earliest, find_rewind, stability, step_of
from efface.parts.sparsity.masks import MaskSet
from efface.training.course import Course, masked
from efface.training.levels import imp
from efface.training.recipe import Train

QUICK = {"steps": 6, "batch": 8, "lr": 0.05, "sparsity": 0.5, "rewind": "2it"}


def net():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(12)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), norm, nn.ReLU(), nn.Linear(12, 3))


def plan(model, **params):
    return RewoundTicket(**{**QUICK, **params}).plan(model, task(), Work())


@pytest.fixture
def course():
    return Course(net(), task(), Train(steps=6, batch=8, lr=0.05, optimizer="sgd"))


def weights_after(steps):
    """Train like the plan's dense run, by other means."""
    train = Train(
        steps=6, batch=8, lr=0.05, optimizer="sgd", schedule="steps", drops=(0.6667, 0.8333), weight_decay=1e-4
    )
    course = Course(net(), task(), train)
    return course.run(course.initial, snapshots=(steps,)).snapshots[steps]


@pytest.mark.parametrize("rewind", ["0it", "2it"])
def test_the_ticket_holds_the_weights_and_buffers_of_that_step(rewind):
    model = net()
    made = plan(model, rewind=rewind)
    origin, after = weights_after(int(rewind[0])), made.apply(model).state_dict()
    assert made.made_by["rewind"] == int(rewind[0])
    for name, value in after.items():
        live = value != 0 if name in ("1.weight", "4.weight") else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value[live], origin[name][live])
    assert int((after["1.weight"] != 0).sum() + (after["4.weight"] != 0).sum()) == round(228 * 0.5)


def test_a_plan_is_undone_bit_by_bit():
    model = net()
    made = plan(model)
    made.undo(made.apply(model))
    assert all(torch.equal(v, net().state_dict()[k]) for k, v in model.state_dict().items())


def test_the_stability_of_the_ticket_is_among_the_facts():
    facts = plan(net(), measure=True).made_by
    for kind in ("pruning", "data order"):
        found = facts[f"stability to {kind}"]
        assert found["l2"] > 0
        assert 0 < found["angle_deg"] < 180
        assert set(found["per_layer"]) == {"1.weight", "4.weight"}
        assert len(found["errors"]) == len(found["alphas"]) == 11


@pytest.mark.parametrize(
    ("text", "step"), [("0it", 0), ("500it", 500), ("3%", 900), ("0.1 %", 30), ("6ep", 600), (" 1.5ep", 150)]
)
def test_steps_are_written_in_three_ways(text, step):
    assert step_of(text, 30_000, 100) == step


@pytest.mark.parametrize("text", ["", "500", "it", "-1it", "3 percent", "100%", "30000it", "300ep"])
def test_what_is_no_step_of_the_training_is_refused(text):
    with pytest.raises(UsageError, match="rewind"):
        step_of(text, 30_000, 100)


class TestStability:
    def test_to_pruning_compares_with_the_same_weights_of_the_whole_network(self, course):
        dense, level = imp(course, 1, rewind=2)
        origin = dense.start
        alone = stability(course, origin, level.masks, 2, "pruning")
        known = stability(
            course, origin, level.masks, 2, "pruning", trained=level.final, dense=course.run(origin, step=2).weights
        )
        assert alone == known
        assert alone.distance.l2 > 0

    def test_to_data_order_compares_two_orders_of_one_training(self, course, monkeypatch):
        seeds = []
        run = Course.run
        monkeypatch.setattr(Course, "run", lambda self, *a, **k: seeds.append(k.get("seed")) or run(self, *a, **k))
        masks = MaskSet.ones_like(course.net)
        assert stability(course, course.initial, masks, 0, "data order").distance.l2 > 0
        assert seeds[0] is None
        assert seeds[1] not in (None, course.train.seed)

    def test_a_training_that_does_not_move_is_stable(self, course):
        still = dataclasses.replace(course, train=dataclasses.replace(course.train, lr=0.0))
        found = stability(still, still.initial, MaskSet.ones_like(still.net), 0, "data order")
        assert (found.distance.l2, found.distance.angle, found.barrier.height) == (0, 0, 0)

    def test_weights_that_were_pruned_do_not_count(self, course):
        _, level = imp(course, 1)
        other = {name: value + 1 for name, value in level.final.items()}
        known = {"trained": level.final, "points": 2}
        loose = stability(course, level.start, level.masks, 0, "pruning", dense=other, **known)
        tight = stability(course, level.start, level.masks, 0, "pruning", dense=masked(other, level.masks), **known)
        assert loose == tight


class TestFindRewind:
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0, 1), st.floats(0, 1))
    def test_a_lower_target_is_reached_no_earlier(self, heights, one, other):
        falling = dict(zip(range(0, 100, 7), sorted(heights, reverse=True), strict=False))
        steps = list(falling)
        found = {target: earliest(steps, falling.__getitem__, target) for target in (one, other)}
        for target, (step, measured) in found.items():
            assert step == next((s for s in steps if falling[s] <= target), None)
            assert len(measured) <= len(steps).bit_length()
        low, high = (found[target][0] for target in sorted((one, other)))
        assert low is None or low >= high

    def test_measures_candidates_of_one_dense_run(self, course):
        lines = []
        told = dataclasses.replace(course, progress=lines.append)
        step, measured = find_rewind(told, target=1.0)
        assert step == 0
        assert set(measured) <= {0, 1, 2}
        assert len(lines) == len(measured)
        assert find_rewind(told, target=-1.0, candidates=(1, 3))[0] is None

    def test_candidates_are_steps_of_the_training(self, course):
        with pytest.raises(UsageError, match="step 6"):
            find_rewind(course, candidates=(0, 6))
