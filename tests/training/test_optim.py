from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from efface.training.optim import Muon, optimizer, orthogonal
from efface.training.recipe import Train


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_orthogonal_matrix_has_singular_values_about_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.4
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 3))


def descend(net, optim, steps):
    x, losses = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(1)), []
    for _ in range(steps):
        optim.zero_grad()
        loss = (net(x) - 1).square().mean()
        loss.backward()
        optim.step()
        losses.append(loss.item())
    return losses


def test_steps_of_matrices_have_the_size_of_lr_and_vectors_move_by_adamw():
    net, twin = network(), network()
    descend(net, optimizer(list(net.parameters()), Train(optimizer="muon", lr=0.01)), 1)
    descend(twin, optimizer(list(twin.parameters()), Train(lr=0.01)), 1)
    start = dict(network().named_parameters())
    for name, p in net.named_parameters():
        if p.ndim < 2:
            assert torch.equal(p, dict(twin.named_parameters())[name])
        else:
            assert 0.005 < (p - start[name]).square().mean().sqrt() < 0.013


def test_muon_descends_and_goes_on_from_its_stored_state():
    net = network()
    optim = optimizer(list(net.parameters()), Train(optimizer="muon", lr=0.01))
    losses = descend(net, optim, 20)
    assert losses[-1] < losses[0] / 2
    twin = network()
    twin.load_state_dict(net.state_dict())
    other = optimizer(list(twin.parameters()), Train(optimizer="muon", lr=0.01))
    other.load_state_dict(copy.deepcopy(optim.state_dict()))
    assert isinstance(other, Muon)
    assert descend(twin, other, 3) == descend(net, optim, 3)
