import copy

import pytest
import torch
from tickets import task

from efface.core.method import Work
from efface.errors import UsageError
from efface.networks import granet
from efface.networks.granet import GraNet, plasticity
from efface.parts.metrics.plasticity import Plasticity, Wound
from efface.parts.nn.classifiers import mlp
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.prunable import prunable
from efface.parts.sparsity.regimes import PRESETS
from efface.training.recipe import Train

TRAIN = Train(steps=20, batch=10, lr=0.01, schedule="cosine")


def network():
    torch.manual_seed(0)
    return mlp((16, 30, 20, 3))


def method(**params):
    given = {"sparsity": 0.8, "steps": 20, "every": 3, "batch": 10, "drop": 0.3, "optimizer": "adamw", "lr": 0.01}
    return GraNet(**{**given, **params})


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_ends_at_the_sparsity_asked_for(name, scope):
    net = network()
    plan = method(preset=name, scope=scope).plan(net, task(), Work())
    total = sum(weight.numel() for weight in prunable(net).values())
    masks, facts = plan.masks(), plan.made_by
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.2 * total)
    assert facts["history"][-1]["density"] == pytest.approx(0.2, abs=1 / total)
    made = plan.apply(copy.deepcopy(net))
    assert all((made.get_parameter(n)[~mask] == 0).all() for n, mask in masks.items())
    assert not torch.equal(made.linear3.bias, net.linear3.bias)
    assert (facts["training_flops"] == pytest.approx(0.2)) == (name in ("static", "set"))  # the others need more


def test_static_masks_cost_their_density_and_gradual_ones_its_integral():
    static, gmp = (method(preset=name).plan(network(), task(), Work()).made_by for name in ("static", "gmp"))
    assert static["training_flops"] == pytest.approx(0.2, abs=0.02)  # all layers see each picture once
    steps = [*(change["step"] for change in gmp["history"]), 20]
    integral = sum(c["density"] * (b - a) for c, a, b in zip(gmp["history"], steps, steps[1:], strict=False)) / 20
    assert gmp["training_flops"] == pytest.approx(integral, abs=1e-6)


def test_excluded_weights_stay_dense():
    masks = method(exclude=("linear3",)).plan(network(), task(), Work()).masks()
    assert set(masks) == {"linear1.weight", "linear2.weight"}
    assert sum(int(m.sum()) for m in masks.values()) == round(0.2 * (16 * 30 + 30 * 20))


def test_the_defaults_are_the_papers():
    regime = GraNet().regime()
    assert (regime.density, regime.init_density) == (pytest.approx(0.1), 0.5)
    assert (regime.every, regime.stop, regime.end) == (1000, 31_250, 62_500)
    assert (regime.drop, regime.drop_last, regime.growth) == (0.5, 0.005, "gradient")


def test_hyper_parameters_reach_the_regime():
    regime = GraNet(init_density=1.0, steps=600, every=30, stop=0.6, scope="uniform", growth="momentum").regime()
    assert (regime.init_density, regime.drop, regime.stop, regime.end) == (1.0, 0.15, 360, 420)
    assert (regime.scope, regime.growth) == ("uniform", "momentum")
    assert GraNet(preset="set", growth="momentum").regime().growth == "random"
    assert GraNet(preset="gmp").regime().growth == "none"
    assert (GraNet(drop=0.4, end=0.9).regime().drop, GraNet(drop=0.4, end=0.9).regime().end) == (0.4, 56_250)


def test_training_needs_a_task_and_room_for_minima():
    with pytest.raises(UsageError, match="no data"):
        GraNet().plan(network(), None, Work())
    with pytest.raises(UsageError, match="min_keep"):
        method(sparsity=0.99, min_keep=20).plan(network(), task(), Work())


def test_plasticity_tells_every_wound_and_leaves_the_model():
    net = network()
    before = copy.deepcopy(net.state_dict())
    lines = []
    options = {"at": (0.0, 0.5), "rates": (0.0, 0.9), "criteria": ("random", "snip"), "steps": 2}
    found = plasticity(net, task(), TRAIN, **options, work=Work(progress=lines.append))
    assert len(found.wounds) == len(lines) == 2 * 2 * 2 * 2
    assert {w.step for w in found.wounds} == {0, 10}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert len({(w.step, w.before) for w in found.wounds}) == 2
    assert len({(w.step, w.after) for w in found.wounds if w.rate == 0}) == 2  # however nothing was pruned
    assert found == plasticity(net, task(), TRAIN, **options)


def test_networks_heal_at_a_high_rate_and_not_at_none():
    high = plasticity(network(), task(), TRAIN, at=(0.5,), rates=(0.5,), regrow=("none",), steps=30, split="train")
    still = Train(steps=20, batch=10, lr=0.0)
    none = plasticity(network(), task(), still, at=(0.5,), rates=(0.5,), regrow=("none",), steps=30, split="train")
    assert high.wounds[0].plasticity > none.wounds[0].plasticity


@pytest.mark.parametrize("growth", ["none", "gradient", "momentum", "random"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_a_wound_takes_a_share_of_the_live_weights_and_regrows_as_many_at_zero(growth, scope):
    net, given = network(), MaskSet.ones_like(network())
    given["linear1.weight"][:, :8] = False
    given.apply_(net)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    task().loss(net, task().train.batch(0, 0, 10)).backward()
    optimizer.step()
    given.apply_(net)
    handle = granet._wound(given, task(), TRAIN, 0.5, "magnitude", growth, scope, net, optimizer)
    live = {name: int(weight.count_nonzero()) for name, weight in prunable(net).items()}
    assert sum(live.values()) == pytest.approx(given.kept / 2, abs=2)
    if scope == "uniform":
        assert all(n == pytest.approx(given[name].sum() / 2, abs=1) for name, n in live.items())
    zero = {name: weight == 0 for name, weight in prunable(net).items()}
    assert all((optimizer.state[w]["exp_avg"][zero[n]] == 0).all() for n, w in prunable(net).items())
    with torch.no_grad():
        for weight in prunable(net).values():
            weight.grad.fill_(1.0)
    optimizer.step()
    after = sum(int(weight.count_nonzero()) for weight in prunable(net).values())
    assert after == (given.kept if growth != "none" else sum(live.values()))
    handle.remove()
    assert not optimizer._optimizer_step_post_hooks


def test_a_wounded_layer_of_a_sparse_network_may_grow_elsewhere():
    found = plasticity(
        network(), task(), TRAIN, at=(0.5,), rates=(0.8,), regrow=("gradient", "random", "momentum"), density=0.3,
        steps=20, split="train",
    )  # fmt: skip
    assert len({w.before for w in found.wounds}) == 1
    assert len({w.regrown for w in found.wounds}) == 3


@pytest.mark.parametrize("wrong", [{"at": (1.0,)}, {"rates": (-0.1,)}, {"rates": (1.0,)}], ids=str)
def test_impossible_shares_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        plasticity(network(), task(), TRAIN, **wrong)


def test_plasticity_is_told_and_drawn(tmp_path):
    found = Plasticity(
        tuple(Wound(step, 0.5, "magnitude", g, 0.4, 0.5) for g in ("none", "gradient") for step in (10, 20))
    )
    assert found.wounds[0].plasticity == pytest.approx(0.1)
    assert found.table().row_count == 4
    found.plot(tmp_path / "plasticity.svg")
    assert (tmp_path / "plasticity.svg").read_text().startswith("<?xml")
