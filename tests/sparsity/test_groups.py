import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from efface.errors import PlanError, UsageError
from efface.parts.sparsity.group_sparse import GroupSparse, Stage
from efface.parts.sparsity.groups import (
    GroupViews,
    Reading,
    View,
    dhspg_importance,
    dual_half_space,
    half_space,
    hesso_importance,
)

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}
HIDDEN = 12
X, Y = torch.randn(32, 6, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3))


def hidden():
    """Return the views of the hidden channels: a row, its bias, the scale and shift behind it."""
    return [View(name, 0, torch.arange(HIDDEN)) for name in ("0.weight", "0.bias", "1.weight", "1.bias")]


class Lowest:
    """Choose the least important ``goal`` groups."""

    def __init__(self, goal):
        self.goal, self.asked = goal, []

    def choose(self, importance, part=1.0, spare=0.0):
        self.asked.append(importance)
        count = round(part * self.goal + spare * len(importance))
        return torch.zeros(len(importance), dtype=torch.bool).index_fill(0, importance.argsort()[:count], True)

    def enough(self, zero):
        return int(zero.sum()) >= self.goal


def steps(net, optimizer, count, each=lambda: None):
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()
        each()


def reading(x, g):
    one = [View("x", 0, torch.arange(len(x)))]
    views = GroupViews(nn.ParameterDict({"x": nn.Parameter(x)}), one, len(x))
    return Reading.of(views, {"x": x}, {"x": x - 0.5 * g}, {"x": 0.5})


def test_groups_are_summed_over_all_their_views():
    net = network()
    views = GroupViews(net, hidden(), HIDDEN)
    x = views.values()
    parts = [x["0.weight"].square().sum(1), *(x[n].square() for n in ("0.bias", "1.weight", "1.bias"))]
    torch.testing.assert_close(views.norms(x), torch.stack(parts).sum(0).sqrt())
    assert views.sizes.tolist() == [6 + 3] * HIDDEN
    readers = [View("3.weight", 1, torch.arange(HIDDEN) // 4), View("3.bias", 0, torch.tensor([-1, 0, 0]))]
    columns = GroupViews(net, readers, 3)
    torch.testing.assert_close(columns.norms(columns.values())[1], net[3].weight[:, 4:8].norm())
    assert columns.sizes.tolist() == [12 + 2, 12, 12]
    columns.zero_(columns.values(), torch.tensor([True, False, True]))
    assert not net[3].weight[:, :4].any()
    assert net[3].weight[:, 4:8].all()
    assert net[3].bias.count_nonzero() == 1
    columns.scale_(columns.values(), torch.tensor([1.0, 2.0, 1.0]))
    assert columns.norms(columns.values())[[0, 2]].tolist() == [0, 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**20), st.floats(1e-4, 10), st.floats(1, 30), st.floats(1, 1e3))
def test_step_in_the_dual_half_space_lessens_loss_and_norm(size, seed, weight, amplify, limit):
    draw = torch.Generator().manual_seed(seed)
    x, g = torch.randn(2, 5, size, generator=draw, dtype=torch.float64) * torch.rand(2, 5, 1, generator=draw).exp()
    w = dual_half_space(reading(x, g), weight, amplify, limit)
    direction = -g - w[:, None] * x / x.norm(dim=1, keepdim=True)
    assert ((direction * x).sum(1) < 0).all()
    assert ((direction * g).sum(1) < 0).all()


def test_weight_is_the_given_one_where_the_step_shrinks_the_group_and_bounded_elsewhere():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    g = torch.tensor([[1.0, 1.0], [-0.01, 1.0], [-0.2, 1.0]])
    assert dual_half_space(reading(x, g), 0.1, 20.0, 3.0).tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_half_space_has_its_limits():
    norm, moved = torch.tensor([2.0, 2.0, 2.0]), torch.tensor([-0.1, 0.1, 4.0])
    assert half_space(norm, moved, 0.0).tolist() == [True, False, False]
    assert half_space(norm, moved, 0.999).tolist() == [True, True, False]


@pytest.mark.parametrize("importance", [dhspg_importance, hesso_importance])
def test_group_that_the_step_shrinks_matters_less(importance):
    x = torch.ones(3, 4)
    g = torch.stack([torch.ones(4), -torch.ones(4), torch.tensor([1.0, -1.0, 1.0, -1.0])])  # to zero, away, aside
    found = importance(reading(x, g))
    assert found[0] < found[1]
    assert importance(reading(torch.stack([x[0] * 0.1, x[1]]), torch.zeros(2, 4))).argmin() == 0  # the smaller one
    assert importance(reading(torch.zeros(2, 4), g[:2])).isfinite().all()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("rule", ["dhspg", "hesso"])
def test_target_is_met_exactly_and_never_undone(kind, rule):
    net, choice = network(), Lowest(5)
    optimizer = OPTIMIZERS[kind](net.parameters())
    sparse = GroupSparse(hidden(), HIDDEN, choice, Stage(5, 25, rule, weight=0.1, spare=0.1))
    handle, views, counts = sparse.attach(net, optimizer), GroupViews(net, hidden(), HIDDEN), []
    steps(net, optimizer, 40, lambda: counts.append(int((views.norms(views.values()) == 0).sum())))
    assert counts[4] == 0
    assert counts[24:] == [5] * 16
    assert counts == sorted(counts)
    zero = views.norms(views.values()) == 0
    assert torch.equal(zero, sparse.zero)
    for state in optimizer.state.values():
        for value in (v for v in state.values() if v.ndim and len(v) == HIDDEN):
            assert not value[zero].any()
    handle.remove()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    if kind != "sgd":  # without hooks, what is remembered revives nothing
        optimizer.step()
        assert not views.norms(views.values())[zero].any()


def test_penalty_alone_brings_groups_to_zero_and_says_what_it_forced():
    for weight, stop, forced in ((0.3, 200, 0), (1e-6, 5, 4)):
        net, optimizer = (n := network()), torch.optim.SGD(n.parameters(), lr=0.1)
        sparse = GroupSparse(hidden(), HIDDEN, Lowest(4), Stage(2, stop, weight=weight, spare=0.2))
        sparse.attach(net, optimizer)
        steps(net, optimizer, stop)
        assert (sparse.forced, int(sparse.zero.sum())) == (forced, 4)


def test_hesso_decays_in_a_line_and_in_rounds():
    net, choice = network(), Lowest(6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    sparse, views, norms = GroupSparse(hidden(), HIDDEN, choice, Stage(1, 11, "hesso", periods=2)), None, []
    sparse.attach(net, optimizer)
    views = GroupViews(net, hidden(), HIDDEN)
    start = views.norms(views.values())
    steps(net, optimizer, 12, lambda: norms.append(views.norms(views.values()) / start))
    first = norms[5] == 0
    assert [int((n == 0).sum()) for n in norms] == [0, 0, 0, 0, 0, 3, 3, 3, 3, 3, 6, 6]
    torch.testing.assert_close(torch.stack(norms[1:6])[:, first].mean(1), torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0]))
    assert choice.asked[1][first].isneginf().all()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("rule", ["dhspg", "hesso"])
