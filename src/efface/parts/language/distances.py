"""Measure how far the logits of an edited language model are from those of the whole one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 256
"""Tokens that are compared at once: in float32, over a vocabulary of 128 000 they take 130 MB a tensor."""


def js(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of each token (n,) in nats, between 0 and ln 2, from logits (n, v)."""
    p, q, middle = _with_middle(p, q)
    return (_kl(p, middle) + _kl(q, middle)) / 2


def released(p: Tensor, q: Tensor) -> Tensor:
    """Return what the code released with FinerCut computes: the arguments of KL exchanged, divided by the vocabulary.

    It is not bounded by ln 2.
    """
    p, q, middle = _with_middle(p, q)
    return (_kl(middle, p) + _kl(middle, q)) / 2 / p.shape[1]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence KL(p || q) of each token (n,) in nats, from logits (n, v)."""
    return _kl(p.log_softmax(1), q.log_softmax(1))


def angular(p: Tensor, q: Tensor) -> Tensor:
    """Return the angle between the vectors (n, d), in radians."""
    return F.cosine_similarity(p, q).clamp(-1, 1).acos()


def squared(p: Tensor, q: Tensor) -> Tensor:
    """Return the squared Euclidean distance between the vectors (n, d)."""
    return (p - q).square().sum(1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "js": js,
    "released": released,
    "kl": kl,
    "angular": angular,
    "norm": squared,
}
"""Distances by name, for each token. Their means over tokens are what is compared, of ``norm`` the root of the sum."""


def compare(metric: str, pairs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, float]:
    """Return a distance, and the perplexity of the second logits, over all of ``pairs``.

    Each of ``pairs`` holds logits (b, t, v) of the whole and of the edited model, and the tokens (b, t). All tokens
    count alike, however they are split; figures are computed in float32 and summed in float64. The metric ``ppl``
    is the perplexity itself.
    """
    total = loss = 0.0
    count = told = 0
    for whole, edited, ids in pairs:
        for p, q in zip(_chunks(whole), _chunks(edited), strict=True):
            if metric != "ppl":
                total += float(DISTANCES[metric](p.float(), q.float()).double().sum())
            count += len(p)
        for q, y in zip(_chunks(edited[:, :-1]), ids[:, 1:].flatten().split(CHUNK), strict=True):
            loss += float(F.cross_entropy(q.float(), y, reduction="sum"))
            told += len(y)
    perplexity = math.exp(min(loss / told, 700.0))
    return {"ppl": perplexity, "norm": math.sqrt(total)}.get(metric, total / count), perplexity


def _chunks(logits: Tensor) -> tuple[Tensor, ...]:
    return logits.flatten(0, 1).split(CHUNK)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)


def _with_middle(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logarithms of both distributions and of their mean."""
    p, q = p.log_softmax(1), q.log_softmax(1)
    return p, q, torch.logaddexp(p, q) - math.log(2)
