"""Layers with Gaussian weights: outputs are drawn as if weights were, and means alone count in evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efface.errors import UsageError
from efface.parts.nn.bayesian import BayesConv2d, Posterior, bayesian, plain, sigma


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)
    )


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_outputs_have_the_moments_of_drawn_weights(padding_mode):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode=padding_mode)
    bayesian(net := nn.Sequential(layer), ["0.weight"], 0.3)
    x = torch.randn(1, 2, 3, 3)
    with torch.no_grad():
        found = net(x.expand(20_000, -1, -1, -1))
        weights = layer.weight + sigma(layer) * torch.randn(10_000, *layer.weight.shape)
        drawn = torch.stack([layer._conv_forward(x[0], w, layer.bias) for w in weights[:2000]])
        expected = nn.Conv2d.forward(layer, x)[0]
    scale = float(drawn.std(0).mean())
    assert torch.allclose(found.mean(0), expected, atol=0.03 * scale)
    assert float(found.std(0).mean()) == pytest.approx(scale, rel=0.03)


def test_in_evaluation_means_alone_count_and_the_way_back_is_exact():
    net = network()
    x = torch.randn(2, 2, 4, 4)
    before, keys, identities = net(x), list(net.state_dict()), [id(p) for p in net.parameters()]
    layers = bayesian(net, ["0.weight", "3.weight"])
    assert isinstance(net[0], BayesConv2d)
    assert not torch.equal(net(x), before)
    assert torch.equal(net.eval()(x), before)
    plain(layers.values())
    assert type(net[0]) is nn.Conv2d
    assert list(net.state_dict()) == keys
    assert [id(p) for p in net.parameters()] == identities


def test_sigma_begins_as_asked_and_learns():
    net = network()
    layers = bayesian(net, ["3.weight"], 0.05)
    assert torch.allclose(sigma(layers["3.weight"]), torch.tensor(0.05))
    net(torch.zeros(4, 2, 4, 4)).sum().backward()
    assert layers["3.weight"].spread.grad.isfinite().all()


def test_a_shared_layer_is_one():
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, layer)
    assert bayesian(net, ["0.weight"])["0.weight"] is net[1]


@pytest.mark.parametrize(("name", "kind"), [("0.weight", "Conv1d"), ("1.bias", "Linear")])
def test_other_weights_are_refused_and_nothing_changes(name, kind):
    net = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Linear(3, 3))
    with pytest.raises(UsageError, match=f"{kind} has no form"):
        bayesian(net, ["1.weight", name])
    assert type(net[1]) is nn.Linear


def test_a_posterior_draws_outputs_repeatably():
    net = network().eval()
    weight = net[3].weight.detach()
    found = Posterior(net, {"3.weight": torch.full_like(weight, 0.1)}, {"3.weight": torch.ones_like(weight)})
    x = torch.randn(3, 2, 4, 4)
    drawn = found.outputs(x, 200)
    assert drawn.shape == (200, 3, 2)
    assert torch.equal(drawn, found.outputs(x, 200))
    expected = 0.1 * net[:3](x).norm(dim=1)
    assert torch.allclose(drawn.std(0), expected[:, None].expand(3, 2), rtol=0.25)
    assert torch.equal(net[3].weight, weight)
    assert sorted(found.tensors()) == ["3.weight.sigma", "3.weight.support"]
