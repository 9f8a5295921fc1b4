"""Find the largest gradients of a layer's dead weights without ever holding the layer's gradient.

The gradient of a weight is made of the layer's input and of the gradient of its output, row by row. So rows are worked
out in chunks, and of each chunk only what belongs to the largest so far is kept: memory for as many numbers as are
asked for, and one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.errors import UsageError
from efface.parts.federated.codec import Entries

CHUNK = 1 << 16
"""Gradients worked out at once."""


class TopBuffer:
    """The ``count`` entries of largest magnitude among all that :meth:`add` was given; of equal ones any."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.indices, self.values = torch.zeros(0, dtype=torch.int64), torch.zeros(0)

    def add(self, values: Tensor, indices: Tensor) -> None:
        """Consider ``values`` (n,) with their ``indices`` (n,)."""
        if len(values) > self.count:
            first = values.abs().topk(self.count).indices
            values, indices = values[first], indices[first]
        values, indices = torch.cat([self.values, values]), torch.cat([self.indices, indices])
        best = values.abs().topk(min(self.count, len(values))).indices
        self.values, self.indices = values[best], indices[best]

    def entries(self) -> Entries:
        """Return what is held, by ascending index."""
        order = self.indices.argsort()
        return Entries(self.indices[order], self.values[order])


def largest_gradients(
    net: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    masks: Mapping[str, Tensor],
    counts: Mapping[str, int],
    *,
    chunk: int = CHUNK,
) -> dict[str, Entries]:
    """Return, for each weight in ``counts``, so many of the largest gradients of ``loss(net)`` where its mask is false.

    The network is run in its modes, with its weights frozen, and stays as it is. A layer that is called several times
    gives the entries of each call's own largest gradients, added up: a bound on memory forbids more.

    Raises
    ------
    UsageError
        If a weight is not that of a linear layer or convolution, or the loss does not depend on one.
    """
    found: dict[str, TopBuffer] = {}
    frozen = {p: p.requires_grad for p in net.parameters()}
    handles = []

    def watch(name: str, layer: nn.Module) -> Callable[..., Tensor]:
        def after(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            x = given[0].detach()
            out = out if out.requires_grad else out.detach().requires_grad_().clone()
            out.register_hook(lambda slope: _collect(found, name, layer, x, slope, masks[name], counts[name], chunk))
            return out

        return after

    try:
        for p in frozen:
            p.requires_grad_(False)
        for name in counts:
            path, _, leaf = name.rpartition(".")
            layer = net.get_submodule(path)
            if leaf != "weight" or not isinstance(layer, nn.Linear | nn.Conv2d):
                fix = "Exclude it, or grow other layers"
                raise UsageError(f"the gradient of a {type(layer).__name__} cannot be streamed", where=name, fix=fix)
            handles.append(layer.register_forward_hook(watch(name, layer)))
        if (value := loss(net)).requires_grad:
            value.backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
        for p, trained in frozen.items():
            p.requires_grad_(trained)
    if missing := [name for name in counts if name not in found]:
        raise UsageError("the loss does not depend on this weight", where=missing[0], fix="Exclude it")
    return {name: found[name].entries() for name in counts}


def _collect(
    found: dict[str, TopBuffer], name: str, layer: nn.Module, x: Tensor, slope: Tensor, mask: Tensor, count: int,
    chunk: int,
) -> None:  # fmt: skip
    buffer, weight = found.setdefault(name, TopBuffer(count)), layer.get_parameter("weight")
    per_row = weight[0].numel()
    groups = getattr(layer, "groups", 1)
    rows = len(weight) if groups > 1 else max(1, chunk // per_row)
    channel = 1 if isinstance(layer, nn.Conv2d) else -1
    for start in range(0, len(weight), rows):
        part = torch.zeros_like(weight[start : start + rows]).requires_grad_()
        with torch.enable_grad():
            out = F.linear(x, part) if isinstance(layer, nn.Linear) else layer._conv_forward(x, part, None)  # type: ignore[operator]
        of = slope.narrow(channel, start, len(part))
        (gradient,) = torch.autograd.grad(out, part, of)
        dead = (~mask[start : start + rows].to(gradient.device)).flatten().nonzero().squeeze(1)
        buffer.add(gradient.detach().flatten()[dead].cpu(), dead.cpu() + start * per_row)
