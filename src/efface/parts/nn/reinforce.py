"""Choose one option per decision with an LSTM, and learn the choice from rewards.

Source: REINFORCE (Williams 1992); the controller in the form of arXiv:1611.01578 that arXiv:2204.12743 uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Choice(NamedTuple):
    """Options chosen, for n policies of k decisions."""

    actions: Tensor
    """(n, k): the options."""
    log_probs: Tensor
    """(n, k): log-probability of each option, with gradient."""
    entropies: Tensor
    """(n, k): entropy of each decision, with gradient."""


class Controller(nn.Module):
    """LSTM that makes decisions one after the other, each knowing the ones before.

    ``sizes`` holds the number of options of each decision. The policy depends on features (n, ``feature``) where they
    are given, else it is one for all; ``feature`` None builds it without. 94,676 parameters for STE's 18 decisions.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        embedding: int = 32,
        hidden: int = 100,
        feature: int | None = 1000,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.offsets = tuple(accumulate(self.sizes, initial=0))
        self.project = None if feature is None else nn.Linear(feature, embedding)
        self.embed = nn.Embedding(self.offsets[-1], embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers)
        self.heads = nn.ModuleList(nn.Linear(hidden, n) for n in self.sizes)
        for weight in self.parameters():
            nn.init.uniform_(weight, -0.1, 0.1)

    def forward(self, n: int, *, generator: torch.Generator, features: Tensor | None = None) -> Choice:
        """Choose for ``n`` policies; ``generator`` is on the CPU."""
        x = self.embed.weight.new_zeros(n, self.embed.embedding_dim)
        if self.project is not None and features is not None:
            x = torch.tanh(self.project(features))
        state, actions, log_probs, entropies = None, [], [], []
        for offset, head in zip(self.offsets, self.heads, strict=False):
            y, state = self.lstm(x[None], state)
            log_prob = head(y[0]).float().log_softmax(-1)  # (n, options)
            action = torch.multinomial(log_prob.detach().exp().cpu(), 1, generator=generator).to(log_prob.device)
            actions.append(action[:, 0])
            log_probs.append(log_prob.gather(1, action)[:, 0])
            entropies.append(-(log_prob.exp() * log_prob).sum(-1))
            x = self.embed(offset + action[:, 0])
        return Choice(torch.stack(actions, 1), torch.stack(log_probs, 1), torch.stack(entropies, 1))


def reinforce(choice: Choice, rewards: Tensor, counts: Tensor, *, entropy: float = 1e-5) -> Tensor:
    """Return the loss whose gradient raises the probability of what was rewarded.

    ``rewards`` (n,); ``counts`` (n, k) is 1 where a decision counted and 0 where another one made it irrelevant;
    ``entropy`` weighs the wish to stay undecided.
    """
    score = (counts * choice.log_probs).sum(1) * rewards.detach()
    return -score.mean() - entropy * (counts * choice.entropies).sum(1).mean()
