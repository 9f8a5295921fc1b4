from __future__ import annotations

import pytest
import torch
from torch import nn

from efface.errors import UnknownNameError, UsageError
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.prunable import prunable, prunable_names, tied


def mixed() -> nn.Module:
    net = nn.Module()
    net.words = nn.Embedding(7, 4)
    net.conv = nn.Conv2d(4, 6, 3)
    net.up = nn.ConvTranspose1d(4, 2, 3)
    net.norm = nn.BatchNorm2d(6)
    net.plane = nn.LayerNorm((4, 4))  # a weight of two dimensions that is none
    net.attention = nn.MultiheadAttention(4, 2)
    net.gru = nn.GRU(4, 3)
    net.head = nn.Linear(4, 7)
    net.place = nn.Parameter(torch.zeros(5, 4))
    return net


WEIGHTS = {
    "conv.weight", "up.weight", "attention.in_proj_weight", "attention.out_proj.weight", "gru.weight_ih_l0",
    "gru.weight_hh_l0", "head.weight",
}  # fmt: skip


def test_takes_weights_of_layers_and_nothing_else():
    assert set(prunable(mixed())) == WEIGHTS


def test_takes_the_linear_layers_of_transformers():
    layers = pytest.importorskip("transformers.pytorch_utils")
    assert list(prunable(nn.Sequential(layers.Conv1D(3, 4), nn.LayerNorm(3)))) == ["0.weight"]


def test_takes_all_projections_of_attention_with_uneven_widths():
    found = prunable(nn.MultiheadAttention(4, 2, kdim=3, vdim=5))
    assert set(found) == {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"}


def test_leaves_out_layers_without_weights():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    net[1].weight = nn.Parameter(torch.zeros(0, 2))
    assert list(prunable(net)) == ["0.weight"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (("*",), ("head",), WEIGHTS - {"head.weight"}),
        (("attention*", "conv.weight"), (), {"attention.in_proj_weight", "attention.out_proj.weight", "conv.weight"}),
        ("gru*", ("*_hh_*",), {"gru.weight_ih_l0"}),
    ],
)
def test_globs_match_weights_and_their_layers(include, exclude, expected):
    assert set(prunable(mixed(), include, exclude)) == expected


@pytest.mark.parametrize("given", [{"include": ["haed"]}, {"exclude": ["haed.weight"]}])
def test_a_glob_that_matches_nothing_is_refused_with_a_suggestion(given):
    with pytest.raises(UnknownNameError, match=r"haed.*Did you mean head"):
        prunable(mixed(), **given)


def test_nothing_to_prune_is_refused():
    with pytest.raises(UsageError, match="no prunable weights"):
        prunable(nn.BatchNorm2d(3))
    with pytest.raises(UsageError, match="excluded"):
        prunable(nn.Linear(3, 3), exclude=["weight"])


@pytest.mark.parametrize("shared", ["parameter", "storage"])
def test_tied_weights_count_once_and_have_both_names(shared):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight if shared == "parameter" else nn.Parameter(net[0].weight.detach())
    assert tied(net) == {"1.weight": "0.weight"}
    assert list(prunable(net)) == ["0.weight"]
    assert list(prunable(net, include=["1"])) == ["0.weight"]
    masks = MaskSet.ones_like(net)
    assert masks.total == 9
    assert masks["1.weight"] is masks["0.weight"]
    assert "1.weight" in masks


def test_a_head_that_is_tied_to_an_embedding_stays():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 7), nn.Embedding(7, 4))
    net[2].weight = net[1].weight
    assert list(prunable(net)) == ["0.weight"]


def test_weights_on_the_meta_device_are_not_taken_for_tied():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert len(prunable(net)) == 2


def test_a_bag_of_tensors_goes_by_names_and_shapes():
    shapes = {
        "model.embed_tokens.weight": (9, 4),
        "transformer.wte.weight": (9, 4),
        "layers.0.attn.q_proj.weight": (4, 4),
        "layers.0.attn.in_proj_weight": (12, 4),
        "layers.0.attn.q_proj.bias": (4,),
        "layers.0.input_layernorm.weight": (4,),
        "patch_embedding.weight": (4, 3, 2, 2),
        "time_embedding.linear_1.weight": (4, 4),
        "plane_norm.weight": (4, 4),
        "lstm.weight_hh_l0_reverse": (4, 4),
        "mask": (4, 4),
    }
    expected = [
        "layers.0.attn.q_proj.weight", "layers.0.attn.in_proj_weight", "patch_embedding.weight",
        "time_embedding.linear_1.weight", "lstm.weight_hh_l0_reverse",
    ]  # fmt: skip
    assert prunable_names(shapes) == expected

    bag = nn.Module()
    bag.inner = nn.Module()
    bag.inner.weight, bag.inner.bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    bag.ids = nn.Parameter(torch.ones(2, 2, dtype=torch.int64), requires_grad=False)
    assert list(prunable(bag)) == ["inner.weight"]
