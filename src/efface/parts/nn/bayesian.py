"""Give layers Gaussian weights, trained by noise that is drawn where it acts: on their outputs.

A layer's weights are N(weight, sigma^2), each with a sigma = softplus(spread) of its own. In training the output is
drawn from the Gaussian that these weights make of it (local reparametrisation, Kingma, Salimans and Welling,
arXiv:1506.02557): one draw for each output instead of one for each weight, of less variance. In evaluation the means
alone count, so the layer is an ordinary one. Biases are plain numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.errors import UsageError
from efface.seeds import seeded


class BayesLinear(nn.Linear):
    """A linear layer with Gaussian weights; made by :func:`bayesian`."""

    spread: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        mean = super().forward(x)
        return _drawn(mean, F.linear(x.square(), sigma(self).square())) if self.training else mean


class BayesConv2d(nn.Conv2d):
    """A convolution with Gaussian weights; made by :func:`bayesian`."""

    spread: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, in, h, w) to (b, out, h', w')."""
        mean = super().forward(x)
        return _drawn(mean, self._conv_forward(x.square(), sigma(self).square(), None)) if self.training else mean


Bayes = BayesLinear | BayesConv2d
PLAIN: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: BayesLinear, nn.Conv2d: BayesConv2d}


def sigma(layer: Bayes) -> Tensor:
    """Return the standard deviation of each weight."""
    return F.softplus(layer.spread)


def bayesian(net: nn.Module, names: Iterable[str], start: float = 0.02) -> dict[str, Bayes]:
    """Give the weights called ``names`` a sigma, at first ``start``, in place; return their layers by weight name.

    The layers stay the same objects with the same weights, and gain the parameter ``spread``.

    Raises
    ------
    UsageError
        If a weight is not that of a plain linear layer or 2-d convolution; then nothing has changed.
    """
    layers: dict[str, nn.Module] = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        layers[name] = layer = net.get_submodule(path)
        if leaf != "weight" or type(layer) not in PLAIN:
            fix = "Exclude it: linear layers and 2-d convolutions alone can have Gaussian weights"
            raise UsageError(f"{type(layer).__name__} has no form with Gaussian weights", where=name, fix=fix)
    for layer in set(layers.values()):
        weight = layer.get_parameter("weight")
        spread = torch.full_like(weight, math.log(math.expm1(start)))
        layer.__class__ = PLAIN[type(layer)]  # so that hooks, tied places and the weight itself stay what they are
        layer.register_parameter("spread", nn.Parameter(spread))
    return layers  # type: ignore[return-value]


def plain(layers: Iterable[nn.Module]) -> None:
    """Make ordinary layers, of the mean weights, of those that :func:`bayesian` returned."""
    back = {new: old for old, new in PLAIN.items()}
    for layer in set(layers):
        layer.__class__ = back[type(layer)]
        del layer.spread


@dataclass(frozen=True)
class Posterior:
    """What is known of the weights after inference: ``net`` has their means."""

    net: nn.Module
    sigma: dict[str, Tensor]
    support: dict[str, Tensor]
    """Probability that a weight lives."""

    def tensors(self) -> dict[str, Tensor]:
        """Return sigma and support under names to be stored by."""
        found = {"sigma": self.sigma, "support": self.support}
        return {f"{name}.{kind}": tensor for kind, tensors in found.items() for name, tensor in tensors.items()}

    @torch.no_grad()
    def outputs(self, x: Tensor, samples: int, seed: int = 0) -> Tensor:
        """Return the outputs (samples, ...) of the network for weights drawn from the posterior."""
        net, outputs = copy.deepcopy(self.net).eval(), []
        with seeded(seed, "posterior"):
            for _ in range(samples):
                for name, spread in self.sigma.items():
                    mean = self.net.get_parameter(name)
                    net.get_parameter(name).copy_(mean + spread * torch.randn_like(mean))
                outputs.append(net(x))
        return torch.stack(outputs)


def _drawn(mean: Tensor, variance: Tensor) -> Tensor:
    return mean + (variance + 1e-12).sqrt() * torch.randn_like(mean)  # a root has no slope at 0
