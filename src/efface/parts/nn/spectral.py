"""Build convolutions under spectral normalisation, each followed by a leaky ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

SLOPE = 0.2
"""Slope of the leaky ReLU for negative values."""
FIRST = 15
"""Power iterations before the first use; afterwards one for each use in training."""


class SpectralNorm(nn.Module):
    """Divide a weight by its largest singular value, seen as a matrix whose rows are ``axis`` (Miyato et al. 2018).

    Singular value and iteration are computed in float32 whatever the arithmetic around them.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        matrix = self._matrix(weight.detach())
        for name, size in zip("uv", matrix.shape, strict=True):
            self.register_buffer(name, F.normalize(nn.init.normal_(matrix.new_empty(size)), dim=0))
        for _ in range(0 if weight.is_meta else FIRST):
            self._iterate(matrix)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the normalised weight."""
        with torch.autocast("cpu" if weight.is_meta else weight.device.type, enabled=False):
            matrix = self._matrix(weight)
            if self.training:
                self._iterate(matrix.detach())
            # clones, for the vectors move on before the gradient of this use is taken
            return weight / (self.u.clone() @ (matrix @ self.v.clone()))

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.transpose(0, self.axis).flatten(1).float()

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        self.v.copy_(F.normalize(matrix.mT @ self.u, dim=0))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0))


def conv(
    inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1, activation: bool = True
) -> nn.Sequential:
    """Return convolution, spectral norm and leaky ReLU; height and width are divided by ``stride`` and else kept."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2 * dilation, dilation=dilation)
    return _normed(layer, 0, activation)


def up(inputs: int, outputs: int) -> nn.Sequential:
    """Return a transposed convolution that doubles height and width exactly, under spectral norm, and a leaky ReLU."""
    return _normed(nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1), 1, True)


def start(layer: nn.Module) -> None:
    """Draw weights from N(0, 1 / fan-in), set biases to zero; the scales of batch norms start at N(1, 0.02).

    The N(0, 0.02) of EraseNet is that of its widest layers; in narrow ones it would silence the skips.
    """
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _normed(layer: nn.Conv2d | nn.ConvTranspose2d, axis: int, activation: bool) -> nn.Sequential:
    # The norm takes the scale of the weights away, so only their directions matter here.
    start(layer)
    register_parametrization(layer, "weight", SpectralNorm(layer.weight, axis))
    return nn.Sequential(layer, *([nn.LeakyReLU(SLOPE, inplace=True)] if activation else []))
