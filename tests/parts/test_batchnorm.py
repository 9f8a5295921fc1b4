import copy

import pytest
import torch
from torch import nn

from efface.errors import DataError
from efface.parts.nn.batchnorm import load_statistics, merged, reestimate, statistics


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    net[1].eval()  # modes are mixed, on purpose
    net[4].momentum = 0.3
    return net


def batches(count=5):
    return list(torch.randn(count, 16, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 3 + 2)


def test_statistics_are_averages_over_the_batches(net):
    reestimate(net, batches())
    with torch.no_grad():
        made = [net[0](batch) for batch in batches()]
    assert torch.allclose(net[1].running_mean, torch.stack([m.mean((0, 2, 3)) for m in made]).mean(0), atol=1e-5)
    assert torch.allclose(net[1].running_var, torch.stack([m.var((0, 2, 3)) for m in made]).mean(0), rtol=1e-4)
    assert net[1].num_batches_tracked == 5


def test_old_statistics_do_not_matter_and_nothing_else_changes(net):
    other, before = copy.deepcopy(net), copy.deepcopy(net)
    other[1].running_mean += 100
    reestimate(net, batches())
    reestimate(other, iter(batches()))
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    for name, value in net.named_parameters():
        assert torch.equal(value, before.get_parameter(name))
        assert value.grad is None
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert (net[1].momentum, net[4].momentum) == (0.1, 0.3)


@pytest.mark.parametrize("bad", [[], [torch.zeros(4, 3, 6, 6), torch.zeros(4, 1, 6, 6)]])
def test_old_statistics_come_back_after_an_error(net, bad):
    before = copy.deepcopy(net)
    with pytest.raises((DataError, RuntimeError)):
        reestimate(net, bad)
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert net[4].momentum == 0.3


def test_a_network_without_statistics_is_not_run():
    reestimate(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), [])


@pytest.mark.parametrize("sizes", [(7,), (2, 30, 5), (10, 10)])
def test_merged_statistics_are_those_of_all_data(sizes):
    draw = torch.Generator().manual_seed(len(sizes))
    sources = [torch.randn(n, 4, generator=draw) * (1 + i) + 3 * i for i, n in enumerate(sizes)]
    pooled = torch.cat(sources)
    means, variances = [s.mean(0) for s in sources], [s.var(0, correction=0) for s in sources]
    mean, variance = merged(means, variances, sizes)
    assert torch.allclose(mean, pooled.mean(0), atol=1e-5)
    assert torch.allclose(variance, pooled.var(0, correction=0), rtol=1e-4)
    plain_mean, plain = merged(means, variances, sizes, "plain")
    assert torch.equal(mean, plain_mean)
    assert (plain < variance).all() == (len(sizes) > 1)


def test_statistics_are_put_back_where_they_were(net):
    reestimate(net, batches())
    given = statistics(net)
    assert given.shape == (2, 6)
    load_statistics(net, given + 1)
    assert torch.equal(net[1].running_mean, given[0, :4] + 1)
    assert torch.equal(net[4].running_var, given[1, 4:] + 1)
