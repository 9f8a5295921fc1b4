"""Build networks of cells with several operations side by side, of which some are to be erased."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from efface.errors import UsageError
from efface.parts.nn.classifiers import initialise

Join = Literal["add", "concat"]
OPERATIONS: dict[str, Callable[[int, int, int], list[nn.Module]]] = {
    "conv3": lambda a, b, s: [nn.Conv2d(a, b, 3, s, 1, bias=False)],
    "conv5": lambda a, b, s: [nn.Conv2d(a, b, 5, s, 2, bias=False)],
    "depthwise": lambda a, b, s: [
        nn.Conv2d(a, a, 3, s, 1, groups=a, bias=False),
        nn.BatchNorm2d(a),
        nn.Conv2d(a, b, 1, bias=False),
    ],
    "conv1": lambda a, b, s: [nn.Conv2d(a, b, 1, s, bias=False)],
    "pool": lambda a, b, s: [nn.AvgPool2d(3, s, 1)],
    "skip": lambda a, b, s: [nn.AvgPool2d(s)] if s > 1 else [],
}
"""Candidates by name, for inputs, outputs and stride; each is followed by batch norm."""
KEEPS_CHANNELS = ("pool", "skip")


class Erased(nn.Module):
    """Stand for an operation that is gone: nothing to add, or nothing to concatenate."""

    def __init__(self, join: Join = "add") -> None:
        super().__init__()
        self.join = join

    def forward(self, x: Tensor, *others: object) -> Tensor:
        """Return 0 (a number), or an empty tensor, which ``torch.cat`` leaves out."""
        return x.new_zeros(() if self.join == "add" else (0,))


class MixedOp(nn.Module):
    """Run named branches side by side, and add or concatenate what they give; those erased cost nothing."""

    def __init__(self, branches: Mapping[str, nn.Module], join: Join = "add") -> None:
        super().__init__()
        self.branches, self.join = nn.ModuleDict(branches), join

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to what the branches give together."""
        outputs = [branch(x) for branch in self.branches.values() if not isinstance(branch, Erased)]
        if self.join == "concat":
            return torch.cat(outputs, 1)
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total


def operation(name: str, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return the candidate ``name`` of :data:`OPERATIONS` with batch norm behind it."""
    if name in KEEPS_CHANNELS and inputs != outputs:
        raise UsageError(f"{name} cannot make {outputs} channels of {inputs}", where="branches", fix="Leave it out")
    return nn.Sequential(*OPERATIONS[name](inputs, outputs, stride), nn.BatchNorm2d(outputs))


def cell_net(
    widths: Sequence[int] = (16, 16, 32, 32),
    *,
    branches: Sequence[str] = ("conv3", "conv5", "depthwise", "conv1", "skip"),
    join: Join = "add",
    channels: int = 3,
    classes: int = 10,
) -> nn.Sequential:
    """Return a stem, a cell of ``branches`` for each of ``widths``, and one linear layer.

    A cell that is wider than the one before halves the picture, and has no branch that keeps the number of channels.
    In cells that concatenate, each branch makes as many channels as the width says.
    """
    net = nn.Sequential()
    net.add_module(
        "stem", nn.Sequential(nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]))
    )
    last = before = widths[0]
    for number, width in enumerate(widths, 1):
        stride = 2 if width > before else 1
        names = [name for name in branches if name not in KEEPS_CHANNELS or last == width]
        cell = MixedOp({name: operation(name, last, width, stride) for name in names}, join)
        outputs = width * (len(names) if join == "concat" else 1)
        net.add_module(f"cell{number}", cell)
        if join == "concat":
            net.add_module(f"norm{number}", nn.BatchNorm2d(outputs))
        net.add_module(f"relu{number}", nn.ReLU())
        last, before = outputs, width
    for name, layer in {"average": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}.items():
        net.add_module(name, layer)
    net.add_module("linear", nn.Linear(last, classes))
    initialise(net)
    return net
