"""What a network costs: parameters, FLOPs, bytes, and weights that lead nowhere."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from efface.parts.counting import (
    Flops,
    bitmask_bytes,
    count_flops,
    count_parameters,
    csr_bytes,
    dense_bytes,
    effective_density,
)


class Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


class Chooses(nn.Module):
    """Takes a path that depends on the values."""

    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Linear(4, 2), nn.Linear(4, 8)

    def forward(self, x):
        return self.wide(x) if x.sum().item() > 0 else self.narrow(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def conv_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


@pytest.mark.parametrize(
    ("net", "example", "by_weight", "other"),
    [
        (nn.Linear(8, 4), torch.rand(2, 8), {"weight": 2 * 2 * 8 * 4}, 0),
        (nn.Conv2d(8, 4, 3, groups=2), torch.rand(1, 8, 5, 5), {"weight": 2 * 9 * 4 * 9 * 4}, 0),
        (nn.ConvTranspose2d(4, 8, 3), torch.rand(1, 4, 6, 6), {"weight": 2 * 36 * 4 * 8 * 9}, 0),
        (conv_net(), torch.rand(1, 3, 8, 8), {"0.weight": 2 * 36 * 27 * 8, "4.weight": 2 * 288 * 4}, 0),
        (Attention(), torch.rand(1, 2, 5, 4), {}, 2 * 2 * (2 * 5 * 5 * 4)),
        (
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
            torch.rand(2, 5, 16),
            {
                "self_attn.in_proj_weight": 2 * 10 * 16 * 48,
                "self_attn.out_proj.weight": 2 * 10 * 16 * 16,
                "linear1.weight": 2 * 10 * 16 * 32,
                "linear2.weight": 2 * 10 * 16 * 32,
            },
            2 * 2 * (2 * 2 * 5 * 5 * 8),
        ),
        (nn.LSTM(4, 8), torch.rand(5, 2, 4), {"weight_ih_l0": 2 * 10 * 4 * 32, "weight_hh_l0": 2 * 10 * 8 * 32}, 0),
        (Tied(), torch.zeros(3, dtype=torch.long), {"embed.weight": 2 * 3 * 4 * 10}, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_flops_are_booked_on_the_weights(net, example, by_weight, other):
    counted = count_flops(net, example)
    assert counted == Flops(by_weight, other)
    assert counted.total == sum(by_weight.values()) + other


def test_flops_agree_with_torch_s_counter_where_that_counts_all():
    net, x = conv_net().eval(), torch.rand(2, 3, 8, 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    assert count_flops(net, x).total == counter.get_total_flops()


def test_counting_computes_nothing_and_leaves_the_network_as_it_was():
    net = conv_net()
    net[1].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    count_flops(net, torch.full((2, 3, 8, 8), torch.nan))
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with torch.device("meta"):
        huge = nn.Linear(1_000_000, 1_000_000)
        assert count_flops(huge, torch.empty(1, 1_000_000)).total == 2 * 10**12


@pytest.mark.parametrize(("sign", "wide"), [(1, 8), (-1, 2)])
def test_a_path_that_depends_on_values_is_taken(sign, wide):
    assert count_flops(Chooses(), sign * torch.ones(1, 4)).total == 2 * 4 * wide


def test_densities_scale_the_flops_of_their_weight_alone():
    counted = Flops({"a.weight": 100, "a.bias_map": 10, "b.c.weight": 50}, other=7)
    assert counted.kept({}) == counted.total == 167
    assert counted.kept({"a.weight": 0.1, "b.c.weight": 0.0, "unknown": 0.0}) == 27
    assert counted.by_module() == {"a": 110, "b.c": 50}


def test_parameters_and_bytes_count_each_storage_once():
    net = Tied()
    assert count_parameters(net).total == 40
    assert dense_bytes(net) == 160
    mask = torch.zeros(10, 4, dtype=torch.bool)
    mask[0] = True
    counted = count_parameters(net, {"embed.weight": mask})
    assert (counted.prunable, counted.kept) == (40, 4)
    assert dense_bytes(nn.BatchNorm1d(3).to(torch.bfloat16)) == 4 * 3 * 2 + 8


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_stored_forms_are_as_large_as_counted(rows, columns, density):
    weight = torch.rand(rows, columns) * (torch.rand(rows, columns) < density)
    kept = int((weight != 0).sum())
    csr = weight.to_sparse_csr()
    assert csr_bytes((rows, columns), kept) == 4 * sum(
        part.numel() for part in (csr.values(), csr.col_indices(), csr.crow_indices())
    )
    assert bitmask_bytes(weight.numel(), kept) == (weight.numel() + 7) // 8 + 4 * kept


def brute_force(masks):
    """Count the weights of a chain of linear layers that lie on a path, by trying each."""
    alive = 0
    for layer, mask in enumerate(masks):
        for index in mask.nonzero():
            single = torch.zeros_like(mask, dtype=torch.double)
            single[tuple(index)] = 1
            paths = torch.eye(masks[0].shape[1], dtype=torch.double)
            for other, link in enumerate(masks):
                paths = (single if other == layer else link.double()) @ paths
            alive += bool(paths.any())
    return alive / sum(mask.numel() for mask in masks)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.floats(0, 1), st.integers(0, 99))
def test_effective_density_counts_weights_on_paths(sizes, density, seed):
    draw = torch.Generator().manual_seed(seed)
    net, masks = nn.Sequential(), {}
    for number, (a, b) in enumerate(pairwise(sizes)):
        net.append(nn.Sequential(nn.Linear(a, b), nn.ReLU()))
        masks[f"{number}.0.weight"] = torch.rand(b, a, generator=draw) < density
    assert effective_density(net, masks) == pytest.approx(brute_force(list(masks.values())))


def test_effective_density_sees_through_convolutions_and_flattening():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(8, 3)
    )
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in net.named_parameters() if p.ndim > 1}
    assert effective_density(net, masks) == 1
    masks["3.weight"][0] = False  # channel 0 is not made: 4 inputs of the linear layer are dead
    masks["0.weight"][1, 0, 0, 0] = False
    assert effective_density(net, masks) == (17 + 2 + 4 * 3) / (18 + 4 + 24)
    masks["5.weight"][:] = False
    assert effective_density(net, masks) == 0


@pytest.mark.parametrize(
    "net", [nn.Conv2d(4, 4, 1, groups=2), Tied(), nn.Sequential(nn.TransformerEncoderLayer(4, 1)), nn.LSTM(2, 2)]
)
def test_effective_density_is_not_offered_beyond_chains(net):
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in net.named_parameters() if p.ndim > 1}
    assert effective_density(net, masks) is None
