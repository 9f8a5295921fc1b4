"""The largest gradients of dead weights are those of the dense gradient, found in little memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from efface.errors import UsageError
from efface.parts.sparsity.streaming import TopBuffer, largest_gradients


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, groups=4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(72, 5),
    )  # fmt: skip


X, Y = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 5


def loss(net):
    return F.cross_entropy(net(X), Y)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
@pytest.mark.parametrize("names", [("0.weight", "3.weight", "6.weight"), ("6.weight",), ("3.weight",)])
def test_the_buffer_holds_the_top_of_the_dense_gradient(chunk, names):
    net = network().eval()
    draw = torch.Generator().manual_seed(2)
    masks = {name: torch.rand(net.get_parameter(name).shape, generator=draw) < 0.3 for name in names}
    found = largest_gradients(net, loss, masks, dict.fromkeys(names, 20), chunk=chunk)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())
    loss(net).backward()
    for name in names:
        dense = net.get_parameter(name).grad.masked_fill(masks[name], 0).flatten()
        wanted = dense.abs().topk(20).indices.sort().values
        assert torch.equal(found[name].indices, wanted)
        assert torch.allclose(found[name].values, dense[wanted], atol=1e-6)


class Peak(TorchDispatchMode):
    """Remember the largest floating-point tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, torch.Tensor) and t.is_floating_point():
                self.largest = max(self.largest, t.numel())
        return out


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_buffer_never_holds_more_than_its_count_and_a_chunk(count, chunk, seed):
    values = torch.randn(500, generator=torch.Generator().manual_seed(seed))
    buffer, peak = TopBuffer(count), Peak()
    with peak:
        for start in range(0, 500, chunk):
            part = values[start : start + chunk]
            buffer.add(part, torch.arange(start, start + len(part)))
    assert peak.largest <= count + chunk
    assert torch.equal(buffer.entries().indices, values.abs().topk(count).indices.sort().values)


def test_a_layer_with_fewer_dead_weights_gives_those():
    net = network().eval()
    mask = torch.ones(5, 72, dtype=torch.bool)
    mask[2, 3] = False
    found = largest_gradients(net, loss, {"6.weight": mask}, {"6.weight": 9})
    assert found["6.weight"].indices.tolist() == [2 * 72 + 3]


@pytest.mark.parametrize(
    ("net", "name", "match"),
    [
        (nn.Sequential(nn.Conv1d(3, 2, 1)), "0.weight", "Conv1d"),
        (nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "1.weight", "does not depend"),
    ],
)
def test_what_cannot_be_streamed_is_refused(net, name, match):
    mask = {name: torch.zeros_like(net.get_parameter(name), dtype=torch.bool)}
    with pytest.raises(UsageError, match=match):
        largest_gradients(net, lambda n: n[0](torch.ones(1, 2)).sum(), mask, {name: 1})
    assert all(p.requires_grad for p in net.parameters())
