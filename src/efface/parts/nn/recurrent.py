"""Refine an estimate again and again: a convolutional GRU, and the loss over all its estimates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SepConvGRU(nn.Module):
    """Update a hidden state with 1x5, then 5x1 convolutions (Teed & Deng 2020, RAFT).

    Each pass sees the channels [hidden, static, moving]: ``z`` and ``r`` are sigmoids of convolutions of them, ``q`` is
    the tanh of a convolution of [r * hidden, static, moving], and ``hidden`` becomes ``(1 - z) * hidden + z * q``. As a
    convolution is linear, the share of the static channels, which no iteration changes, is computed once.
    """

    reach = 4
    """How many pixels away the hidden state and the moving channels change the next hidden state."""

    def __init__(self, hidden: int, static: int, moving: int) -> None:
        super().__init__()
        self.hidden, self.static = hidden, static
        width = hidden + static + moving
        self.convz1 = nn.Conv2d(width, hidden, (1, 5), padding=(0, 2))
        self.convr1 = nn.Conv2d(width, hidden, (1, 5), padding=(0, 2))
        self.convq1 = nn.Conv2d(width, hidden, (1, 5), padding=(0, 2))
        self.convz2 = nn.Conv2d(width, hidden, (5, 1), padding=(2, 0))
        self.convr2 = nn.Conv2d(width, hidden, (5, 1), padding=(2, 0))
        self.convq2 = nn.Conv2d(width, hidden, (5, 1), padding=(2, 0))

    def static_terms(self, static: Tensor) -> Tensor:
        """Return what the (b, static, h, w) channels and the biases add to [z, r, q] of both passes."""
        terms = []
        for convs in self._passes():
            weight = torch.cat([conv.weight[:, self.hidden : self.hidden + self.static] for conv in convs])
            bias = torch.cat([conv.get_parameter("bias") for conv in convs])
            terms.append(F.conv2d(static, weight, bias, padding=convs[0].padding))
        return torch.cat(terms, 1)  # (b, 6 * hidden, h, w)

    def forward(self, hidden: Tensor, moving: Tensor, terms: Tensor) -> Tensor:
        """Return the next hidden state; ``terms`` come from :meth:`static_terms`."""
        for convs, term in zip(self._passes(), terms.chunk(2, 1), strict=True):
            gates, candidate = term.split([2 * self.hidden, self.hidden], 1)
            weight = torch.cat([conv.weight for conv in convs])
            weight = torch.cat([weight[:, : self.hidden], weight[:, self.hidden + self.static :]], 1)
            for_gates, for_candidate = weight.split([2 * self.hidden, self.hidden])
            padding = convs[0].padding
            x = torch.cat([hidden, moving], 1)
            z, r = F.conv2d(x, for_gates, padding=padding).add_(gates).sigmoid_().chunk(2, 1)
            x = torch.cat([r * hidden, moving], 1)
            q = F.conv2d(x, for_candidate, padding=padding).add_(candidate).tanh_()
            hidden = torch.lerp(hidden, q, z)
        return hidden

    def _passes(self) -> tuple[tuple[nn.Conv2d, ...], ...]:
        return (self.convz1, self.convr1, self.convq1), (self.convz2, self.convr2, self.convq2)


def sequence_loss(errors: Sequence[Tensor], decay: float) -> Tensor:
    """Sum the errors of K estimates, the k-th weighted by ``decay ** (K - k)``, so that later ones count more."""
    last = len(errors) - 1
    return torch.stack([decay ** (last - k) * error for k, error in enumerate(errors)]).sum()
