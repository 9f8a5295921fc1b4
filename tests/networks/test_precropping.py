"""PreCrop and PreConfig: densities of layers, the widths they become, and the network that comes of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from efface.core.method import Work
from efface.core.plan import Plan
from efface.errors import UsageError
from efface.networks.precropping import Precropping, proxy
from efface.parts.counting import count_flops, count_parameters
from efface.parts.data.tasks import task
from efface.parts.graph import Group, Member, channel_graph, removals
from efface.parts.graph.widths import Budget, Sizes, fit_widths, sizes_of
from efface.parts.nn.classifiers import convnet
from efface.parts.sparsity.densities import densities
from efface.parts.sparsity.prunable import prunable
from efface.parts.sparsity.scores import synflow
from efface.parts.timing import interleave

EXAMPLE = (torch.zeros(2, 3, 8, 8),)
WORK = Work(example=EXAMPLE)


class Mixed(nn.Module):
    """A concatenation, a depthwise convolution behind it, a residual, and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 20, 1)
        self.deep, self.point = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 24, 1)
        self.norm, self.same = nn.BatchNorm2d(24), nn.Conv2d(24, 24, 3, padding=1)
        self.scale, self.head = nn.Parameter(torch.ones(24, 1, 1)), nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.deep(torch.cat([self.left(x), self.right(x)], 1)))
        x = self.norm(self.point(x))
        return self.head((x + self.scale * self.same(F.relu(x))).mean((2, 3)))


def made(build):
    torch.manual_seed(0)
    return build().eval()


@pytest.fixture(scope="module")
def plain():
    return channel_graph(made(lambda: convnet(16)), EXAMPLE)


@pytest.fixture(scope="module")
def mixed():
    return channel_graph(made(Mixed), EXAMPLE)


def chain(widths):
    """Return the shapes of convolutions of 3x3 in a row; the first input and the last output are fixed."""
    names = [f"group{i}" for i in range(1, len(widths) - 1)]
    groups = {
        name: Group(name, widths[i], (Member("", 0, np.arange(widths[i])),), np.arange(widths[i]), True, 0, None)
        for i, name in enumerate(names, 1)
    }
    ends = [(), *((name,) for name in names), ()]
    cells = {
        f"conv{i}": [[(widths[i], ends[i])], [(widths[i - 1], ends[i - 1])], [(9, ())]] for i in range(1, len(widths))
    }
    return Sizes(groups, cells)


def whole(sizes, share):
    costs = {name: float(sizes.numel(name, {})) for name in sizes.cells}
    return Budget("parameters", costs, share * sum(costs.values()))


# --- densities


SHARES = st.floats(0.01, 1.0)
COSTS = st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=12)


@given(COSTS, SHARES)
def test_one_budget_is_shared_out_equally_among_layers_that_are_not_whole(costs, share):
    sizes = {str(i): float(n) for i, (n, _) in enumerate(costs)}
    found = proxy([sizes], [share])
    kept = {name: found[name] * n for name, n in sizes.items()}
    assert sum(kept.values()) == pytest.approx(share * sum(sizes.values()), rel=1e-6)
    level = max(kept.values())
    assert all(found[n] == pytest.approx(1, abs=1e-9) or kept[n] == pytest.approx(level, rel=1e-6) for n in sizes)
    assert found == pytest.approx(densities("balanced", {n: (int(s),) for n, s in sizes.items()}, share), rel=1e-6)


@settings(max_examples=20)
@given(COSTS, st.tuples(SHARES, SHARES))
def test_two_budgets_are_kept_one_is_used_up_and_their_order_does_not_matter(costs, shares):
    tables = [{str(i): float(c[k]) for i, c in enumerate(costs)} for k in range(2)]
    found = proxy(tables, shares)
    used = [sum(found[n] * cost for n, cost in table.items()) / sum(table.values()) for table in tables]
    assert all(u <= share * (1 + 1e-6) for u, share in zip(used, shares, strict=True))
    assert any(u >= share * (1 - 1e-6) for u, share in zip(used, shares, strict=True))
    assert all(0 < density <= 1 for density in found.values())
    other = proxy(tables[::-1], shares[::-1])  # a concave problem has one optimum, whatever the order
    assert sum(map(math.log, found.values())) == pytest.approx(sum(map(math.log, other.values())), abs=1e-3)


def test_synaptic_flow_reaches_through_a_hundred_layers():
    net = made(lambda: nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(100))))
    weights = prunable(net)
    with torch.no_grad():
        for weight in weights.values():
            weight *= 1e-3  # R is about 1e-300
    found = synflow(net, weights, (torch.zeros(1, 6),), density=0.5, rounds=1)
    matrices = [weight.detach().double().abs() for weight in weights.values()]
    into, out, ahead = torch.ones(6).double(), torch.ones(6).double(), []
    for matrix in reversed(matrices):  # the same shares by vectors of sum 1, which stay in range however deep it is
        ahead.append(out)
        out = out @ matrix / (out @ matrix).sum()
    for matrix, after, score in zip(matrices, reversed(ahead), found.values(), strict=True):
        expected = after[:, None] * matrix * into
        torch.testing.assert_close(score.double(), expected / expected.sum(), rtol=1e-5, atol=1e-9)
        into = matrix @ into / (matrix @ into).sum()


