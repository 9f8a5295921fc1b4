"""Build convolutions under spectral normalisation, each followed by a leaky ReLU."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2
"""Slope of the leaky ReLU for negative values."""


def conv(
    inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1, activation: bool = True
) -> nn.Sequential:
    """Return convolution, spectral norm and leaky ReLU; height and width are divided by ``stride`` and else kept."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2 * dilation, dilation=dilation)
    return _normed(layer, activation)


def up(inputs: int, outputs: int) -> nn.Sequential:
    """Return a transposed convolution that doubles height and width exactly, under spectral norm, and a leaky ReLU."""
    return _normed(nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1), True)


def _normed(layer: nn.Conv2d | nn.ConvTranspose2d, activation: bool) -> nn.Sequential:
    # The norm takes the scale of the weights away, so only their directions matter here.
    start(layer)
    return nn.Sequential(spectral_norm(layer), *([nn.LeakyReLU(SLOPE, inplace=True)] if activation else []))


def start(layer: nn.Module) -> None:
    """Draw weights from N(0, 0.02), set biases to zero; batch norms start at N(1, 0.02)."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, 0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
