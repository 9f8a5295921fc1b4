"""Gradients that agree stay bit for bit, and those that conflict no longer do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efface.parts.concepts.surgery import clipped, cosines, linear_loss, project_conflicting

SHAPES = ((3, 4), (5,), (2, 2, 2))


def gradients(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in SHAPES]


@given(st.integers(0, 999), st.sampled_from([1e-4, 1.0, 1e3]))
def test_nothing_conflicts_afterwards_and_agreement_is_left_alone(seed, scale):
    first, second = gradients(seed, scale), gradients(seed + 1000)
    for g, h, new in zip(first, second, project_conflicting(first, second), strict=True):
        if (g * h).sum() >= 0:
            assert new is g
        else:
            assert abs(torch.cosine_similarity(new.flatten(), h.flatten(), dim=0)) < 1e-5
            assert torch.allclose((new - g).flatten() @ new.flatten(), torch.zeros(()), atol=1e-5 * scale**2 * 24)


def test_a_share_of_the_conflict_is_taken_out():
    g, h = [torch.tensor([-1.0, 2.0])], [torch.tensor([4.0, 0.0])]
    assert project_conflicting(g, h)[0].tolist() == [0.0, 2.0]
    assert project_conflicting(g, h, 0.5)[0].tolist() == [-0.5, 2.0]
    assert project_conflicting(g, h, 0.0)[0].tolist() == [-1.0, 2.0]
    official = project_conflicting(g, h, official_scale=True)[0]
    torch.testing.assert_close(official, torch.tensor([-1 + 5**-0.5, 2.0]))


def test_no_second_gradient_is_no_conflict():
    first = gradients(0)
    nothing = [torch.zeros_like(g) for g in first]
    assert all(new is g for new, g in zip(project_conflicting(first, nothing), first, strict=True))
    assert cosines(first, nothing).tolist() == [0.0, 0.0, 0.0]


def test_all_tensors_are_clipped_together():
    long, short = gradients(0, 100.0), gradients(0, 1e-3)
    after = clipped(long)
    assert torch.nn.utils.get_total_norm(after).item() == pytest.approx(1)
    torch.testing.assert_close(cosines(long, after), torch.ones(3))
    assert all(torch.equal(a, b) for a, b in zip(clipped(short), short, strict=True))


def test_made_gradients_reach_the_weights():
    weights, wanted = [g.requires_grad_() for g in gradients(0)], gradients(1)
    linear_loss(weights, wanted).backward()
    assert all(torch.equal(weight.grad, g) for weight, g in zip(weights, wanted, strict=True))
