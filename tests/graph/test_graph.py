"""Channels are found together, frozen for a reason, and refused with a clear word."""

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.nn import functional as F

from efface.core.removal import plan_removal
from efface.errors import InputError, UsageError
from efface.parts.graph import ChannelGraph, channel_graph, keep_best
from efface.parts.graph.atoms import Atoms, factors, join, merge, pieces

X = zoo.pictures(2, 3, 6, 6)


def graph_of(net: nn.Module, *args: Tensor) -> ChannelGraph:
    torch.manual_seed(0)
    return channel_graph(net.eval(), args)


def members(graph: ChannelGraph, name: str) -> set[tuple[str, int]]:
    return {(m.name, m.dim) for m in graph.groups[name].members}


def test_residual_ties_what_is_added() -> None:
    graph = graph_of(zoo.OWN["inverted residual"]().net, zoo.pictures(2, 3, 9, 9))
    assert {("stem.weight", 0), ("project.weight", 0), ("norms.2.running_var", 0), ("expand.weight", 1),
            ("head.weight", 1)} <= members(graph, "stem")  # fmt: skip
    assert ("depthwise.weight", 0) in members(graph, "expand")
    assert ("excite.bias", 0) in members(graph, "expand")
    assert members(graph, "squeeze") == {("squeeze.weight", 0), ("squeeze.bias", 0), ("excite.weight", 1)}


def test_heads_go_whole_and_grouped_queries_with_their_keys() -> None:
    graph = graph_of(zoo.OWN["einsum"]().net, zoo.pictures(2, 5, 10))
    (heads,) = graph.groups.values()
    assert (heads.size, heads.width) == (4, 6)
    assert {m.name for m in heads.members} == {"qkv.weight", "qkv.bias", "out.weight"}
    assert any("head size" in (g.frozen or "") for g in graph.frozen.values())


def test_frozen_groups_say_why() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.unused = nn.Parameter(torch.zeros(7))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).softmax(-1)
            return self.c(torch.fft.fft(self.b(x)).real)

    graph = graph_of(Net(), torch.randn(2, 4))
    why = {(m.name, m.dim): g.frozen or "" for g in graph.frozen.values() for m in g.members}
    assert not graph.groups
    assert "softmax" in why["a.weight", 0]
    assert "fixed size" in why["a.weight", 1]
    assert "fft" in why["b.weight", 0]
    assert "output" in why["c.weight", 0]
    assert "used by nothing" in why["unused", 0]
    assert len(graph.unknown) >= 1
    assert "test_graph.py" in graph.unknown[0]


def test_norms_over_channels_are_marked() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
    )
    graph = graph_of(net, X)
    assert {name: (g.size, g.width, g.invariant) for name, g in graph.groups.items()} == {
        "0": (4, 2, False),
        "2": (8, 1, True),
    }


def test_a_removal_that_differs_is_rolled_back() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.c(F.relu(self.b(self.a(x).view(-1, 8))))  # an 8 that is written in the code
            return self.d(x * x.shape[-1])  # and a number that changes with the size

    graph = graph_of(Net(), torch.randn(2, 4))
    keep = {name: keep_best(g, np.arange(g.size), 0.5, multiple_of=1) for name, g in graph.groups.items()}
    before = [p.clone() for p in graph.model.parameters()]
    ops = plan_removal(graph, keep, reexport=True)
    assert [op.removal.group for op in ops] == ["b"]
    assert "differs from zeroing" in (graph.frozen["c"].frozen or "")
    assert "does not run" in (graph.frozen["a"].frozen or "")
    assert all(torch.equal(a, b) for a, b in zip(before, graph.model.parameters(), strict=True))


def test_networks_that_do_not_export_name_the_line() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if float(x.sum()) > 0 else x

    with pytest.raises(InputError, match=r"cannot be exported.*test_graph.py:\d+: .*float\(x.sum"):
        graph_of(Net(), torch.randn(2, 4))


def test_wrong_inputs_are_told_apart() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(UsageError, match="does not take the example"):
        graph_of(net, torch.randn(2, 5, 6, 6))


@pytest.mark.parametrize(
    ("share", "multiple", "kept"), [(0.5, 8, 8), (0.4, 8, 8), (0.01, 8, 8), (0.7, 8, 16), (0.7, 1, 12)]
)
def test_kept_channels_are_rounded_up_to_multiples(share: float, multiple: int, kept: int) -> None:
    graph = graph_of(nn.Sequential(nn.Linear(2, 16), nn.Linear(16, 2)), torch.randn(1, 2))
    keep = keep_best(graph.groups["0"], np.arange(16.0), share, multiple_of=multiple)
    assert np.flatnonzero(keep).tolist() == list(range(16 - kept, 16))


def test_views_are_made_of_common_axes() -> None:
    assert factors([2, 12], [2, 3, 4]) == [2, 3, 4]
    assert factors([4, 6], [6, 4]) is None
    assert factors([3, 8], [6, 4]) == [3, 2, 4]
    assert pieces([3, 8, 1], [3, 2, 4]) == [[3], [2, 4], []]


def test_splitting_undoes_merging() -> None:
    atoms = Atoms()
    heads, sizes = atoms.fresh(3), atoms.fresh(4)
    flat = merge([heads, sizes], (3, 4))
    assert flat is not None
    back = atoms.split(flat, (3, 4))
    assert np.array_equal(back[0], heads)
    assert np.array_equal(back[1], sizes)


def test_plain_channels_become_a_grid_once() -> None:
    atoms = Atoms()
    label = atoms.fresh(6)
    rows, columns = atoms.split(label, (2, 3))
    again = atoms.split(label, (2, 3))
    assert np.array_equal(atoms.settled(rows), atoms.settled(again[0]))
    assert np.array_equal(atoms.settled(columns), atoms.settled(again[1]))
    atoms.freeze(columns, "because")
    assert (atoms.why(atoms.settled(label)) >= 0).any(0).all()
    assert (atoms.why(atoms.settled(rows)) < 0).all()


def test_ties_are_transitive_and_freezing_spreads() -> None:
    atoms = Atoms()
    a, b, c = atoms.fresh(4), atoms.fresh(4), atoms.fresh(2)
    atoms.tie(a, b)
    atoms.tie(b, join([c, c], [2, 2]))
    root = atoms.settled(a)[0]
    assert (root[:2] == root[2:]).all()
    assert root[0] != root[1]
    atoms.tie(c[:, :1], None)
    assert atoms.why(atoms.settled(b))[0].tolist()[1::2] == [-1, -1]
    assert min(atoms.why(atoms.settled(b))[0][::2]) >= 0


def test_what_cannot_be_recorded_is_exported() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu().unsqueeze_(1).squeeze_(1))

    graph = graph_of(Net(), torch.randn(2, 4))
    assert type(graph.program.root) is not nn.Module
    assert members(graph, "a") == {("a.weight", 0), ("a.bias", 0), ("b.weight", 1)}
    assert len(plan_removal(graph, {"a": np.arange(6) < 3})) == 1


def test_what_code_keeps_while_it_runs_is_put_back() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(4, 6), nn.Linear(6, 3), None
            self.constant = torch.ones(6)
            self.register_buffer("seen", torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.a(x) * self.constant + torch.arange(6) + torch.tensor([2.0])
            self.seen = self.last.mean(0)
            return self.b(self.last)

    net = Net()
    seen = net.seen
    graph = graph_of(net, torch.randn(2, 4))
    assert type(graph.program.root) is nn.Module
    assert (net.last, net.seen) == (None, seen)
    assert "fixed size" in (graph.frozen["a"].frozen or "")
