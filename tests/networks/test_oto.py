import copy

import pytest
import torch
from tickets import task
from torch import nn

from efface.core.method import Work
from efface.core.ops import Bypass, Drop, Replace
from efface.errors import PlanError, UnknownNameError, UsageError
from efface.networks.oto import OTO
from efface.parts.nn.cells import cell_net
from efface.parts.nn.resnets import resnet_cifar

X = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(3))
NETWORKS = {
    "residual": lambda: resnet_cifar(8, 4, channels=1, classes=3),
    "cells": lambda: cell_net((4, 4), channels=1, classes=3),
    "concatenating": lambda: cell_net((4, 6), channels=1, classes=3, branches=("conv3", "conv1"), join="concat"),
}


def network(name="residual"):
    torch.manual_seed(0)
    return NETWORKS[name]()


def method(**params):
    given = {"target": 0.5, "steps": 8, "batch": 10, "multiple_of": 1, "optimizer": "adamw", "lr": 0.01}
    return OTO(**{**given, **params})


@pytest.mark.parametrize(
    ("name", "mode", "rule"),
    [
        ("residual", "prune", "hesso"),
        ("residual", "erase", "dhspg"),
        ("residual", "both", "hesso"),
        ("cells", "erase", "hesso"),
        ("concatenating", "prune", "dhspg"),
        ("concatenating", "both", "dhspg"),
    ],
)
def test_smaller_network_is_the_trained_one(name, mode, rule):
    net = network(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    plan = method(mode=mode, rule=rule).plan(net, task(), Work(seed=1))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    facts = plan.made_by
    assert facts["difference"] <= 1e-5
    assert all(facts["zero"][what] == round(0.5 * count) for what, count in facts["groups"].items())
    kinds = {type(op) for op in plan.ops}
    assert (Drop in kinds) >= (mode != "erase")
    assert (Replace in kinds) == (mode != "prune")
    made = plan.apply(copy.deepcopy(net))
    assert sum(p.numel() for p in made.parameters()) < 0.8 * sum(p.numel() for p in net.parameters())
    plan.undo(made)
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())
    plan.apply(made).train()(X).sum().backward()


def test_residual_branches_are_passed_through():
    plan = method(mode="erase", target=0.4).plan(network(), task(), Work())
    assert {type(op) for op in plan.ops} >= {Replace, Bypass}


@pytest.mark.parametrize(("budget", "multiple_of"), [("groups", 2), ("params", 1), ("flops", 2)])
def test_budgets_are_met(budget, multiple_of):
    net = network()
    plan = method(budget=budget, multiple_of=multiple_of, target=0.6, rule="dhspg").plan(net, task(), Work())
    cost = plan.cost(net, (X,))
    groups = plan.made_by["zero"]["channels"] / plan.made_by["groups"]["channels"]
    left = {"groups": 1 - groups, "params": cost.kept / cost.parameters, "flops": cost.flops_after / cost.flops}
    assert left[budget] == pytest.approx(0.4, abs=0.1)
    assert left[budget] <= 0.4 + 1e-3
    made = plan.apply(net)
    assert all(m.num_features % multiple_of == 0 for m in made.modules() if isinstance(m, nn.BatchNorm2d))


def test_rest_is_trained_and_excluded_groups_stay():
    net = network()
    plan = method(exclude=("conv1",)).plan(net, task(), Work())
    made = plan.apply(copy.deepcopy(net))
    assert made.conv1.out_channels == 4
    assert made.layer1[0].conv1.out_channels < 4
    assert not torch.equal(made.conv1.weight, net.conv1.weight)
    frozen = method().plan(net.requires_grad_(False), task(), Work())
    assert len(frozen.ops) > 0
    assert not any(p.requires_grad for p in net.parameters())


def test_same_seed_gives_the_same_plan():
    plans = [method().plan(network(), task(), Work(seed=4)) for _ in range(2)]
    assert not plans[0].after.differences(plans[1].after)


def test_what_was_forced_is_told():
    assert (
        "had to be set to zero" in method(rule="dhspg", weight=1e-9).plan(network(), task(), Work()).made_by["notes"][0]
    )
    assert method(rule="hesso").plan(network(), task(), Work()).made_by["notes"] == []


def test_bad_requests_are_refused_before_training():
    net = network()
    with pytest.raises(UsageError, match=r"90\.0% of the groups is out of reach: 7\d\.\d% can go"):
        method(target=0.9, multiple_of=2, steps=10**6).plan(net, task(), Work())
    with pytest.raises(UsageError, match="no data"):
        method().plan(net, None, Work())
    with pytest.raises(UsageError, match="do not fit"):
        method(start=0.5, stop=0.5).plan(net, task(), Work())
    for target in (0.0, 1.0):
        with pytest.raises(UsageError, match="target"):
            method(target=target)
    with torch.no_grad():
        net.fc.weight[0, 0] = torch.nan
    with pytest.raises(PlanError, match="NaN"):
        method(steps=10**6).plan(net, task(), Work())


@pytest.mark.parametrize("mode", ["prune", "erase", "both"])
@pytest.mark.parametrize("side", ["include", "exclude"])
def test_a_glob_that_matches_nothing_is_refused_with_what_it_may_mean(mode, side):
    with pytest.raises(UnknownNameError, match=r"Did you mean layer1\.0\.conv1"):
        method(mode=mode, steps=10**6, **{side: ("layer1.0.covn1",)}).plan(network(), task(), Work())


def test_defaults_of_the_penalty_are_the_optimisers():
    assert (OTO().stage().weight, OTO().stage().amplify, OTO().stage().limit) == (1e-3, 2.0, 10.0)
    adam = OTO(optimizer="adamw", steps=200, start=0.1, stop=0.5).stage()
    assert (adam.weight, adam.amplify, adam.limit, adam.start, adam.stop) == (1e-2, 20.0, 1e3, 20, 100)
