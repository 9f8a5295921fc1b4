"""Dead neurons: found in every form of activation, and told apart by what killed them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from efface.errors import InputError, UsageError
from efface.parts.metrics.activity import dead_neurons

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
PICTURES = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(0))


class Functional(nn.Module):
    """Two layers with an activation given as a function."""

    def __init__(self, activation):
        super().__init__()
        self.activation, self.a, self.b = activation, nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.b(self.activation(self.a(x)))


class Residual(nn.Module):
    """A block whose activations go on past the next convolution, as in residual networks."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.norm = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
        )
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 2)

    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.head(self.relu(self.norm(self.conv(x)) + x).mean((2, 3)))


def mlp(*activations):
    torch.manual_seed(0)
    first, second = activations or (nn.ReLU(), nn.ReLU())
    return nn.Sequential(nn.Linear(6, 5), first, nn.Linear(5, 4), second, nn.Linear(4, 2))


def convnet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 2),
    )  # fmt: skip


@torch.no_grad()
def zero(weight, index=slice(None)):
    weight[index] = 0


@pytest.mark.parametrize(
    "activation",
    [F.relu, torch.relu, torch.relu_, F.relu6, lambda x: x.relu(), lambda x: x.clamp(min=0), lambda x: x.clamp_min(0),
     lambda x: F.relu(x, inplace=True), lambda x: F.threshold(x, 0, 0), nn.ReLU()],
)  # fmt: skip
def test_every_form_of_relu_is_counted(activation):
    torch.manual_seed(0)
    net = Functional(activation)
    found = dead_neurons(net, [X])
    assert found.dynamic == pytest.approx(float((net.a(X) <= 0).float().mean()))
    assert (found.static, found.count) == (0, 5)


@pytest.mark.parametrize(("bias", "rate"), [(-100.0, 1.0), (100.0, 0.0)])
def test_biases_kill_or_wake_a_layer(bias, rate):
    net = mlp()
    nn.init.constant_(net[0].bias, bias)
    assert dead_neurons(net, [X]).per_layer()["1"] == (rate, 0.0)


def test_streaming_equals_counting_at_once():
    for net, x in ((mlp(), X), (convnet(), PICTURES)):
        whole, parts = dead_neurons(net, [x]), dead_neurons(net, x.split(3))
        assert whole.per_layer() == parts.per_layer()
        assert whole.rate == pytest.approx(parts.rate)


def test_convolutions_count_places_or_whole_maps():
    net = convnet()
    with torch.no_grad():
        hidden = net[2](net[1].eval()(net[0](PICTURES)))
    found = dead_neurons(net, [PICTURES])
    assert found.count == 4 * 8 * 8 + 6 * 2 * 2 + 5
    assert found.per_layer()["2"][0] == pytest.approx(float((hidden == 0).float().mean()))
    assert dead_neurons(net, [PICTURES], maps=True).count == 4 + 6 + 5


def test_neurons_without_incoming_weights_are_statically_dead_whatever_their_bias():
    net = mlp()
    zero(net[0].weight, slice(0, 2))
    nn.init.constant_(net[0].bias, 1.0)
    assert dead_neurons(net, [X]).per_layer()["1"][1] == 2 / 5


@pytest.mark.parametrize("maps", [False, True])
def test_neurons_without_outgoing_weights_are_statically_dead(maps):
    net = convnet()
    zero(net[4].weight, (slice(None), 1))  # a channel that only the next convolution read, after pooling
    zero(net[7].weight, (slice(None), slice(8, 16)))  # two flattened channels of four places
    found = dead_neurons(net, [PICTURES], maps=maps).per_layer()
    assert found["2"][1] == 1 / 4
    assert found["5"][1] == 2 / 6


def test_grouped_convolutions_read_their_own_channels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4))
    zero(net[2].weight, 3)
    assert dead_neurons(net, [PICTURES]).layers["1"].dead[:, 0, 0].tolist() == [False, False, False, True]


def test_what_a_sum_carries_on_is_alive():
    torch.manual_seed(0)
    net = Residual()
    zero(net.conv.weight)  # neither feeds its sum, since the stem does, nor is all that reads the stem
    found = dead_neurons(net, [PICTURES])
    assert list(found.layers) == ["relu", "relu#1"]
    assert found.static == 0
    zero(net.stem.weight)
    assert dead_neurons(net, [PICTURES]).static == 1


def test_what_the_network_returns_is_read():
    net = nn.Sequential(nn.Linear(6, 3), nn.ReLU())
    assert dead_neurons(net, [X]).static == 0


def test_static_and_dynamic_parts_add_up():
    net = mlp()
    zero(net[0].weight, 0)
    zero(net[4].weight, (slice(None), 3))
    found = dead_neurons(net, [X])
    assert found.static == pytest.approx(2 / 9)
    assert found.rate == found.static + found.dynamic
    assert 0 < found.dynamic < 1 - found.static
    assert not found.layers["1"].dynamic[0]


def test_tokens_are_inputs():
    net = mlp()
    tokens = X.view(4, 8, 6)
    assert dead_neurons(net, [tokens]).per_layer() == dead_neurons(net, [X]).per_layer()


def test_smooth_activations_are_dead_where_they_are_nearly_zero():
    net = mlp(nn.GELU(), nn.SiLU())
    nn.init.constant_(net[0].bias, -20.0)
    net[0].bias.data[0] = 20.0
    assert dead_neurons(net, [X]).per_layer()["1"][0] == pytest.approx(4 / 5)
    assert dead_neurons(net, [X], nearly=0.0).per_layer()["3"][0] == 0


def test_neurons_that_come_back_are_counted():
    net = mlp()
    net[0].bias.data[:] = torch.tensor([-100.0, -100.0, 0.0, 0.0, 0.0])
    before = dead_neurons(net, [X])
    net[0].bias.data[0] = 0.0
    assert dead_neurons(net, [X]).reactivated(before) == 1


def test_the_network_is_left_as_it_is():
    net = convnet().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    dead_neurons(net, [PICTURES])
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_networks_without_such_activations_and_growing_maps_are_refused():
    with pytest.raises(UsageError, match="no neuron can die"):
        dead_neurons(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), [X])
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    batches = [PICTURES, PICTURES[..., :6]]
    with pytest.raises(InputError, match="count whole maps"):
        dead_neurons(net, batches)
    assert dead_neurons(net, batches, maps=True).count == 4
