"""Hidden nodes go from a chain for good, as if they had been masked."""

import copy

import pytest
import torch
from torch import nn

from efface.errors import UsageError
from efface.parts.nn.classifiers import conv246, convnet, mlp
from efface.parts.sparsity.nodes import hidden_layers, score_configurations, without_nodes
from efface.seeds import torch_generator

NETS = {
    "mlp": (lambda: mlp((12, 8, 6, 3)), (12,)),
    "convolutions, norms, pools": (lambda: convnet(2, channels=1, classes=3), (1, 8, 8)),
    "flattened maps": (lambda: conv246(2, side=4, channels=1, classes=3), (1, 4, 4)),
    "sigmoid": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2)), (4,)),
}


def built(name):
    torch.manual_seed(0)
    net = NETS[name][0]().eval()
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(
                torch.rand(len(tensor), generator=torch_generator(0, key))
            )  # biases and norms that do something
    return net, torch.randn(5, *NETS[name][1], generator=torch_generator(0, "x"))


def drawn(hidden, count):
    return {
        layer.name: torch.stack([
            torch.randperm(layer.nodes, generator=torch_generator(0, layer.name, i)) < max(1, layer.nodes // 2)
            for i in range(count)
        ])
        for layer in hidden
    }  # fmt: skip


def masked(net, hidden, alive):
    net = copy.deepcopy(net)
    for layer in hidden:
        weight = net.get_submodule(layer.reader).weight.detach()
        columns = alive[layer.name].repeat_interleave(layer.places)
        weight.mul_(columns.view(1, -1, *(1,) * (weight.ndim - 2)))
    return net


def smaller(net, hidden, alive, **options):
    net = copy.deepcopy(net)
    for name, (layer, _) in without_nodes(net, hidden, alive, **options).items():
        net.set_submodule(name, layer)
    return net.eval()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_scores_of_many_are_those_of_each_and_of_its_smaller_network(name, chunk):
    net, x = built(name)
    hidden = hidden_layers(net)
    alive = drawn(hidden, 3)
    made = score_configurations(net.train(), hidden, alive, x, chunk=chunk)
    assert net.training
    for i, out in enumerate(made):
        choice = {key: rows[i] for key, rows in alive.items()}
        torch.testing.assert_close(out, masked(net, hidden, choice).eval()(x))
        small = smaller(net, hidden, choice)
        torch.testing.assert_close(out, small(x), rtol=1e-4, atol=1e-5)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


def test_rescaling_keeps_the_size_of_sums():
    net, _ = built("mlp")
    hidden = hidden_layers(net)
    alive = {layer.name: torch.arange(layer.nodes) < layer.nodes // 2 for layer in hidden}
    plain, scaled = smaller(net, hidden, alive), smaller(net, hidden, alive, rescale=True)
    assert torch.equal(scaled.linear1.weight, plain.linear1.weight)
    torch.testing.assert_close(scaled.linear2.weight, plain.linear2.weight * 2**0.5)


@pytest.mark.parametrize("name", NETS)
def test_rescaled_networks_are_scored_as_they_will_be(name):
    net, x = built(name)
    hidden = hidden_layers(net)
    alive = drawn(hidden, 3)
    made = score_configurations(net, hidden, alive, x, rescale=True)
    for i, out in enumerate(made):
        small = smaller(net, hidden, {key: rows[i] for key, rows in alive.items()}, rescale=True)
        torch.testing.assert_close(out, small(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.TransformerEncoderLayer(4, 2), "no chain"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1)), "no chain"),
        (nn.Linear(3, 2), "no hidden layer"),
    ],
)
def test_other_networks_are_refused(net, words):
    with pytest.raises(UsageError, match=words):
        hidden_layers(net)
