import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from efface.errors import DataError, EffaceError
from efface.parts.sparsity.prunable import prunable
from efface.parts.sparsity.scores import gradient, grasp, lamp, magnitude, random_scores, snip, synflow, taylor
from efface.parts.sparsity.topk import keep_global


def convnet():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    return net


def loss(net, batch):
    return F.cross_entropy(net(batch[0]), batch[1])


def batches(count=3, size=8):
    random = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 1, 8, 8, generator=random), torch.randint(3, (size,), generator=random))
        for _ in range(count)
    ]


BY_LOSS = {"snip": snip, "gradient": gradient, "taylor": taylor, "grasp": grasp}
ALL = {
    **{name: lambda net, weights, score=score: score(net, weights, loss, batches()) for name, score in BY_LOSS.items()},
    "synflow": lambda net, weights: synflow(net, weights, (torch.zeros(2, 1, 8, 8),), density=0.1, rounds=5),
    "magnitude": lambda net, weights: magnitude(weights),
    "random": lambda net, weights: random_scores(weights, 3),
}


@pytest.mark.parametrize("score", ALL.values(), ids=ALL)
@pytest.mark.parametrize("frozen", [False, True])
def test_networks_come_out_as_they_went_in(score, frozen):
    net = convnet()
    net[1].eval()
    net[0].weight.requires_grad_(not frozen)
    net[9].weight.grad = torch.full_like(net[9].weight, 7.0)
    before, random = copy.deepcopy(net), torch.get_rng_state()
    scores = score(net, weights := prunable(net))
    assert {name: (s.shape, s.dtype, s.requires_grad) for name, s in scores.items()} == {
        name: (w.shape, torch.float32, False) for name, w in weights.items()
    }
    for name, tensor in before.state_dict(keep_vars=True).items():
        after = net.state_dict(keep_vars=True)[name]
        assert torch.equal(after, tensor)
        assert after.requires_grad == tensor.requires_grad
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert not any(m._forward_hooks for m in net.modules())
    assert [p.grad is None for p in net.parameters()] == [p is not net[9].weight for p in net.parameters()]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(s, score(net, weights)[name]) for name, s in scores.items())


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()


def points(count=2):
    random = torch.Generator().manual_seed(2)
    return [
        (torch.randn(6, 4, generator=random, dtype=torch.float64), torch.arange(6) % 3) for _ in range(count)
    ]  # fmt: skip


def derivative(function, weight, place, size=1e-5):
    """Return the derivative of ``function()`` by one entry of ``weight``, by central differences."""
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            weight.view(-1)[place] += sign * size
            values.append(function())
            weight.view(-1)[place] -= sign * size
    return (values[0] - values[1]) / (2 * size)


def mean_loss(net, data):
    return sum(float(loss(net, batch)) for batch in data) / len(data)


def test_lamp_divides_by_the_squares_that_are_no_smaller():
    scores = lamp({"a": torch.tensor([[3.0, -1.0], [2.0, 0.0]]), "b": torch.zeros(2), "c": torch.tensor([1e-8, 5.0])})
    assert torch.allclose(scores["a"], torch.tensor([[1.0, 1 / 14], [4 / 13, 0.0]]))
    assert torch.equal(scores["b"], torch.zeros(2))
    assert scores["c"].tolist() == pytest.approx([4e-18, 1.0])


@pytest.mark.parametrize("place", [0, 7, 19])
def test_snip_and_taylor_are_first_order_changes_of_the_loss(place):
    net, data = linear(), points()
    weight = net[0].weight
    w = float(weight.detach().view(-1)[place])
    each = [w * derivative(lambda batch=batch: mean_loss(net, [batch]), weight, place) for batch in data]
    of_snip = snip(net, prunable(net), loss, data)["0.weight"].view(-1)[place]
    of_taylor = taylor(net, prunable(net), loss, iter(data))["0.weight"].view(-1)[place]
    of_gradient = gradient(net, prunable(net), loss, data)["0.weight"].view(-1)[place]
    assert float(of_gradient * abs(w)) == pytest.approx(float(of_snip))
    assert float(of_snip) == pytest.approx(abs(sum(each) / 2), rel=1e-4)
    assert float(of_taylor) == pytest.approx(sum(e**2 for e in each) / 2, rel=1e-4)