# --- widths


def test_consistent_densities_become_exactly_the_widths_behind_them():
    sizes = chain([3, 64, 128, 64, 10])
    widths = {"group1": 32, "group2": 32, "group3": 48}
    asked = {name: sizes.numel(name, widths) / sizes.numel(name, {}) for name in sizes.cells}
    fit = fit_widths(sizes, asked, [whole(sizes, sizes.parameters(widths) / sizes.parameters({}))])
    assert fit.widths == widths
    assert fit.reached == pytest.approx(asked)
    assert max(map(abs, fit.residuals.values())) < 1e-6


def test_densities_that_conflict_leave_residuals():
    sizes = chain([3, 64, 64, 10])
    fit = fit_widths(sizes, {"conv1": 1.0, "conv2": 0.01, "conv3": 1.0}, [whole(sizes, 0.5)])
    assert fit.residuals["conv2"] < -0.1 < 0.1 < max(fit.residuals["conv1"], fit.residuals["conv3"])
    assert "conv2" in fit.bottleneck()


@settings(max_examples=20)
@given(st.lists(st.integers(192, 512), min_size=4, max_size=6), st.data())
def test_whole_channels_use_the_budget_up_and_never_exceed_it(widths, data):
    sizes = chain([3, *widths, 10])
    asked = {name: data.draw(st.floats(0.2, 1.0)) for name in sizes.cells}
    budget = whole(sizes, data.draw(st.floats(0.3, 0.9)))
    fit = fit_widths(sizes, asked, [budget], multiple_of=1)
    assert sizes.parameters(fit.widths) <= budget.most
    assert all(0 < width <= sizes.groups[name].size for name, width in fit.widths.items())
    for name, width in fit.narrower.items():  # not another channel fits
        assert sizes.parameters({**fit.widths, name: width + 1}) > budget.most


@settings(max_examples=20)
@given(st.lists(st.integers(192, 512), min_size=4, max_size=6), st.floats(0.3, 0.9))
def test_layers_of_one_density_meet_the_budget_to_one_percent(widths, share):
    sizes = chain([3, *widths, 10])
    fit = fit_widths(sizes, dict.fromkeys(sizes.cells, share), [whole(sizes, share)], multiple_of=1)
    assert 0.99 * share <= sizes.parameters(fit.widths) / sizes.parameters({}) <= share


@settings(max_examples=20)
@given(st.lists(st.integers(8, 100), min_size=1, max_size=5), st.sampled_from([2, 4, 8]), st.floats(1.0, 3.0))
def test_widths_are_multiples_unless_a_layer_stays_whole(widths, multiple, grow):
    sizes = chain([3, *widths, 10])
    wider = dict.fromkeys(sizes.groups, grow)
    asked = dict.fromkeys(sizes.cells, 0.3)
    fit = fit_widths(sizes, asked, [whole(sizes, 0.8)], multiple_of=multiple, grow=wider)
    for name, width in fit.widths.items():
        assert width % multiple == 0 or width == sizes.groups[name].size
        assert width <= grow * sizes.groups[name].size
    assert sizes.parameters(fit.widths) <= 0.8 * sizes.parameters({})


def test_a_budget_below_the_smallest_network_is_refused_with_its_size():
    sizes = chain([3, 64, 64, 10])
    least = 9 * (3 * 8 + 8 * 8 + 8 * 10)
    with pytest.raises(UsageError, match=f"{least:,} parameters"):
        fit_widths(sizes, dict.fromkeys(sizes.cells, 0.5), [whole(sizes, 0.01)])


def test_shapes_are_foreseen_through_concatenation_and_depthwise_convolutions(mixed):
    sizes, graph = sizes_of(mixed), mixed
    generator = np.random.default_rng(0)
    widths = {name: int(generator.integers(1, group.size)) for name, group in graph.groups.items()}
    stay = {name: generator.permutation(graph.groups[name].size) < width for name, width in widths.items()}
    gone = {name: list(parameter.shape) for name, parameter in graph.model.named_parameters()}
    for cut in (cut for removal in removals(graph, stay) for cut in removal.cuts):
        if cut.name in gone:
            gone[cut.name][cut.dim] -= len(cut.indices)
    assert {name: list(sizes.shape(name, widths)) for name in sizes.cells} == gone
    assert sizes.parameters({}) == count_parameters(graph.model).total


# --- the method


def cropped(graph, **params):
    net = graph.model
    plan = Precropping(**{"rounds": 5, "multiple_of": 4, **params}).plan(net, None, WORK)
    return plan, plan.apply(made(lambda: convnet(16)) if isinstance(net, nn.Sequential) else made(Mixed))