def test_without_redundant_groups_not_a_bit_differs(kind, rule):
    bare, net = network(), network()
    other, optimizer = OPTIMIZERS[kind](bare.parameters()), OPTIMIZERS[kind](net.parameters())
    GroupSparse(hidden(), HIDDEN, Lowest(0), Stage(3, 8, rule, spare=0.0)).attach(net, optimizer)
    steps(bare, other, 10)
    steps(net, optimizer, 10)
    assert all(torch.equal(a, b) for a, b in zip(bare.state_dict().values(), net.state_dict().values(), strict=True))
    for a, b in zip(other.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


@pytest.mark.parametrize("rule", ["dhspg", "hesso"])
@pytest.mark.parametrize("stop", [3, 9, 15, 25])
def test_training_resumes_bit_by_bit(rule, stop):
    def begun():
        net = network()
        sparse = GroupSparse(hidden(), HIDDEN, Lowest(5), Stage(5, 20, rule, weight=0.2, periods=1))
        optimizer = OPTIMIZERS["adamw"](net.parameters())
        return net, optimizer, sparse

    whole, optimizer, sparse = begun()
    sparse.attach(whole, optimizer)
    steps(whole, optimizer, stop)
    states = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), sparse.state_dict()))
    steps(whole, optimizer, 30 - stop)
    net, again, resumed = begun()
    for one, state in zip((net, again, resumed), states, strict=True):
        one.load_state_dict(state)
    resumed.attach(net, again)
    steps(net, again, 30 - stop)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), net.state_dict().values(), strict=True))
    assert torch.equal(sparse.zero, resumed.zero)
    assert resumed.step == sparse.step == 30


def test_misfits_are_refused():
    with pytest.raises(UsageError, match="3 rounds do not fit"):
        Stage(5, 7, "hesso", periods=3)
    with pytest.raises(UsageError, match="do not fit"):
        Stage(5, 5)
    state = GroupSparse(hidden(), HIDDEN, Lowest(1), Stage(0, 1)).state_dict()
    with pytest.raises(PlanError, match="the state is of 12 groups, and there are 3"):
        GroupSparse([], 3, Lowest(1), Stage(0, 1)).load_state_dict(state)
