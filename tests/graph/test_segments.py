"""Operators are erased only where a network is left, and take what depends on them along."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.nn import functional as F

from efface.errors import UsageError
from efface.parts.graph import channel_graph
from efface.parts.graph.erasing import Erasing, without
from efface.parts.graph.segments import Segment, hierarchical, settle
from efface.parts.graph.selection import difference
from efface.parts.nn.cells import Erased, MixedOp, cell_net, operation
from efface.parts.nn.resnets import resnet_cifar
from efface.parts.sparsity.groups import GroupViews
from efface.seeds import numpy_generator

X = zoo.pictures(2, 3, 8, 8)


def drawn(draw):
    """Return a DAG of segments from one input to the last one, some of them joins, an order, and a number to erase."""
    segments = [Segment("input")]
    for number in range(1, int(draw.integers(2, 15))):
        near = np.arange(max(0, number - 4), number)
        inputs = tuple(draw.choice(near, min(len(near), int(draw.integers(1, 4))), replace=False).tolist())
        join = len(inputs) > 1 and draw.random() < 0.5
        segments.append(Segment(str(number), inputs, join, not join and draw.random() < 0.75))
    return segments, draw.permutation(len(segments)).tolist(), int(draw.integers(1, len(segments) + 1))


@pytest.mark.parametrize("start", range(0, 500, 100))
def test_what_the_walk_leaves_is_connected_and_legal(start):
    for seed in range(start, start + 100):
        check_walk(*drawn(numpy_generator(seed, "network")))


def check_walk(segments, order, goal):
    last = len(segments) - 1
    before = settle(segments, [last], set())
    gone = hierarchical(segments, [last], order, lambda gone: len(gone - before) >= goal)
    left = set(range(len(segments))) - gone
    assert last in left
    for number in left:
        inputs = set(segments[number].inputs)
        assert inputs <= left or (segments[number].join and inputs & left)
        assert number == last or any(number in segments[reader].inputs for reader in left)
    assert settle(segments, [last], gone) == gone
    if len(gone - before) < goal:  # then nothing more can go
        more = [settle(segments, [last], gone | {n}) for n in left if segments[n].removable]
        assert all(found is None for found in more)


def test_what_dangles_goes_along():
    #  0 input -> 1 -> 2 -> 5 join with 0 ; 1 -> 3 needs 2 as well -> 5
    chain = [
        Segment("input"),
        Segment("a", (0,), removable=True),
        Segment("b", (1,), removable=True),
        Segment("gate", (1, 2), removable=True),
        Segment("c", (0,), removable=True),
        Segment("sum", (3, 4), join=True),
    ]
    assert settle(chain, [5], {2}) == {1, 2, 3}
    assert settle(chain, [5], {4}) == {4}
    assert settle(chain, [5], {2, 4}) is None
    assert settle(chain, [5], set()) == set()


class Plain(nn.Module):
    """Residuals, a concatenation and a weighted branch in plain code, with norms behind the joins."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 6, 1)
        self.left, self.right, self.norm = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 8, 3, 1, 1), nn.BatchNorm2d(12)
        self.gate, self.head = nn.Linear(12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.two(F.relu(self.one(x)))
        x = F.relu(self.norm(torch.cat([self.left(x), self.right(x).relu()], 1))).mean((2, 3))
        return self.head(x * torch.sigmoid(self.gate(x)))


NETWORKS = {
    "cells": (lambda: cell_net((4, 4)), 0.8),
    "concatenating cells": (lambda: cell_net((4, 8), branches=("conv3", "conv1", "depthwise"), join="concat"), 0.66),
    "residual": (lambda: resnet_cifar(8, 4), 0.6),
    "plain": (Plain, 0.66),
    "dense": (zoo.Dense, 1.0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_erasing_gives_what_zeros_give(name):
    torch.manual_seed(0)
    build, most = NETWORKS[name]
    net = build().eval()
    graph = channel_graph(net, (X,))
    erasing = Erasing(graph, most / 2)
    assert erasing.reachable >= most - 0.01
    zero = erasing.choose(torch.rand(erasing.count, generator=torch.Generator().manual_seed(1)))
    assert 0 < int(zero.sum()) < erasing.count
    assert erasing.enough(zero)
    views = GroupViews(net, erasing.views(), erasing.count)
    views.zero_(views.values(), zero)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    erasure = erasing.erasure(erasing.gone(zero))
    other = build().eval()
    other.load_state_dict(before)
    with without(net, erasure):
        assert difference(other, net, graph) < 1e-5
        assert len(list(net.parameters())) < len(list(other.parameters())) or erasure.removal
        assert {type(net.get_submodule(path)) for path in erasure.erased} == {Erased}
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_names_and_budgets_choose():
    graph = channel_graph(cell_net((4, 4)).eval(), (X,))
    one = Erasing(graph, 0.3, allowed=lambda name: name.startswith("cell2"))
    assert all(name.startswith("cell2.branches.") for name in one.names)
    assert len(one.names) == 5
    heavy = Erasing(graph, 0.5, "params")
    chosen = heavy.choose(torch.arange(heavy.count).float())
    gone = sum(graph.model.get_submodule(n).get_parameter("0.weight").numel()
               for n, out in zip(heavy.names, chosen.tolist(), strict=True) if out and "skip" not in n)  # fmt: skip
    assert gone > 0.4 * sum(p.numel() for p in graph.model.parameters())
    assert Erasing(graph, 0.5, "flops").enough(torch.ones(10, dtype=torch.bool)) is False  # nothing would be left


def test_only_way_through_stays():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(UsageError, match=r"50\.0% of the groups cannot be erased: 0\.0% can"):
        Erasing(channel_graph(net.eval(), (X,)), 0.5)
    cells = channel_graph(cell_net((4, 4)).eval(), (X,))
    with pytest.raises(UsageError, match=r"90\.0% of the groups cannot be erased: 80\.0% can"):
        Erasing(cells, 0.9)


def test_mixed_operations_leave_out_what_is_erased():
    branches = {name: nn.Conv2d(3, 4, 1) for name in "abc"}
    for join, dim in (("add", 4), ("concat", 8)):
        mixed = MixedOp({**branches, "b": Erased(join)}, join)
        assert mixed(X).shape[1] == dim
    assert torch.equal(MixedOp({"a": branches["a"], "b": Erased()})(X), branches["a"](X))
    assert torch.equal(X + Erased()(X), X)
    assert torch.equal(torch.cat([X, Erased("concat")(X)], 1), X)
    with pytest.raises(UsageError, match="skip cannot make 8 channels of 4"):
        operation("skip", 4, 8)
