"""Random search: candidates, their scores, and the smaller network that comes of them."""

import copy
import math

import numpy as np
import pytest
import torch
from tickets import task

from efface.core.method import Work
from efface.core.plan import Plan
from efface.networks.random_search import RandomSearch, compare, configurations
from efface.parts.metrics.paired import verdict
from efface.parts.nn.classifiers import mlp
from efface.parts.sparsity.nodes import hidden_layers
from efface.training.recipe import Train

QUICK = {"node_sparsity": 0.5, "budget": 20, "score_batch": 16}


def net():
    torch.manual_seed(0)
    return mlp((16, 12, 8, 3))


def keys(alive):
    return {
        tuple(torch.cat([rows[i] for rows in alive.values()]).tolist()) for i in range(len(next(iter(alive.values()))))
    }


@pytest.mark.parametrize(
    ("sizes", "keep", "budget"), [((12, 8), (6, 4), 30), ((3, 2), (1, 1), 100), ((3, 2), (1, 1), 6)]
)
def test_candidates_differ_and_keep_their_counts(sizes, keep, budget):
    hidden = hidden_layers(mlp((4, *sizes, 2)))
    kept = {layer.name: k for layer, k in zip(hidden, keep, strict=True)}
    alive = configurations(hidden, kept, budget, seed=0)
    space = math.prod(math.comb(n, k) for n, k in zip(sizes, keep, strict=True))
    assert len(keys(alive)) == len(next(iter(alive.values()))) == min(budget, space)
    assert all((rows.sum(1) == kept[name]).all() for name, rows in alive.items())


def test_the_search_keeps_the_least_loss_and_its_log_is_that_of_its_seed():
    found = RandomSearch(**QUICK).search(net(), task(), Work())
    again = RandomSearch(**QUICK, chunk=1).search(net(), task(), Work())
    torch.testing.assert_close(found.losses, again.losses)
    assert found.losses[found.best] == found.losses.min()
    assert all(torch.equal(found.alive[name], again.alive[name]) for name in found.alive)
    assert -1 <= found.agreement <= 1
    other = RandomSearch(**QUICK).search(net(), task(), Work(seed=1))
    assert any(not torch.equal(found.alive[name], other.alive[name]) for name in found.alive)


def test_the_plan_makes_a_small_dense_network_with_the_loss_of_its_log(tmp_path):
    method, model = RandomSearch(**QUICK), net()
    method.plan(model, task(), Work()).save(tmp_path)
    plan = Plan.load(tmp_path)
    small = plan.apply(copy.deepcopy(model))
    assert [small.linear1.out_features, small.linear2.in_features, small.linear2.out_features] == [6, 6, 4]
    batch = task().train.take(task().train.order(0, 0, 16))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(small(batch["picture"]), batch["label"])
    assert float(loss) == pytest.approx(plan.made_by["loss"], abs=1e-5)


def test_every_layer_keeps_a_node():
    small = RandomSearch(**QUICK | {"node_sparsity": 0.99}).plan(net(), task(), Work()).apply(net())
    assert small.linear1.out_features == small.linear2.out_features == 1


def test_nothing_is_chosen_on_the_test_pictures(monkeypatch):
    given, take = task(), type(task().test).take
    asked = []
    monkeypatch.setattr(type(given.test), "take", lambda self, index: asked.append(self) or take(self, index))
    RandomSearch(**QUICK).search(net(), given, Work())
    assert asked
    assert all(part is given.train for part in asked)


def test_arms_are_compared_pair_by_pair():
    nets = {"one": net(), "same": net()}
    result = compare(nets, task(), Train(steps=3, batch=8), repeats=2)
    assert result.accuracies("one") == result.accuracies("same")
    assert not result.verdict("one", "same").differ


@pytest.mark.parametrize(("shift", "least", "most"), [(2.0, 0.9, 1.0), (0.0, 0.0, 0.08)])
def test_verdicts_see_two_points_and_hardly_ever_see_nothing(shift, least, most):
    generator = np.random.default_rng(0)
    seen = [
        verdict((60 + shift + generator.normal(0, 0.7, 5)).tolist(), (60 + generator.normal(0, 0.7, 5)).tolist()).differ
        for _ in range(100)
    ]
    assert least <= np.mean(seen) <= most