def test_the_smaller_network_costs_what_was_foreseen_and_trains(plain):
    plan, net = cropped(plain, parameters=0.25, flops=0.3)
    parameters, flops = count_parameters(net).total, count_flops(net, *EXAMPLE).total
    assert parameters <= 0.25 * count_parameters(plain.model).total
    assert 0.25 < flops / count_flops(plain.model, *EXAMPLE).total <= 0.3
    assert parameters == sizes_of(plain).parameters({name: new for name, (_, new) in plan.made_by["widths"].items()})
    assert all(new % 4 == 0 for _, new in plan.made_by["widths"].values())
    assert (net[0].in_channels, net.linear.out_features) == (3, 10)
    optimizer = torch.optim.Adam(net.train().parameters())
    before = [p.clone() for p in net.parameters()]
    F.cross_entropy(net(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_first_weights_are_drawn_for_the_new_fan_in_and_bare_parameters_stay():
    net = made(Mixed)
    plan = Precropping(parameters=0.4, multiple_of=1, rule="erk").plan(net, None, WORK)
    old, new = net.same.weight.detach().clone(), plan.apply(net).same.weight.detach()
    bound = 1 / math.sqrt(new[0].numel())
    assert new.shape[0] < old.shape[0]
    assert 0.9 * bound < float(new.abs().max()) <= bound
    assert torch.equal(net.scale, torch.ones(len(new), 1, 1))
    assert plan.made_by["notes"][-1].endswith("how they are drawn: scale")


def test_layers_grow_under_both_budgets_and_the_plan_replays_and_goes_back(tmp_path):
    net = made(Mixed)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    total, flops = count_parameters(net).total, count_flops(net, *EXAMPLE).total
    plan = Precropping(parameters=1.0, allow_grow=2.0, multiple_of=2, rule="proxy").plan(net, None, WORK)
    grown = {name for name, (old, new) in plan.made_by["widths"].items() if new > old}
    assert grown
    assert all(new <= 2 * old for old, new in plan.made_by["widths"].values())
    plan.save(tmp_path / "plan")
    plan.apply(net)
    assert count_parameters(net).total <= total
    assert count_flops(net, *EXAMPLE).total <= flops
    again = Plan.load(tmp_path / "plan").apply(made(Mixed))
    assert torch.equal(again(torch.ones(3, 3, 8, 8)), net(torch.ones(3, 3, 8, 8)))
    plan.undo(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("rule", ["synflow", "snip", "grasp", "erk", "proxy"])
def test_every_rule_keeps_the_budget_and_never_widens(plain, rule):
    data = task("shapes", side=8, limit=40) if rule in ("snip", "grasp") else None
    fit = Precropping(rule=rule, parameters=0.3, multiple_of=1, rounds=3, draws=2, batch=16).fit(plain, data, WORK)
    share = fit.sizes.parameters(fit.widths) / fit.sizes.parameters({})
    assert 0.3 * 0.99 <= share <= 0.3
    assert not fit.wider


def test_channels_that_inherit_their_weights_are_those_of_largest_norm():
    net = made(lambda: convnet(8))
    with torch.no_grad():
        net.conv6.weight[::2] *= 9
        net.linear.weight[:, ::2] *= 9
    wanted = net.linear.weight[:, ::2].clone()
    plan = Precropping(parameters=0.5, multiple_of=1, rule="erk", inherit=True).plan(net, None, WORK)
    assert all(op.kind == "drop" for op in plan.ops)
    kept = plan.apply(net).linear.weight
    assert kept.shape[1] >= 16
    assert all((column == kept.T).all(1).any() for column in wanted.T)


@pytest.mark.parametrize(
    ("params", "example", "says"),
    [
        ({}, (), "input is not known"),
        ({}, (torch.zeros(2, 4),), "only 0% of the parameters"),
        ({}, (torch.zeros(2, 5),), "does not take"),
        ({"inherit": True, "allow_grow": 2.0}, (torch.zeros(2, 4),), "allow_grow at 1"),
    ],
)
def test_what_cannot_be_cropped_is_refused(params, example, says):
    with pytest.raises(UsageError, match=says):
        Precropping(**params).plan(nn.Linear(4, 4), None, Work(example=example))


def test_budgets_and_rules_that_cannot_be_met_are_refused(plain):
    with pytest.raises(UsageError, match="smallest network"):
        Precropping(parameters=0.001, rule="erk").fit(plain, None, WORK)
    with pytest.raises(UsageError, match="Give data"):
        Precropping(rule="snip").fit(plain, None, WORK)


@pytest.mark.slow
def test_a_step_takes_less_than_six_tenths_of_the_time(plain):
    nets = {"whole": made(lambda: convnet(16)), "cropped": cropped(plain, parameters=0.25, flops=0.3)[1]}
    x = torch.randn(16, 3, 32, 32)
    times = interleave({name: lambda net=net: net(x).sum().backward() for name, net in nets.items()}, seconds=2)
    assert times["cropped"].low < 0.6 * times["whole"].low
