"""A random mask has the counts of its rule, is a function of seed, rule and density, and holds through training."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from efface.core.method import Work
from efface.errors import EffaceError, UsageError
from efface.networks.random_pruning import RandomPruning
from efface.parts.data.tasks import Task

RULES = RandomPruning.__dataclass_fields__["rule"].metadata["choices"]
QUICK = {"steps": 6, "batch": 8, "lr": 0.05}


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pictures = (rng.integers(0, 99, (60, 1, 6, 6)) + 50 * labels[:, None, None, None]).astype(np.uint8)
    return Task.from_arrays((pictures, labels), (pictures[:30], labels[:30]))


def network(width=6):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(8 * width, 3),
    )  # fmt: skip


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.73])
def test_every_rule_keeps_exactly_as_many_weights_as_asked(rule, sparsity, task):
    net = network()
    before = copy.deepcopy(net)
    masks = RandomPruning(sparsity=sparsity, rule=rule).masks(net, task, Work())
    assert masks.kept == round((1 - sparsity) * masks.total)
    assert all(kept > 0 for kept, _ in masks.per_layer().values())
    assert same(net, before)
    assert net[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(3, 5, 2), nn.Conv3d(2, 3, (1, 2, 3)), nn.ConvTranspose2d(4, 3, 3), nn.Linear(7, 1), nn.Linear(1, 1)],
    ids=repr,
)
def test_layers_of_every_shape_have_their_count(layer):
    net = nn.Sequential(layer, nn.Linear(11, 13))
    masks = RandomPruning(sparsity=0.6).masks(net, None, Work())
    assert masks.kept == round(0.4 * masks.total)


def test_a_mask_follows_from_seed_rule_and_density_alone():
    masks = RandomPruning().masks(network(), None, Work(seed=4))
    torch.manual_seed(99)
    assert masks == RandomPruning().masks(network(), None, Work(seed=4))
    assert masks != RandomPruning().masks(network(), None, Work(seed=5))
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Linear(5, 5))
    digest = RandomPruning().masks(net, None, Work(seed=4)).digest()
    assert digest.startswith("8ce32f4a924b")  # as in every other process, and on every other day


def test_positions_are_spread_evenly():
    net = nn.Sequential(nn.Linear(100, 100))
    kept = sum(RandomPruning(sparsity=0.5).masks(net, None, Work(seed=s))["0.weight"].double() for s in range(60))
    assert abs(float(kept.var()) - 15) < 2  # that of a binomial
    assert float((kept - 30).abs().max()) < 24


def test_every_output_keeps_a_weight_where_asked():
    net = nn.Sequential(nn.Linear(20, 20))
    method = RandomPruning(sparsity=0.9, avoid_dead_rows=True)
    for seed in range(20):
        mask = method.masks(net, None, Work(seed=seed))["0.weight"]
        assert mask.any(1).all()
        assert mask.sum() == 40
    with pytest.raises(UsageError, match="fewer than its 20 outputs"):
        RandomPruning(sparsity=0.96, avoid_dead_rows=True).masks(net, None, Work())


def test_the_density_of_the_last_layer_can_be_given_and_what_lies_on_no_path_is_told():
    net = network()
    kept = RandomPruning(sparsity=0.8, rule="erk+", last=0.5).masks(net, None, Work()).per_layer()
    assert kept["6.weight"] == (72, 144)
    plan = RandomPruning(sparsity=0.97).plan(net, None, Work())
    effective, note = plan.made_by["effective_density"], plan.made_by["notes"][0]
    assert 0 < effective < 0.03
    assert note.startswith(f"Effective density {effective:.3%}")
    assert RandomPruning(sparsity=0.3).plan(net, None, Work()).made_by["notes"] == []


def test_densities_can_be_given_and_the_other_layers_fit_them():
    kept = RandomPruning(sparsity=0.5, given=("0=1", "6.*=0.25")).masks(network(), None, Work()).per_layer()
    assert (kept["0.weight"], kept["6.weight"]) == ((54, 54), (36, 144))
    assert sum(part for part, _ in kept.values()) == round(sum(whole for _, whole in kept.values()) / 2)
    for given, words in (
        ("6", "not GLOB=SHARE"),
        ("6=x", "not GLOB=SHARE"),
        ("7=1", "prunable"),
        ("6=2", "not a density"),
    ):
        with pytest.raises(EffaceError, match=words):
            RandomPruning(given=(given,)).masks(network(), None, Work())
    with pytest.raises(UsageError, match="not a tuple") as caught:
        RandomPruning.from_params({"given": "6=1"})
    assert "Write ['6=1']" in caught.value.fix
    with pytest.raises(UsageError, match="finds all densities itself"):
        RandomPruning(rule="magnitude", given=("6=1",)).masks(network(), None, Work())


def test_synaptic_flow_needs_no_more_than_the_shape_of_an_input():
    masks = RandomPruning(rule="synflow").masks(network(), None, Work(example=(torch.zeros(2, 1, 6, 6),)))
    assert masks.kept == round(0.2 * masks.total)


def test_rules_that_score_weights_need_data():
    for rule in ("snip", "grasp", "synflow"):
        with pytest.raises(UsageError, match="runs the network"):
            RandomPruning(rule=rule).masks(network(), None, Work())


def test_scores_of_other_weights_give_other_densities(task):
    net = network()
    with torch.no_grad():
        net[3].weight.mul_(1e-4)
    for rule in ("snip", "magnitude"):
        plain, small = (RandomPruning(rule=rule).masks(n, task, Work()).per_layer() for n in (network(), net))
        assert small["3.weight"] < plain["3.weight"]


def test_scaling_keeps_the_energy_of_a_layer():
    net = nn.Sequential(nn.Linear(200, 200))
    scaled = RandomPruning(sparsity=0.75, scaled=True).plan(net, None, Work()).apply(copy.deepcopy(net))
    kept = scaled[0].weight != 0
    assert torch.allclose(scaled[0].weight[kept], 2 * net[0].weight[kept])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_leaves_pruned_weights_at_zero_and_repeats(optimizer, task):
    net, work = network(), Work(seed=2)
    before = copy.deepcopy(net)
    method = RandomPruning(optimizer=optimizer, **QUICK)
    trained = method.plan(net, task, work).apply(copy.deepcopy(net))
    masks = method.masks(net, task, work)
    for name, mask in masks.items():
        assert torch.equal(trained.get_parameter(name) != 0, mask)
    assert same(net, before)
    assert same(trained, method.plan(net, task, work).apply(copy.deepcopy(net)))


def test_robustness_of_sparse_and_dense_is_told(task):
    plan = RandomPruning(evaluate=True, **QUICK).plan(network(), task, Work())
    assert plan.made_by["robustness"].keys() == {"sparse", "dense"}
    assert {"accuracy", "nll", "ece", "auroc_noise", "fgsm_8"} <= plan.made_by["robustness"]["dense"].keys()
