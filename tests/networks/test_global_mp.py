"""One threshold takes exactly as many weights as asked, layers keep their minimum, and training brings nothing back."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from efface.core.method import Work
from efface.errors import PlanError, UnknownNameError, UsageError, WeightsError
from efface.networks.global_mp import GlobalMP, lamp, layer_rms, quotas
from efface.parts.data.tasks import Task
from efface.parts.sparsity.controller import DynamicSparsity
from efface.parts.sparsity.densities import exact_counts

LONG = {"steps": 20, "batch": 8, "optimizer": "adamw", "lr": 1e-2}


def net_of(*sizes, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))).to(dtype)


def values(net):
    return {name: p.detach().clone() for name, p in net.state_dict().items()}


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pictures = (rng.integers(0, 99, (60, 1, 4, 4)) + 50 * labels[:, None, None, None]).astype(np.uint8)
    return Task.from_arrays((pictures, labels), (pictures[:30], labels[:30]))


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.floats(0, 0.999), st.booleans())
def test_the_count_is_exact_whatever_the_weights(sizes, sparsity, ties):
    net = net_of(*sizes)
    if ties:
        nn.utils.vector_to_parameters(torch.ones(sum(p.numel() for p in net.parameters())), net.parameters())
    masks = GlobalMP(sparsity=sparsity, min_keep=0).masks(net)
    assert masks.total - masks.kept == int(round(sparsity * masks.total, 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_keeps_the_largest_in_every_number_format(dtype):
    net = net_of(7, 9, 3, dtype=dtype)
    masks = GlobalMP(sparsity=0.7, min_keep=0).masks(net)
    kept = torch.cat([p.abs()[masks[name]] for name, p in net.named_parameters()])
    gone = torch.cat([p.abs()[~masks[name]] for name, p in net.named_parameters()])
    assert kept.min() >= gone.max()


@pytest.mark.parametrize("mode", ["exact", "quota"])
@pytest.mark.parametrize("minimum", [-1, 0, 1, 5, 100])
def test_minima_are_met_and_the_total_stays(minimum, mode):
    net = net_of(20, 10, 2, 20, 30)
    with torch.no_grad():
        net[1].weight.mul_(1e-3)  # would lose everything
    masks = GlobalMP(sparsity=0.6, min_keep=minimum, mode=mode).masks(net)
    assert masks.total - masks.kept == int(0.6 * masks.total)
    for name, (kept, size) in masks.per_layer().items():
        outputs = masks[name].shape[0]
        assert kept >= min(size, outputs if minimum < 0 else minimum)


def test_no_layer_is_emptied_unless_that_is_asked_for_and_then_it_is_said():
    net = net_of(10, 10, 10)
    with pytest.raises(UsageError, match="Keep at least 2"):
        GlobalMP(sparsity=0.999).masks(net)
    assert GlobalMP(sparsity=0.99).masks(net).per_layer() == {"0.weight": (1, 100), "1.weight": (1, 100)}
    plan = GlobalMP(sparsity=0.999, min_keep=0).plan(net, None, Work(seed=7))
    assert "1 of 2 layers keep no weight" in plan.made_by["notes"][0]
    assert plan.made_by["effective_density"] == 0
    assert "100.0% of the weights kept lie on no path" in plan.made_by["notes"][1]
    assert plan.made_by["seed"] == 7


def test_an_impossible_minimum_tells_the_largest_possible_one():
    with pytest.raises(UsageError, match="lower the minimum to 10 a layer"):
        GlobalMP(sparsity=0.9, min_keep=20).masks(net_of(10, 10, 10))
    assert GlobalMP(sparsity=0.9, min_keep=10).masks(net_of(10, 10, 10)).kept == 20
    by_default = GlobalMP(sparsity=0.95).masks(net_of(10, 10, 10)).per_layer()
    assert [kept for kept, _ in by_default.values()] == [5, 5]


def test_a_common_scale_changes_nothing_and_that_of_a_layer_only_without_normalising():
    net, scaled, uneven = (net_of(12, 14, 9) for _ in range(3))
    with torch.no_grad():
        for p in scaled.parameters():
            p.mul_(8)
        uneven[1].weight.mul_(8)
    for normalize in ("none", "layer_rms", "lamp"):
        method = GlobalMP(sparsity=0.8, min_keep=0, normalize=normalize)
        assert method.masks(net) == method.masks(scaled)
        assert (method.masks(net) == method.masks(uneven)) == (normalize != "none")


def test_normalised_scores_are_what_their_papers_say():
    weight = torch.tensor([[3.0, -1.0], [2.0, 0.0]])
    assert torch.allclose(layer_rms(weight), weight.abs() / 3.5**0.5)
    assert torch.allclose(lamp(weight).float(), torch.tensor([[1.0, 1 / 14], [4 / 13, 0.0]]))
    assert torch.equal(layer_rms(torch.zeros(2)), torch.zeros(2))


def test_quotas_scale_what_is_not_capped():
    sizes = {"a": 100, "b": 100, "c": 10}
    found = quotas({"a": 0.5, "b": 0.1, "c": 0.0}, sizes, dict.fromkeys(sizes, 5))
    # c is capped at 5 of 10, and the other sparsities .5 and .9 grow alike by 150 / 145, then for what b's cap leaves
    assert found["c"] == pytest.approx(0.5)
    assert (1 - found["a"]) / (1 - found["b"]) == pytest.approx(5 / 9)
    assert exact_counts(found, sizes) == {"a": 48, "b": 7, "c": 5}


def test_tied_weights_count_once_and_globs_choose():
    net = net_of(6, 6, 6, 6)
    net[2].weight = net[0].weight
    assert GlobalMP(sparsity=0.5).masks(net).total == 72
    assert set(GlobalMP(exclude=("0",)).masks(net)) == {"1.weight"}
    with pytest.raises(UnknownNameError):
        GlobalMP(include=("encoder.*",)).masks(net)


def test_without_data_the_plan_is_masks_and_the_model_stays(work):
    net = net_of(8, 8, 8)
    before = values(net)
    plan = GlobalMP(sparsity=0.75).plan(net, None, work)
    assert all(torch.equal(before[name], p) for name, p in net.state_dict().items())
    assert {op.kind for op in plan.ops} == {"mask"}
    plan.apply(net)
    assert sum(int(p.count_nonzero()) for p in net.parameters()) == 32
    plan.undo(net)
    assert all(torch.equal(before[name], p) for name, p in net.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bad, work):
    net = net_of(4, 4)
    net[0].weight.data[1, 2] = bad
    with pytest.raises((WeightsError, PlanError), match="NaN"):
        GlobalMP(sparsity=0.5).plan(net, None, work)


def test_layers_of_different_scale_are_told(work):
    net = net_of(8, 8, 8)
    with torch.no_grad():
        net[0].weight.mul_(100)
    told = []
    plan = GlobalMP(sparsity=0.1).plan(net, None, Work(progress=told.append))
    assert told == plan.made_by["notes"]
    assert "0.weight" in told[0]
    assert GlobalMP(sparsity=0.1, normalize="layer_rms").plan(net, None, work).made_by["notes"] == []


def test_a_folded_batch_norm_changes_the_ranking(classifier):
    with torch.no_grad():
        classifier[1].weight.copy_(torch.tensor([100.0, 1e-4, 1e-4, 1e-4]))
    method, example = GlobalMP(sparsity=0.8, min_keep=0, fold_bn_for_scoring=True), (torch.zeros(1, 1, 4, 4),)
    masks = method.masks(classifier, example)
    assert masks["0.weight"][0].all()
    assert not masks["0.weight"][1:].any()
    with pytest.raises(UsageError, match="example"):
        method.masks(classifier)


@pytest.mark.parametrize("schedule", ["oneshot", "gradual"])
def test_training_keeps_exactly_the_weights_that_are_left(schedule, classifier, task, work):
    before = values(classifier)
    method = GlobalMP(sparsity=0.6, schedule=schedule, **LONG)
    plan = method.plan(classifier, task, work)
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())
    net = plan.apply(copy.deepcopy(classifier))
    kept = sum(int(net[i].weight.count_nonzero()) for i in (0, 4))
    assert kept == 84 - int(0.6 * 84)
    assert not torch.equal(net[4].bias, classifier[4].bias)
    again = method.plan(classifier, task, work).apply(copy.deepcopy(classifier))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


def test_gradual_masks_are_nested(classifier, task, work, monkeypatch):
    seen = []
    update = DynamicSparsity._update

    def spy(self, *args):
        update(self, *args)
        seen.append({name: mask.clone() for name, mask in self.masks.items()})

    monkeypatch.setattr(DynamicSparsity, "_update", spy)
    GlobalMP(sparsity=0.8, schedule="gradual", **LONG).plan(classifier, task, work)
    assert len(seen) > 3
    assert all(not (after[name] & ~before[name]).any() for before, after in pairwise(seen) for name in after)


@pytest.mark.parametrize("settings", [{}, {"steps": 0}, {"mode": "quota", "steps": 4}, {"normalize": "lamp"}])
def test_gradual_pruning_says_what_it_cannot(settings, classifier, task, work):
    with pytest.raises(UsageError, match="gradual pruning"):
        GlobalMP(schedule="gradual", **settings).plan(classifier, task if settings else None, work)


@pytest.fixture
def work():
    return Work(seed=1)
