"""What is under half-transparent ink comes back from its coverage, and nothing changes outside the mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efface.core.method import Step
from efface.pictures.strokefill import CLEAR, StrokeFill, StrokeFillNet


@pytest.fixture
def net() -> StrokeFillNet:
    torch.manual_seed(0)
    return StrokeFill(**StrokeFill.small).build()


@pytest.fixture
def flat() -> Tensor:
    return torch.tensor([0.3, 0.5, 0.7]).view(1, 3, 1, 1).expand(1, 3, 32, 32).contiguous()


def bar(value: float) -> Tensor:
    """Return a bar (1, 1, 32, 32) of ``value`` in the middle of nothing."""
    x = torch.zeros(1, 1, 32, 32)
    x[..., 12:18, 6:26] = value
    return x


@pytest.mark.parametrize("opacity", [0.2, 0.5, 0.9])
def test_true_coverage_shows_what_is_under_ink(net: StrokeFillNet, flat: Tensor, opacity: float) -> None:
    alpha, mask = bar(opacity), torch.ones(1, 1, 32, 32)
    x = torch.lerp(flat, torch.tensor([1.0, 0.9, 0.1]).view(1, 3, 1, 1), alpha)
    with torch.no_grad():
        through = net.repair(x, mask, bar(1).logit(CLEAR), alpha.logit(1e-6)).through
    inside = bar(1).expand_as(x) > 0
    assert (through - flat)[inside].abs().max() < 0.02 < (x - flat)[inside].abs().max()


def test_new_network_interpolates_across_opaque_ink(net: StrokeFillNet, flat: Tensor) -> None:
    x = torch.lerp(flat, torch.zeros(()), bar(1))
    with torch.no_grad():
        repaired = net.repair(x, torch.ones(1, 1, 32, 32), *[bar(1).logit(CLEAR)] * 2)
    assert (repaired.picture - flat).abs().max() < 0.05
    assert repaired.through.isfinite().all()


def test_nothing_changes_outside_the_mask(net: StrokeFillNet) -> None:
    x, mask = torch.rand(1, 3, 32, 32), bar(1)
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.1)
    with torch.no_grad():
        repaired = StrokeFill().run(net, x, mask=mask, views=4)
    outside = (mask == 0).expand_as(x)
    assert torch.equal(repaired[outside], x[outside])
    assert not torch.equal(repaired, x)


@pytest.mark.parametrize("ink", ["found", "mask"])
def test_every_output_learns(ink: str) -> None:
    method = StrokeFill(**StrokeFill.small, ink=ink)
    net = method.build()
    picture, mask = torch.rand(2, 3, 32, 32), bar(1).expand(2, -1, -1, -1)
    batch = {"picture": picture, "target": torch.rand(2, 3, 32, 32), "mask": mask, "alpha": 0.6 * mask}
    losses = method.loss(net, batch, Step(1, 2, 0))
    losses["total"].backward()
    learning = net.fill.exit.bias.grad.view(8, -1)  # type: ignore[operator, union-attr]
    assert (learning.abs().sum(1) > 0).all()
    assert ("find" in losses) == (ink == "found")
