from __future__ import annotations

import pytest
import torch

from efface.parts.fill import pull_push
from efface.seeds import torch_generator


def noise(*shape: int, name: str = "picture") -> torch.Tensor:
    return torch.rand(shape, generator=torch_generator(0, name))


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (2, 2), (31, 45), (64, 64), (100, 3)])
class TestPullPush:
    def test_keeps_what_is_known_and_ignores_what_is_not(self, size):
        x, known = noise(2, 3, *size), (noise(2, 1, *size, name="known") > 0.6).float()
        filled = pull_push(x, known)
        held = known.expand_as(x) == 1
        assert torch.equal(filled[held], x[held])
        assert torch.equal(filled, pull_push(torch.where(held, x, 1 - x), known))
        assert filled.min() >= 0
        assert filled.max() <= 1

    def test_continues_a_flat_picture(self, size):
        known = (noise(1, 1, *size, name="known") > 0.9).float()
        known[..., 0, 0] = 1
        torch.testing.assert_close(pull_push(torch.full((1, 3, *size), 0.3), known), torch.full((1, 3, *size), 0.3))

    def test_answers_grey_when_nothing_is_known(self, size):
        assert (pull_push(noise(1, 3, *size), torch.zeros(1, 1, *size)) == 0.5).all()

    def test_has_finite_gradients_for_soft_and_empty_weights(self, size):
        for known in (torch.zeros(1, 1, *size), 1e-6 * noise(1, 1, *size), noise(1, 1, *size)):
            x = noise(1, 3, *size).requires_grad_()
            pull_push(x, known.requires_grad_()).sum().backward()
            assert x.grad.isfinite().all()
            assert known.grad.isfinite().all()


def test_pull_push_interpolates_a_slope_smoothly():
    slope = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    known = torch.ones(1, 1, 64, 64)
    known[..., 20:40, 20:40] = 0
    assert (pull_push(slope, known) - slope).abs().max() < 0.04


def test_pull_push_gradients_are_right():
    x, known = noise(1, 2, 7, 5).requires_grad_(), noise(1, 1, 7, 5, name="known").requires_grad_()
    projection = noise(1, 2, 7, 5, name="projection")
    direction = noise(1, 1, 7, 5, name="direction") - 0.5
    slope = torch.autograd.grad((pull_push(x, known) * projection).sum(), known)[0]
    step = 1e-3 * direction
    change = ((pull_push(x, known + step) - pull_push(x, known - step)) * projection).sum()
    torch.testing.assert_close((slope * 2 * step).sum(), change.detach(), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pull_push_computes_in_float32_whatever_the_type(dtype):
    x, known = noise(1, 3, 64, 64).to(dtype), (noise(1, 1, 64, 64, name="known") > 0.5).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        filled = pull_push(x, known)
    assert filled.dtype == dtype
    assert torch.equal(filled, pull_push(x.float(), known.float()).to(dtype))
