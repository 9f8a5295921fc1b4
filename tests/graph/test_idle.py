"""Channels without inputs or readers are found, along whole chains, and removing them is exact."""

from __future__ import annotations

import copy

import torch
from torch import nn

from efface.core.plan import Plan
from efface.core.removal import plan_removal
from efface.parts.graph import channel_graph
from efface.parts.graph.idle import idle
from efface.parts.sparsity.masks import MaskSet

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    second = nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*first, *second, nn.Linear(20, 3)).eval()


def test_what_a_dead_channel_alone_fed_goes_with_it():
    net = network()
    masks = MaskSet.ones_like(net)
    masks["0.weight"][1] = False  # channel 1 of the first layer has no inputs
    masks["3.weight"][2] = False
    masks["3.weight"][2, 1] = True  # channel 2 of the second is fed by that one alone
    masks["6.weight"][:, 16:] = False  # channel 4 of the second is not read
    graph = channel_graph(net, (X,))
    stay, left = idle(graph, masks)
    assert stay["0"].tolist() == [True, False, True, True]
    assert stay["3"].tolist() == [True, True, False, True, False]
    assert not left["3.weight"][:, 1].any()
    assert not left["6.weight"][:, 8:12].any()
    assert masks["6.weight"][:, 8:12].all()
    left.apply_(net)
    whole = net(X)
    small = Plan.of(net, plan_removal(channel_graph(net, (X,)), stay)).apply(copy.deepcopy(net))
    assert (small[0].out_channels, small[3].out_channels, small[6].in_features) == (3, 3, 12)
    assert torch.allclose(small(X), whole, atol=1e-5)


def test_one_channel_of_a_group_stays_and_weights_without_masks_count_as_kept():
    net = network()
    masks = MaskSet({"3.weight": torch.zeros(5, 4, 3, 3, dtype=torch.bool)})
    stay, _ = idle(channel_graph(net, (X,)), masks)
    assert {name: int(keep.sum()) for name, keep in stay.items()} == {"0": 1, "3": 1}


def test_nothing_goes_where_all_work():
    net = network()
    stay, left = idle(channel_graph(net, (X,)), masks := MaskSet.ones_like(net))
    assert stay == {}
    assert left == masks
