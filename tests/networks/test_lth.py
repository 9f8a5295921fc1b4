"""Winning tickets: what the plan makes of the untrained network."""

from __future__ import annotations

import copy

import pytest
import torch
from tickets import task

from efface.core.method import Work
from efface.core.plan import Plan
from efface.errors import UnknownNameError, UsageError
from efface.networks.lth import LotteryTicket, rates_by_layer
from efface.parts.nn.classifiers import mlp

QUICK = {"steps": 6, "batch": 8, "optimizer": "adamw", "lr": 1e-3, "schedule": "constant", "warmup": 0.0}


def net():
    torch.manual_seed(0)
    return mlp((16, 12, 8, 3))


def plan(model, **params):
    return LotteryTicket(**{**QUICK, **params}).plan(model, task(), Work())


@pytest.mark.parametrize("sparsity", [0.3, 0.75])
def test_the_ticket_is_the_initial_network_without_its_smallest_weights(sparsity):
    model = net()
    before = copy.deepcopy(model.state_dict())
    made = plan(model, sparsity=sparsity)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    after = made.apply(model).state_dict()
    kept = sum(int(v.count_nonzero()) for k, v in after.items() if k.endswith("weight"))
    assert kept == round((16 * 12 + 12 * 8 + 8 * 3) * (1 - sparsity))
    assert all(torch.equal(v[v != 0], before[k][v != 0]) for k, v in after.items())
    assert all(torch.equal(v, before[k]) for k, v in after.items() if k.endswith("bias"))


def test_a_trained_ticket_has_the_same_mask_and_other_weights():
    first, second = net(), net()
    ticket, trained = (plan(m, deliver=d).apply(m) for m, d in ((first, "ticket"), (second, "trained")))
    for name, weight in ticket.named_parameters():
        other = trained.get_parameter(name)
        assert not torch.equal(weight, other)
        if name.endswith("weight"):
            assert torch.equal(weight == 0, other == 0)


def test_a_rate_as_high_as_the_sparsity_prunes_in_one_shot():
    levels = plan(net(), sparsity=0.8, rate=0.8).made_by["levels"]
    assert [level["density"] for level in levels] == pytest.approx([1, 0.2], abs=1e-2)


def test_layers_have_rates_of_their_own():
    made = plan(net(), sparsity=0.5, scope="layer", rates=("linear3=0.1",))
    last, levels = made.made_by["levels"][-1], len(made.made_by["levels"]) - 1
    rate = made.made_by["rate"]
    assert last["per_layer"]["linear1.weight"] == round(192 * (1 - rate) ** levels)
    assert last["per_layer"]["linear3.weight"] == round(24 * (1 - rate / 2) ** levels)
    assert rate <= 0.2


def test_layers_left_alone_stay_whole():
    made = plan(net(), exclude=("linear3",))
    assert [op.target for op in made.ops] == ["linear1.weight", "linear2.weight"]


def test_facts_tell_of_every_level_and_control(tmp_path):
    made = plan(net(), sparsity=0.4, controls=("reinit", "shuffle"))
    made.save(tmp_path / "plan")
    levels = Plan.load(tmp_path / "plan").made_by["levels"]  # they are JSON
    assert [level["level"] for level in levels] == [0, 1, 2, 3]
    assert levels[0]["controls"] == {}
    for level in levels[1:]:
        assert set(level["controls"]) == {"reinit", "shuffle"}
        for arm in (level["ticket"], *level["controls"].values()):
            assert arm["steps"] == [1, 2, 3, 4, 5, 6]
            assert arm["early_stop"] == arm["steps"][arm["losses"].index(min(arm["losses"]))]
            assert {*arm["test"], *arm["train"]} == {"accuracy", "loss"}


def test_a_plan_of_stored_levels_is_the_same(tmp_path):
    model = net()
    whole = plan(model, sparsity=0.3, folder=str(tmp_path))
    again = plan(model, sparsity=0.3, folder=str(tmp_path))
    assert again.after == whole.after
    assert again.made_by == whole.made_by


@pytest.mark.parametrize(
    ("params", "error", "match"),
    [
        ({"rates": ("linear3:0.1",)}, UsageError, "is no rate"),
        ({"scope": "layer", "rates": ("linear9=0.1",)}, UnknownNameError, "linear9"),
        ({"rates": ("linear3=0.1",)}, UsageError, "where all weights compete"),
        ({"scope": "layer", "rates": ("linear3=1.5",)}, UsageError, "share of 1.5"),
        ({"scope": "layer", "sparsity": 0.99}, UsageError, "would leave nothing"),
        ({"exclude": ("*",)}, UsageError, "excluded"),
        ({"controls": ("shuffle", "redraw")}, UsageError, "redraw"),
    ],
)
def test_bad_settings_are_refused_and_the_model_is_untouched(params, error, match):
    model = net()
    with pytest.raises(error, match=match):
        plan(model, **params)
    assert all(torch.equal(v, net().state_dict()[k]) for k, v in model.state_dict().items())


def test_it_needs_a_task():
    with pytest.raises(UsageError, match="no data to train it on"):
        LotteryTicket(**QUICK).plan(net(), None, Work())


def test_rates_name_layers_or_weights():
    assert rates_by_layer(net(), ("linear*=0.1", "linear3.weight = 0.05")) == {
        "linear1.weight": 0.1,
        "linear2.weight": 0.1,
        "linear3.weight": 0.05,
    }
