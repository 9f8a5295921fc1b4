"""Removing channels of networks of every build gives what zeroing them gives."""

import numpy as np
import pytest
import torch
import zoo
from torch import nn

from efface.core.removal import plan_removal
from efface.parts.graph import ChannelGraph, channel_graph, keep_best
from efface.seeds import numpy_generator

REFUSED = {"encoder": 2}
"""Groups that the code of a network does not let go: nn.MultiheadAttention has heads as wide as its input."""
FREE = {"resnet": 6, "padded resnet": 4, "bottlenecks": 7, "vgg": 4, "dense": 4, "inverted residual": 3, "resnext": 3,
        "shuffle": 3, "super-resolution": 4, "shared": 2, "einsum": 1, "encoder": 4}  # fmt: skip


@pytest.mark.parametrize("name", [*zoo.OWN, *zoo.TAKEN])
def test_removal_equals_zeroing(name: str) -> None:
    torch.manual_seed(0)
    case = (zoo.OWN | zoo.TAKEN)[name]()
    net = case.net.eval()
    graph = channel_graph(net, case.args, case.kwargs)
    found = len(graph.groups)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    ops = plan_removal(graph, halves(graph), reexport=False)
    assert type(graph.program.root) is nn.Module, "torch.export had to step in"
    assert not graph.unknown
    assert found == FREE.get(name, found) > 0
    assert found - len(graph.groups) == REFUSED.get(name, 0), {n: g.frozen for n, g in graph.frozen.items()}
    assert len(ops) == len(graph.groups)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert sum(op.row(net).removed for op in ops[:1]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*zoo.OWN, *zoo.TAKEN])
def test_what_is_left_exports_again(name: str) -> None:
    torch.manual_seed(0)
    case = (zoo.OWN | zoo.TAKEN)[name]()
    graph = channel_graph(case.net.eval(), case.args, case.kwargs)
    found = len(graph.groups)
    assert len(plan_removal(graph, halves(graph))) == found - REFUSED.get(name, 0)


def halves(graph: ChannelGraph) -> dict[str, np.ndarray]:
    """Keep half of each group, at random."""
    draws = numpy_generator(0, "halves")
    return {n: keep_best(g, draws.random(g.size), 0.5, multiple_of=1) for n, g in graph.groups.items()}