@pytest.mark.parametrize("place", [0, 7, 19])
def test_grasp_is_what_the_gradient_norm_loses(place):
    net, data, temperature = linear(), points(), 2.0

    def norm():
        with torch.enable_grad():
            total = sum(F.cross_entropy(net(x) / temperature, y) for x, y in data)
            return float(sum(g.square().sum() for g in torch.autograd.grad(total, list(net.parameters()))))

    weight = net[0].weight
    slope = derivative(norm, weight, place)  # of g'g, which is 2 Hg
    score = grasp(net, prunable(net), loss, data, temperature=temperature)["0.weight"].view(-1)[place]
    assert float(score) == pytest.approx(float(weight.detach().view(-1)[place]) * slope / 2, rel=1e-3)


def test_synflow_is_the_same_in_every_layer_of_a_chain():
    net = convnet()
    scores = synflow(net, prunable(net), (torch.zeros(1, 1, 8, 8),), density=1.0, rounds=1)
    assert [float(score.sum()) for score in scores.values()] == pytest.approx([1.0] * 3, rel=1e-5)


@pytest.mark.parametrize("density", [0.05, 0.3])
def test_rounds_of_synflow_keep_every_layer_alive(density):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 2))
    weights = prunable(net)
    keep = round(density * sum(w.numel() for w in weights.values()))
    masks = keep_global(synflow(net, weights, (torch.zeros(1, 64),), density=density), keep)
    assert masks.kept == keep
    assert min(kept for kept, _ in masks.per_layer().values()) >= 1


def test_synflow_bears_depth_that_float32_does_not():
    net = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(60)))
    for layer in net:
        nn.init.constant_(layer.weight, 1.0)
    scores = synflow(net, prunable(net), (torch.zeros(1, 8),), density=1.0, rounds=1)
    assert all(score.isfinite().all() for score in scores.values())
    assert not torch.ones(1, 8).matmul(torch.linalg.matrix_power(torch.ones(8, 8), 59)).isfinite().all()


def test_synflow_without_flow_is_refused():
    net = nn.Linear(3, 2)
    nn.init.zeros_(net.weight)
    with pytest.raises(EffaceError, match="flow of 0"):
        synflow(net, prunable(net), (torch.zeros(1, 3),), density=0.5)


@pytest.mark.parametrize("score", BY_LOSS.values(), ids=BY_LOSS)
def test_no_batches_are_refused(score):
    net = convnet()
    with pytest.raises(DataError, match="no batches"):
        score(net, prunable(net), loss, [])


def test_an_error_in_the_loss_leaves_the_network_alone():
    net = convnet().eval()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError):
        grasp(net, prunable(net), loss, [*batches(1), (torch.zeros(1, 2, 8, 8), torch.zeros(1).long())])
    assert not net.training
    assert not net._forward_hooks
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_half_precision_is_scored_in_float32():
    weights = {"a": torch.tensor([1e-7, -2.0], dtype=torch.bfloat16)}
    assert magnitude(weights)["a"].dtype == torch.float32
    net = nn.Linear(4, 3, bias=False).bfloat16()
    scores = snip(net, prunable(net), loss, [(torch.ones(2, 4, dtype=torch.bfloat16), torch.tensor([0, 1]))])
    assert scores["weight"].dtype == torch.float32


def test_random_scores_depend_on_seed_and_layer_alone():
    weights = {name: torch.zeros(5, 5) for name in ("a", "b")}
    first, again, other = random_scores(weights, 0), random_scores({"b": weights["b"]}, 0), random_scores(weights, 1)
    assert torch.equal(first["b"], again["b"])
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], other["a"])
