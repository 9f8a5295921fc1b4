"""Measure how far a classifier can be trusted: calibration, pictures of something else, and adversaries.

Logits are (n, classes), before any softmax; labels (n,) count from 0. Entropies are in nats, shares in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.parts.data.tasks import Examples, Task, logits
from efface.parts.nn.modes import mode
from efface.seeds import torch_generator

BINS = 15
EPSILONS = 2 / 255, 8 / 255
_CHUNK = 250  # pictures at once


def nll(found: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood of the true classes."""
    return float(F.cross_entropy(found.double(), labels))


def ece(found: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, in the mean over pictures.

    Pictures are put in ``bins`` of equal width by their largest probability (Guo et al., arXiv:1706.04599, eq. 3).
    """
    confidence, named = found.double().softmax(1).max(1)
    place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)  # bins (a, b]
    gap = (named == labels).double() - confidence
    return float(torch.zeros(bins, dtype=torch.float64).index_add(0, place.cpu(), gap.cpu()).abs().sum() / len(labels))


def confidence(found: Tensor) -> Tensor:
    """Return the largest probability (n,) of each picture, which is low where a network does not know."""
    return found.double().softmax(1).amax(1)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Return how likely a score of ``inside`` (n,) is above one of ``outside`` (m,); equal ones count a half."""
    order = outside.sort().values
    below, upto = (torch.searchsorted(order, inside.contiguous(), right=right) for right in (False, True))
    return float((below + upto).double().mean() / 2 / len(outside))


def fgsm(net: nn.Module, batch: dict[str, Tensor], examples: Examples, epsilon: float) -> Tensor:
    """Return the pictures of ``batch``, moved by ``epsilon`` against the network and held in the range of pixels.

    Goodfellow et al. (arXiv:1412.6572): every pixel, in [0, 1] before it was standardised, goes ``epsilon`` up or down
    along the sign of the gradient of the loss. The network is in evaluation mode, and keeps no gradients.
    """
    x = batch["picture"].detach().requires_grad_()
    with mode(net, training=False), torch.enable_grad():
        gradient = torch.autograd.grad(F.cross_entropy(logits(net, x), batch["label"]), x)[0]
    mean, std = (torch.from_numpy(value)[:, None, None].to(x) for value in (examples.mean, examples.std))  # type: ignore[arg-type]
    x = x.detach()
    black, white = -mean / std, (1 - mean) / std
    moved = x + epsilon / std * gradient.sign()
    return moved.clamp(torch.minimum(black, x), torch.maximum(white, x))


def robustness(
    net: nn.Module, task: Task, *, epsilons: Sequence[float] = EPSILONS, limit: int | None = None, seed: int = 0
) -> dict[str, float]:
    """Score ``net`` on the test pictures of ``task`` (or ``limit`` of them), as they are, misled, and replaced.

    Returns ``accuracy``, ``nll`` and ``ece``; ``auroc_noise`` and ``auroc_scrambled``, how well its confidence tells
    the pictures from uniform noise and from their own pixels in another order; and ``fgsm_2``, its accuracy after
    :func:`fgsm` by 2/255, and so on.
    """
    device = next(net.parameters()).device
    index = np.arange(len(task.test)) if limit is None else task.test.order(0, 0, min(limit, len(task.test)))
    parts: dict[str, list[Tensor]] = {"": [], "labels": [], "noise": [], "scrambled": []}
    parts |= {f"fgsm_{255 * epsilon:g}": [] for epsilon in epsilons}
    mean, std = (torch.from_numpy(value)[:, None, None] for value in (task.test.mean, task.test.std))  # type: ignore[arg-type]
    with mode(net, training=False), torch.no_grad():
        for start in range(0, len(index), _CHUNK):
            batch = {key: value.to(device) for key, value in task.test.take(index[start : start + _CHUNK]).items()}
            x, generator = batch["picture"], torch_generator(seed, "robustness", start)
            noise = ((torch.rand(x.shape, generator=generator) - mean) / std).to(device)
            order = torch.rand(len(x), 1, x[0, 0].numel(), generator=generator).argsort(2).to(device)
            scrambled = x.flatten(2).gather(2, order.expand(-1, x.shape[1], -1)).view_as(x)
            shown = {"": x, "noise": noise, "scrambled": scrambled}
            shown |= {f"fgsm_{255 * epsilon:g}": fgsm(net, batch, task.test, epsilon) for epsilon in epsilons}
            parts["labels"].append(batch["label"].cpu())
            for name, pictures in shown.items():
                parts[name].append(logits(net, pictures).cpu())
    found = {name: torch.cat(values) for name, values in parts.items()}
    plain, labels = found.pop(""), found.pop("labels")
    known, strange = confidence(plain), {name: confidence(found.pop(name)) for name in ("noise", "scrambled")}
    return {
        "accuracy": _accuracy(plain, labels),
        "nll": nll(plain, labels),
        "ece": ece(plain, labels),
        **{f"auroc_{name}": auroc(known, scores) for name, scores in strange.items()},
        **{name: _accuracy(misled, labels) for name, misled in found.items()},
    }


def _accuracy(found: Tensor, labels: Tensor) -> float:
    return float((found.argmax(1) == labels).double().mean())
