"""Jackpots: masks over weights that stay as they are, bit by bit."""

import copy

import pytest
import torch
from tickets import task

from efface.core.method import Work
from efface.core.plan import Plan
from efface.errors import UsageError
from efface.networks.lottery_jackpots import LotteryJackpots
from efface.parts.nn.classifiers import mlp
from efface.parts.sparsity.topk import keep_global

QUICK = {"steps": 6, "batch": 8}
SIZES = 16 * 12, 12 * 8, 8 * 3


def net():
    torch.manual_seed(0)
    return mlp((16, 12, 8, 3))


@pytest.mark.parametrize("params", [{}, {"budgets": "uniform"}, {"start": "random"}, {"restriction": 0.0}])
def test_kept_weights_are_those_of_the_model_and_the_last_layer_is_whole(params, tmp_path):
    model = net()
    before = copy.deepcopy(model.state_dict())
    LotteryJackpots(sparsity=0.7, **QUICK, **params).plan(model, task(), Work()).save(tmp_path)
    after = Plan.load(tmp_path).apply(model).state_dict()
    kept = [after[f"linear{i}.weight"].count_nonzero() for i in (1, 2, 3)]
    assert sum(kept) == sum(SIZES) - round(0.7 * sum(SIZES))
    assert kept[2] == SIZES[2]
    assert all(torch.equal(v[v != 0], before[name][v != 0]) for name, v in after.items())
    if "budgets" in params:
        assert float(kept[0] / SIZES[0]) == pytest.approx(float(kept[1] / SIZES[1]), abs=0.02)


def test_the_budgets_are_those_of_one_threshold():
    model = net()
    masks = LotteryJackpots(sparsity=0.8, spare_last=False).first(model, Work())
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    assert masks == keep_global(weights, sum(SIZES) - round(0.8 * sum(SIZES)), min_keep=1, key=torch.abs)


def test_weights_are_trained_only_where_that_is_asked_for():
    model = net()
    before = copy.deepcopy(model.state_dict())
    after = LotteryJackpots(sparsity=0.7, tune_steps=3, **QUICK).plan(model, task(), Work()).apply(model).state_dict()
    live = after["linear1.weight"] != 0
    assert not torch.equal(after["linear1.weight"][live], before["linear1.weight"][live])


def test_a_last_layer_larger_than_what_may_stay_is_said():
    with pytest.raises(UsageError, match="spare_last"):
        LotteryJackpots(sparsity=0.99, **QUICK).plan(net(), task(), Work())
    with pytest.raises(UsageError, match=r"too few for \d layers\. Lower the sparsity$"):
        LotteryJackpots(sparsity=0.9999, spare_last=False, **QUICK).plan(net(), task(), Work())
    with pytest.raises(UsageError, match="trained"):
        LotteryJackpots(**QUICK).plan(net(), None, Work())
