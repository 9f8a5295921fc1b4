"""Masks to choose from have one density and differ in its shares; blocks go by children, layers or globs."""

from __future__ import annotations

import pytest
import torch

from efface.errors import UnknownNameError
from efface.parts.nn.classifiers import convnet
from efface.parts.sparsity.candidates import blocks_of, noisy_masks
from efface.parts.sparsity.masks import MaskSet


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_masks_share_the_same_density_out_differently(sparsity):
    torch.manual_seed(0)
    net = convnet(4, depth=1)
    every = MaskSet.ones_like(net)
    found = noisy_masks(net, every, 1 - sparsity, 4, 0.5, 0)
    assert {masks.kept for masks in found} == {round((1 - sparsity) * every.total)}
    assert len({tuple(kept for kept, _ in masks.per_layer().values()) for masks in found}) >= 3
    for masks in found:
        for name, mask in masks.items():
            weight = net.get_parameter(name).detach().abs()
            assert mask.all() or weight[mask].min() >= weight[~mask].max()


def test_blocks_are_children_layers_all_or_globs():
    names = ["0.0.weight", "0.3.weight", "1.0.weight", "4.weight"]
    assert blocks_of(names, "block") == [names[:2], names[2:3], names[3:]]
    assert blocks_of(names, "layer") == [[n] for n in names]
    assert blocks_of(names, "all") == [names]
    assert blocks_of(names, "block", ("0.*", "[14].*")) == [names[:2], names[2:]]
    with pytest.raises(UnknownNameError, match=r"7\.\*"):
        blocks_of(names, "block", ("7.*",))
