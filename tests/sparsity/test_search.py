"""A mask is searched over weights that never change."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.search import DEAD, LIVE, MaskSearch
from efface.parts.sparsity.topk import keep_layerwise
from efface.seeds import torch_generator


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def search(seed=0):
    masks = {
        name: torch.rand(weight.shape, generator=torch_generator(seed, name)) < 0.5
        for name, weight in net().named_parameters()
        if weight.ndim > 1
    }
    return MaskSearch(net(), MaskSet(masks))


def data(count=8):
    x = torch.randn(count, 1, 4, 4, generator=torch_generator(1, "x"))
    return x, torch.arange(count) % 3


def run(searched, steps, restriction=None, **options):
    x, y = data()
    optimizer = torch.optim.SGD(searched.scores.parameters(), **({"lr": 0.5, "momentum": 0.9} | options))
    handle = searched.attach(searched, optimizer, restriction=restriction)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(searched(x), y).backward()
        optimizer.step()
        yield
    handle.remove()


def test_it_starts_as_the_masked_network():
    searched, plain = search(), net()
    searched.masks.apply_(plain)
    x, _ = data()
    assert torch.equal(searched.eval()(x), plain.eval()(x))
    for score, mask in zip(searched.scores, searched.masks.values(), strict=True):
        assert torch.equal(score > (LIVE + DEAD) / 2, mask)


def test_gradients_are_those_of_the_masked_weights_times_the_weights_also_where_a_weight_is_dead():
    searched, (x, y) = search().eval(), data()
    F.cross_entropy(searched(x), y).backward()
    plain = copy.deepcopy(searched.net).requires_grad_()
    searched.masks.apply_(plain)
    F.cross_entropy(plain(x), y).backward()
    weights = dict(searched.net.named_parameters())
    for name, score in zip(searched.names, searched.scores, strict=True):
        torch.testing.assert_close(score.grad, plain.get_parameter(name).grad * weights[name])
        assert score.grad[~searched.masks[name]].count_nonzero()


def test_weights_and_counts_never_change_while_masks_do():
    searched = search()
    before = {name: p.clone() for name, p in searched.net.named_parameters()}
    counts, first = searched.masks.per_layer(), searched.masks & searched.masks
    for _ in run(searched, 5):
        assert searched.masks.per_layer() == counts
        assert all(torch.equal(p, before[name]) for name, p in searched.net.named_parameters())
    assert searched.masks != first
    assert searched.net[1].num_batches_tracked == 5


def test_without_restriction_the_largest_scores_stay():
    searched = search()
    for _ in run(searched, 3):
        counts = {name: kept for name, (kept, _) in searched.masks.per_layer().items()}
        assert searched.masks == keep_layerwise(dict(zip(searched.names, searched.scores, strict=True)), counts)


@pytest.mark.parametrize(("share", "swaps"), [(1.0, 3), (0.5, 2), (0.01, 1), (0.0, 0)])
def test_a_share_of_the_pairs_is_swapped_the_best_for_the_worst(share, swaps):
    layer = nn.Linear(6, 1, bias=False)
    searched = MaskSearch(nn.Sequential(layer), MaskSet({"0.weight": torch.tensor([[1, 1, 1, 0, 0, 0]]).bool()}))
    with torch.no_grad():
        searched.scores[0].copy_(torch.tensor([[0.3, 0.1, 0.2, 0.7, 0.9, 0.8]]))
    assert searched.update(share) == swaps
    order_out, order_in = [1, 2, 0], [4, 5, 3]
    wanted = {0, 1, 2} - set(order_out[:swaps]) | set(order_in[:swaps])
    assert set(searched.masks["0.weight"].nonzero()[:, 1].tolist()) == wanted


def test_equal_scores_swap_in_pairs():
    searched = search()
    counts = searched.masks.per_layer()
    with torch.no_grad():
        for score in searched.scores:
            score.fill_(0.5)
    searched.update()
    assert searched.masks.per_layer() == counts


def test_the_search_lowers_the_loss():
    searched, (x, y) = search(), data()

    def loss():
        with torch.no_grad():
            return float(F.cross_entropy(searched(x), y))

    before = loss()
    for _ in run(searched, 20):
        pass
    assert loss() < before
