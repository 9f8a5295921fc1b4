"""Build the plain classifiers that pruning papers are measured on; :mod:`.resnets` has the residual ones.

Each is an ``nn.Sequential`` with named layers, from pictures (b, channels, h, w) to logits (b, classes). Weights begin
as He et al. 2015 draw them (normal, fan in, ReLU), biases at zero; the draws come from torch's current generator.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

VGG19 = (64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4
MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *(((512, 1),) * 5), (1024, 2), (1024, 1))
"""Channels and stride of each separable block."""


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Return linear layers from ``sizes[0]`` values (pictures are flattened) to ``sizes[-1]`` logits, ReLU between."""
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for i, (a, b) in enumerate(pairwise(sizes), 1):
        layers[f"linear{i}"] = nn.Linear(a, b)
        if i < len(sizes) - 1:
            layers[f"relu{i}"] = nn.ReLU()
    return _built(layers)


def lenet_300_100(inputs: int = 784, classes: int = 10) -> nn.Sequential:
    """Return LeNet-300-100: 266 610 parameters for pictures of 28x28."""
    return mlp((inputs, 300, 100, classes))


def convnet(
    width: int = 16, *, depth: int = 2, separable: bool = False, channels: int = 3, classes: int = 10
) -> nn.Sequential:
    """Return three stages of ``depth`` 3x3 convolutions of ``width``, twice and four times it, with batch norm.

    Stages are halved by pooling, and the last one is averaged over the picture. By default six convolutions with 72 496
    weights. ``separable`` makes each convolution but the first one per channel and one over channels.
    """
    layers: dict[str, nn.Module] = {}
    last, number = channels, 0
    for stage in range(3):
        for _ in range(depth):
            number, outputs = number + 1, width * 2**stage
            make = _separable if separable and number > 1 else _conv
            layers |= {f"{name}{number}": layer for name, layer in make(last, outputs).items()}
            last = outputs
        if stage < 2:
            layers[f"pool{stage + 1}"] = nn.MaxPool2d(2)
    return _built(layers | _head(last, classes))


def conv246(convolutions: int, *, side: int = 32, channels: int = 3, classes: int = 10) -> nn.Sequential:
    """Return Conv-2, -4 or -6 of the lottery ticket hypothesis (arXiv:1803.03635): no batch norm, three linear layers.

    For 32x32 pictures 4.30, 2.43 and 2.26 million parameters; the paper's table gives 1.7 million for the last.
    """
    layers: dict[str, nn.Module] = {}
    last = channels
    for i in range(1, convolutions + 1):
        width = 64 * 2 ** ((i - 1) // 2)
        layers |= {f"conv{i}": nn.Conv2d(last, width, 3, padding=1), f"relu{i}": nn.ReLU()}
        if i % 2 == 0:
            layers[f"pool{i // 2}"] = nn.MaxPool2d(2)
        last = width
    left = side // 2 ** (convolutions // 2)
    return _built(layers | dict(mlp((last * left**2, 256, 256, classes)).named_children()))


def vgg19_bn(*, channels: int = 3, classes: int = 10) -> nn.Sequential:
    """Return VGG-19 with batch norm and one linear layer, for pictures of 32x32: 20.0 million parameters."""
    layers: dict[str, nn.Module] = {}
    last, number = channels, 0
    for stage, widths in enumerate(VGG19, 1):
        for width in widths:
            number += 1
            layers |= {f"{name}{number}": layer for name, layer in _conv(last, width).items()}
            last = width
        if stage < len(VGG19):
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
    return _built(layers | _head(last, classes))


def mobilenet_v1(*, channels: int = 3, classes: int = 1000) -> nn.Sequential:
    """Return MobileNet (arXiv:1704.04861) of full width, for pictures of 224x224: 4.23 million parameters."""
    layers = {f"{name}1": layer for name, layer in _conv(channels, 32, stride=2).items()}
    last = 32
    for number, (width, stride) in enumerate(MOBILENET, 2):
        layers |= {f"{name}{number}": layer for name, layer in _separable(last, width, stride).items()}
        last = width
    return _built(layers | _head(last, classes))


def initialise(net: nn.Module) -> None:
    """Draw the weights of all convolutions and linear layers of ``net`` anew, and set their biases to zero."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _conv(inputs: int, outputs: int, stride: int = 1) -> dict[str, nn.Module]:
    return {
        "conv": nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        "norm": nn.BatchNorm2d(outputs),
        "relu": nn.ReLU(),
    }


def _separable(inputs: int, outputs: int, stride: int = 1) -> dict[str, nn.Module]:
    return {
        "depthwise": nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        "depthnorm": nn.BatchNorm2d(inputs),
        "depthrelu": nn.ReLU(),
        "pointwise": nn.Conv2d(inputs, outputs, 1, bias=False),
        "norm": nn.BatchNorm2d(outputs),
        "relu": nn.ReLU(),
    }


def _head(inputs: int, classes: int) -> dict[str, nn.Module]:
    return {"average": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "linear": nn.Linear(inputs, classes)}


def _built(layers: dict[str, nn.Module]) -> nn.Sequential:
    net = nn.Sequential(OrderedDict(layers))
    initialise(net)
    return net
