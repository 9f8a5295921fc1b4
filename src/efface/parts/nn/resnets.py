"""Build residual classifiers: small ones for 32x32, wide ones, and ResNet-50 with torchvision's names.

They map pictures (b, channels, h, w) to logits (b, classes). Weights begin as in :mod:`.classifiers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from efface.errors import UsageError
from efface.parts.nn.classifiers import initialise

Shortcut = Literal["conv", "pad"]
Block = Callable[[int, int, int], nn.Module]
"""Makes a block of the given input channels, width and stride."""


class Pad(nn.Module):
    """Skip pixels by ``stride`` and fill up with ``more`` channels of zeros (option A of arXiv:1512.03385)."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, c + more, h / stride, w / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


class BasicBlock(nn.Module):
    """Add two 3x3 convolutions with batch norm to the input."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut = "conv") -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, width, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, width, h / stride, w / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """Add a 1x1, a 3x3 of ``width * widen`` channels and a 1x1 convolution, each with batch norm, to the input."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, widen: int = 1) -> None:
        super().__init__()
        inner, outputs = width * widen, width * self.expansion
        self.conv1, self.bn1 = _conv(inputs, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = _conv(inner, inner, 3, stride), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = _conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, outputs, stride, "conv")

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, 4 * width, h / stride, w / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A stem, stages of residual blocks of which all but the first halve the picture, and one linear layer.

    The stem of ``large`` pictures quarters them first.
    """

    def __init__(
        self, block: Block, expansion: int, blocks: Sequence[int], width: int, channels: int, classes: int, large: bool
    ) -> None:
        super().__init__()
        self.conv1 = _conv(channels, width, 7, 2) if large else _conv(channels, width, 3)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        last, self.stages = width, [f"layer{stage + 1}" for stage in range(len(blocks))]
        for stage, count in enumerate(blocks):
            layer = nn.Sequential()
            for i in range(count):
                layer.append(block(last, width * 2**stage, 2 if stage > 0 and i == 0 else 1))
                last = width * 2**stage * expansion
            self.add_module(self.stages[stage], layer)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(last, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures (b, channels, h, w) to logits (b, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(self.avgpool(x).flatten(1))


def resnet_cifar(
    depth: int = 20, width: int = 16, *, shortcut: Shortcut = "conv", channels: int = 3, classes: int = 10
) -> ResNet:
    """Return a ResNet of ``depth`` 6n + 2 for 32x32 (arXiv:1512.03385, section 4.2).

    ResNet-20, -56 and -110 of width 16 have 0.27, 0.86 and 1.73 million parameters. Where the width changes, the
    ``shortcut`` is a 1x1 convolution with batch norm, or fills up with zeros.
    """
    block = partial(BasicBlock, shortcut=shortcut)
    return ResNet(block, 1, [_blocks(depth, 2)] * 3, width, channels, classes, large=False)


def resnet50(*, widen: int = 1, large: bool = True, channels: int = 3, classes: int = 1000) -> ResNet:
    """Return ResNet-50 with the names and shapes of torchvision's: 25.56 million parameters.

    With ``widen`` 2 it is Wide ResNet-50-2, 68.88 million; without ``large`` its stem is one for 32x32.
    """
    block = partial(Bottleneck, widen=widen)
    return ResNet(block, Bottleneck.expansion, (3, 4, 6, 3), 64, channels, classes, large)


class WideBlock(nn.Module):
    """Add two 3x3 convolutions, each behind batch norm and ReLU, with dropout between, to the input."""

    def __init__(self, inputs: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, width, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), _conv(width, width, 3)
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(dropout)
        self.skip = None if inputs == width and stride == 1 else _conv(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, width, h / stride, w / stride)."""
        y = self.relu(self.bn1(x))
        skip = x if self.skip is None else self.skip(y)
        return skip + self.conv2(self.dropout(self.relu(self.bn2(self.conv1(y)))))


def wide_resnet(
    depth: int = 28, widen: int = 8, *, dropout: float = 0.3, channels: int = 3, classes: int = 10
) -> nn.Sequential:
    """Return a Wide ResNet of ``depth`` 6n + 4 for 32x32 (arXiv:1605.07146); by default 23.35 million parameters."""
    net = nn.Sequential()
    net.add_module("conv", _conv(channels, 16, 3))
    last, count = 16, _blocks(depth, 4)
    for stage in range(3):
        width = 16 * widen * 2**stage
        for i in range(count):
            block = WideBlock(last, width, 2 if stage > 0 and i == 0 else 1, dropout)
            net.add_module(f"stage{stage + 1}_block{i + 1}", block)
            last = width
    head = {"norm": nn.BatchNorm2d(last), "relu": nn.ReLU(), "average": nn.AdaptiveAvgPool2d(1)}
    for name, layer in (head | {"flatten": nn.Flatten(), "linear": nn.Linear(last, classes)}).items():
        net.add_module(name, layer)
    initialise(net)
    return net


def _blocks(depth: int, rest: int) -> int:
    if depth < 6 + rest or (depth - rest) % 6:
        raise UsageError(f"{depth} is no depth of this network", where="depth", fix=f"Take 6n + {rest}")
    return (depth - rest) // 6  # in each of three stages


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int, kind: Shortcut) -> nn.Module | None:
    if inputs == outputs and stride == 1:
        return None
    if kind == "pad":
        return Pad(outputs - inputs, stride)
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
