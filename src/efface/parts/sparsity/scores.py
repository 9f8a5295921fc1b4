"""Score weights by what is lost when one of them goes: the higher, the more it is worth keeping.

Every function returns ``{name: float32 tensor of the weight's shape}`` for the ``weights`` it is given (see
:func:`efface.parts.sparsity.masks.prunable`). Networks come out as they went in: weights, buffers, gradients, modes and
torch's generators. ``loss(net, batch)`` returns a scalar.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import DataError, EffaceError
from efface.parts.nn.modes import mode
from efface.parts.sparsity.schedules import exponential
from efface.parts.sparsity.topk import keep_global
from efface.seeds import torch_generator

Scores = dict[str, Tensor]
Loss = Callable[[nn.Module, Any], Tensor]


def magnitude(weights: Mapping[str, Tensor]) -> Scores:
    """Return |w|."""
    return {name: w.detach().float().abs() for name, w in weights.items()}


def lamp(weights: Mapping[str, Tensor]) -> Scores:
    """Return w^2 over the sum of the squares in its layer that are no smaller.

    Lee et al., Layer-adaptive sparsity for magnitude-based pruning (arXiv:2010.07611), eq. 3. The largest weight of a
    layer scores 1, so that a ranking of all weights empties no layer.
    """

    def share(w: Tensor) -> Tensor:
        ranked, order = w.detach().double().square().flatten().sort(stable=True)
        rest = ranked.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.empty_like(ranked).scatter_(0, order, ranked / rest).view(w.shape).float()

    return {name: share(w) for name, w in weights.items()}


def random_scores(weights: Mapping[str, Tensor], seed: int = 0) -> Scores:
    """Return numbers in [0, 1), drawn for each layer from ``seed`` and its name."""
    return {
        name: torch.rand(w.shape, generator=torch_generator(seed, "random scores", name)).to(w.device)
        for name, w in weights.items()
    }


def snip(net: nn.Module, weights: Mapping[str, Tensor], loss: Loss, batches: Iterable[Any]) -> Scores:
    """Return |w g|, the sensitivity of the loss to each connection; g is the mean gradient over ``batches``.

    Lee et al., SNIP (arXiv:1810.02340), eq. 6 without the normalisation, which no ranking sees. The network is scored
    with its own weights, in training mode.
    """
    gradients = _mean_gradients(net, weights, loss, batches)
    return {k: (w.detach().float() * g).abs() for (k, w), g in zip(weights.items(), gradients, strict=True)}


def gradient(net: nn.Module, weights: Mapping[str, Tensor], loss: Loss, batches: Iterable[Any]) -> Scores:
    """Return |g|, where g is the mean gradient over ``batches`` in training mode."""
    gradients = _mean_gradients(net, weights, loss, batches)
    return {name: g.abs() for name, g in zip(weights, gradients, strict=True)}


def taylor(net: nn.Module, weights: Mapping[str, Tensor], loss: Loss, batches: Iterable[Any]) -> Scores:
    """Return the mean over ``batches`` of (w g)^2, the squared first-order change of the loss without the weight.

    Molchanov et al., Importance Estimation for Neural Network Pruning (arXiv:1906.10771), eq. 8.
    """
    with _borrowed(net, weights):
        total, count = _zeros(weights), 0
        for count, batch in enumerate(batches, 1):  # noqa: B007
            for score, w, g in zip(total, weights.values(), _gradients(loss(net, batch), weights), strict=True):
                score += (w.detach().float() * g).square()
    _require_batches(count)
    return {name: score / count for name, score in zip(weights, total, strict=True)}


def grasp(
    net: nn.Module, weights: Mapping[str, Tensor], loss: Loss, batches: Sequence[Any], *, temperature: float = 200.0
) -> Scores:
    """Return w Hg, by how much the squared norm of the gradient falls when the weight goes (first order).

    Wang et al., GraSP (arXiv:2002.07376), eq. 8. Its own score -w Hg is what removal gains, and the highest go; here as
    everywhere the highest stay. ``net`` must return logits, which are divided by ``temperature``; gradients and
    Hessian are sums over ``batches``, which are read twice.
    """
    _require_batches(len(batches))
    cool = net.register_forward_hook(lambda _module, _inputs, logits: logits / temperature)
    try:
        with _borrowed(net, weights):
            gradient, product = _zeros(weights), _zeros(weights)
            for batch in batches:
                torch._foreach_add_(gradient, _gradients(loss(net, batch), weights))
            for batch in batches:
                curved = _gradients(loss(net, batch), weights, create_graph=True)
                along = sum(((g * c).sum() for g, c in zip(gradient, curved, strict=True)), torch.zeros(()))
                torch._foreach_add_(product, _gradients(along, weights))
    finally:
        cool.remove()
    return {k: w.detach().float() * h for (k, w), h in zip(weights.items(), product, strict=True)}


def synflow(
    net: nn.Module, weights: Mapping[str, Tensor], example: tuple[Tensor, ...], *, density: float, rounds: int = 100
) -> Scores:
    """Return the share in [0, 1] of the synaptic flow through each weight, after all but the last of ``rounds``.

    Tanaka et al., SynFlow (arXiv:2006.05467), algorithm 1: R is the sum of the outputs for an input of ones when all
    weights are |w|, a weight's score is |w dR/dw| / R. Between rounds the weights of the lowest scores go, down to
    ``density ** (round / rounds)``; they score 0. No data is needed: of the positional inputs in ``example`` only the
    shapes matter. A copy of ``net`` is scored, in float64, with batch normalisation as in evaluation and without what
    is added (biases, running means), so that every layer of a chain carries the same flow.

    Raises
    ------
    EffaceError
        If there is no flow, or more than float64 can hold.
    """
    twin = copy.deepcopy(net).double().eval()
    every = dict(twin.named_parameters(remove_duplicate=False))
    ours = {name: every[name].requires_grad_() for name in weights}
    with torch.no_grad():
        for p in twin.parameters():
            p.abs_()
        for name, tensor in [*every.items(), *twin.named_buffers()]:
            if name.rpartition(".")[2] in ("bias", "running_mean"):
                tensor.zero_()
    ones = [torch.ones((1, *x.shape[1:]), dtype=torch.float64, device=x.device) for x in example]
    total = sum(w.numel() for w in ours.values())
    for i in range(1, rounds + 1):
        flow = twin(*ones).sum()
        if not (torch.isfinite(flow) and flow > 0):
            raise EffaceError(f"round {i} of SynFlow has a flow of {flow.item():g}", fix="Score by magnitude instead")
        gradients = torch.autograd.grad(flow, list(ours.values()), materialize_grads=True, allow_unused=True)
        scores = {
            k: (w.detach() * g / flow.detach()).float() for (k, w), g in zip(ours.items(), gradients, strict=True)
        }
        if i < rounds:
            masks = keep_global(scores, round(exponential(i, density, rounds) * total))
            with torch.no_grad():
                for name, w in ours.items():
                    w *= masks[name]
    return scores


@contextmanager
def _borrowed(net: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put ``net`` into training mode with gradients for ``weights``, and bring everything back afterwards."""
    buffers = [(m, k, b, b.clone()) for m in net.modules() for k, b in m.named_buffers(recurse=False)]
    wanted = [(w, w.requires_grad) for w in weights.values()]
    devices = {w.device for w in weights.values() if w.device.type == "cuda"}
    try:
        with mode(net, training=True), torch.random.fork_rng(devices=devices), torch.enable_grad():
            torch.manual_seed(0)  # dropout
            for w, _ in wanted:
                w.requires_grad_()
            yield
    finally:
        for module, name, tensor, value in buffers:
            tensor.copy_(value)
            setattr(module, name, tensor)
        for w, flag in wanted:
            w.requires_grad_(flag)


def _mean_gradients(
    net: nn.Module, weights: Mapping[str, Tensor], loss: Loss, batches: Iterable[Any]
) -> tuple[Tensor, ...]:
    with _borrowed(net, weights):
        total, count = _zeros(weights), 0
        for count, batch in enumerate(batches, 1):  # noqa: B007
            torch._foreach_add_(total, _gradients(loss(net, batch), weights))
    _require_batches(count)
    return torch._foreach_div(total, count)


def _gradients(value: Tensor, weights: Mapping[str, Tensor], *, create_graph: bool = False) -> tuple[Tensor, ...]:
    """Return the gradients of ``value`` in float32; weights that it does not use have 0."""
    found = torch.autograd.grad(
        value, list(weights.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return tuple(g.float() for g in found)


def _zeros(weights: Mapping[str, Tensor]) -> list[Tensor]:
    return [torch.zeros_like(w, dtype=torch.float32) for w in weights.values()]


def _require_batches(count: int) -> None:
    if not count:
        raise DataError("weights cannot be scored on no batches", fix="Give at least one batch")
