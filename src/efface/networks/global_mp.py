"""Prune by one threshold on the magnitude of all weights together.

What is taken away are the weights of least magnitude, wherever they are: all weights of convolutions and linear
layers enter one ranking, first and last layer included, and a share of them goes. It needs no data and no more than the
weights themselves. Where layers differ much in size or scale, one of them may lose nearly everything; so each keeps a
minimum (MT), and the threshold rises elsewhere until the total is the same. With data, what is left is trained on with
its mask held, or pruned little by little while it trains.

Gupta et al., Is Complexity Required for Neural Network Pruning? A Case Study on Global Magnitude Pruning
(arXiv:2209.14624). The minimum is solved exactly; ``mode="quota"`` is the form of the official scripts, which turn the
ranking into a quota for each layer. Their ranking holds one random number too many and keeps ties at the threshold;
here the count is exact.

Left out: recurrent FastGRNN cells, which have weights of their own kind.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.core.ops import norm
from efface.errors import UsageError
from efface.parts.counting import effective_density, path_notes
from efface.parts.nn.modes import mode
from efface.parts.sparsity.controller import DynamicSparsity
from efface.parts.sparsity.densities import exact_counts
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.prunable import prunable
from efface.parts.sparsity.regimes import Regime
from efface.parts.sparsity.topk import feasible_floor, keep_global, keep_layerwise
from efface.training.edits import edits
from efface.training.recipe import Train
from efface.training.tuning import Attach, tune

if TYPE_CHECKING:
    from efface.core.plan import Plan
    from efface.parts.data.tasks import Task

State = dict[str, Tensor]
APART = 30
"""Ratio of the root mean squares of two layers from which their magnitudes are hardly comparable."""


@dataclass(frozen=True, kw_only=True)
class GlobalMP(Editor):
    """Hyper-parameters of global magnitude pruning."""

    sparsity: float = param(0.9, "share of the weights that goes", low=0.0, high=0.999999)
    min_keep: int = param(
        -1, "weights that each layer keeps at least; -1 is one for each output, where so many stay", low=-1
    )
    mode: str = param("exact", "how minima are met: one threshold, or quotas of layers", choices=("exact", "quota"))
    normalize: str = param(
        "none", "what makes layers of different scale comparable", choices=("none", "layer_rms", "lamp")
    )
    fold_bn_for_scoring: bool = param(False, "rank weights as if the batch norm behind them were folded into them")
    include: tuple[str, ...] = param(("*",), "globs of the weights that may go")
    exclude: tuple[str, ...] = param((), "globs of the weights that stay")
    schedule: str = param("oneshot", "all at once, or little by little in training", choices=("oneshot", "gradual"))
    begin: float = param(0.1, "share of the training after which gradual pruning begins", low=0.0, high=1.0)
    end: float = param(0.6, "share of the training after which it has ended", low=0.0, high=1.0)
    every: float = param(0.01, "share of the training between two prunings", low=0.0, high=1.0)
    steps: int = param(1000, "steps of training where data is given; 0 only prunes", low=0)
    batch: int = param(256, "pictures a step", low=1)
    optimizer: str = param("sgd", "rule that moves the weights", choices=("sgd", "adamw"))
    lr: float = param(0.1024, "highest learning rate, on a cosine to 0", low=0.0)
    momentum: float = param(0.875, "decay of the average of gradients", low=0.0, high=0.9999)
    weight_decay: float = param(7e-6, "decay of matrices and kernels", low=0.0)
    label_smoothing: float = param(0.1, "share of the target that is spread over all classes", low=0.0, high=0.9)

    card = Card(
        title="Global magnitude pruning (Global MP)",
        paper="arXiv:2209.14624",
        year=2022,
        task="weights from networks",
        inputs=("model",),
        good_at="Needs nothing but the weights, any network, any size; with data it trains what is left. "
        "Hard to beat up to 95 % sparsity. Zeros save disk, and time only through `efface bench`'s layouts.",
        left_out="FastGRNN",
    )
    small: ClassVar[dict[str, Any]] = {"steps": 4, "batch": 8, "optimizer": "adamw", "lr": 1e-3}

    def plan(self, model: nn.Module, data: Task | None, work: Work) -> Plan:
        """Return the masks, and where ``data`` is given the weights as trained under them.

        Raises :class:`UsageError` also where gradual pruning lacks a training, or is asked for with what only the
        one-shot form has.
        """
        weights = prunable(model, self.include, self.exclude)
        notes = scale_notes(weights) if self.normalize == "none" else []
        for note in notes:
            work.progress(note)
        state = None
        if self.schedule == "gradual":
            masks, state = self._prune_in_training(model, data, work)
        else:
            masks = self.masks(model, work.example)
            if data is not None and self.steps:
                state = self._train(model, data, work, masks.attach)
        effective = effective_density(model, masks)
        notes += [*empty_notes(masks), *path_notes(masks.density, effective)]
        return self.made(model, edits(model, masks, state), work, notes=notes, effective_density=effective)

    def masks(self, model: nn.Module, example: tuple[Any, ...] = ()) -> MaskSet:
        """Return the masks for the weights that ``model`` has now.

        Raises
        ------
        UsageError
            If the minima ask for more weights than stay (the largest feasible one is told), or ``fold_bn_for_scoring``
            has no ``example`` to run the model on.
        WeightsError
            If weights are NaN.
        """
        weights = prunable(model, self.include, self.exclude)
        scores: Mapping[str, Tensor] = weights
        if self.fold_bn_for_scoring:
            scores = _folded(model, weights, example)
        if self.normalize != "none":
            scale = layer_rms if self.normalize == "layer_rms" else lamp
            scores = {name: scale(weight.detach().float()) for name, weight in scores.items()}
        return self._keep(scores)

    def _keep(self, scores: Mapping[str, Tensor]) -> MaskSet:
        sizes = {name: score.numel() for name, score in scores.items()}
        total = sum(sizes.values())
        keep = total - math.floor(round(self.sparsity * total, 6))  # else 0.29 of 100 would be 28
        floors = dict.fromkeys(sizes, self.min_keep)
        if self.min_keep < 0:
            most = max(1, feasible_floor(sizes, keep))
            floors = {name: min(len(score), most) for name, score in scores.items()}
        floors = {name: min(floor, sizes[name]) for name, floor in floors.items()}
        exact = keep_global(scores, keep, min_keep=floors, key=torch.abs)
        if self.mode == "exact":
            return exact
        free = keep_global(scores, keep, key=torch.abs).per_layer()
        densities = quotas({name: kept / size for name, (kept, size) in free.items()}, sizes, floors)
        return keep_layerwise(scores, exact_counts(densities, sizes), key=torch.abs)

    def _prune_in_training(self, model: nn.Module, data: Task | None, work: Work) -> tuple[MaskSet, State]:
        """Prune a copy of ``model`` on a cubic schedule while it trains; what is pruned stays so."""
        if data is None or not self.steps:
            raise UsageError("gradual pruning is pruning in training", where="schedule", fix="Give data and steps")
        if self.mode == "quota" or self.normalize != "none" or self.fold_bn_for_scoring:
            what = "gradual pruning goes by plain magnitudes and one threshold"
            raise UsageError(what, where="schedule", fix="Leave mode, normalize and fold_bn_for_scoring as they are")
        outputs = min(map(len, prunable(model, self.include, self.exclude).values()))
        regime = Regime(
            density=1 - self.sparsity,
            init_density=1.0,
            every=max(1, round(self.every * self.steps)),
            start=round(self.begin * self.steps),
            stop=round(self.end * self.steps),
            min_keep=outputs if self.min_keep < 0 else self.min_keep,
        )
        pruning = DynamicSparsity(model, regime, include=self.include, exclude=self.exclude)
        state = self._train(model, data, work, pruning.attach)
        return pruning.masks, state

    def _train(self, model: nn.Module, data: Task, work: Work, attach: Attach) -> State:
        """Return the weights of a copy of ``model`` after a training with ``attach``."""
        train = Train(
            steps=self.steps, batch=self.batch, seed=work.seed, optimizer=self.optimizer, lr=self.lr,
            betas=(self.momentum, 0.999), weight_decay=self.weight_decay, schedule="cosine",
        )  # fmt: skip
        net, task = copy.deepcopy(model).requires_grad_(), dataclasses.replace(data, smoothing=self.label_smoothing)
        tune(net, task, train, device=work.device, attach=[attach], progress=work.progress)
        return net.state_dict()


def layer_rms(weight: Tensor) -> Tensor:
    """Return |w| over the root mean square of the layer, which makes layers of different scale comparable."""
    scale = weight.square().mean().sqrt()
    return weight.abs() / scale if scale > 0 else weight.abs()


def lamp(weight: Tensor) -> Tensor:
    """Return w^2 over the sum of those of the layer that are not smaller (Lee et al., arXiv:2010.07611, eq. 1)."""
    squares = weight.flatten().double().square()
    order = squares.argsort(stable=True)
    left = squares[order].flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares[order] / left.clamp_min(torch.finfo(torch.float64).tiny)
    return scores.view(weight.shape)


def quotas(densities: Mapping[str, float], sizes: Mapping[str, int], floors: Mapping[str, int]) -> dict[str, float]:
    """Return densities that meet ``floors`` and keep as many weights in all as ``densities`` do.

    The second step of the official scripts: sparsities are capped at what the floor of the layer allows, and all of
    them scaled by what is missing, again and again until nothing is.
    """
    caps = {name: 1 - floors[name] / sizes[name] for name in sizes}
    target = sum((1 - densities[name]) * size for name, size in sizes.items())
    sparsities = {name: min(1 - densities[name], caps[name]) for name in sizes}
    for _ in range(1000):
        actual = sum(sparsities[name] * size for name, size in sizes.items())
        if target - actual < 0.5 or not actual:
            break
        sparsities = {name: min(s * target / actual, caps[name]) for name, s in sparsities.items()}
    return {name: 1 - s for name, s in sparsities.items()}


def scale_notes(weights: Mapping[str, Tensor]) -> list[str]:
    """Say where magnitudes of different layers are hardly comparable."""
    sizes = {name: norm([w]) / w.numel() ** 0.5 for name, w in weights.items()}
    rms = {name: size for name, size in sizes.items() if size > 0}
    if not rms or max(rms.values()) <= APART * min(rms.values()):
        return []
    high, low = max(rms, key=rms.__getitem__), min(rms, key=rms.__getitem__)
    told = f"weights of {high} are {rms[high] / rms[low]:.0f} times as large as those of {low}"
    return [f"{told}, which will lose most of them: try normalize=layer_rms or lamp"]


def empty_notes(masks: MaskSet) -> list[str]:
    """Say which layers keep nothing, which only ``min_keep=0`` allows."""
    empty = [name for name, (kept, _) in masks.per_layer().items() if not kept]
    return [f"{len(empty)} of {len(masks)} layers keep no weight: {', '.join(empty[:3])}"] if empty else []


def _folded(model: nn.Module, weights: Mapping[str, Tensor], example: tuple[Any, ...]) -> dict[str, Tensor]:
    """Return the weights, those before a batch norm times its scale gamma / sqrt(variance + epsilon)."""
    if not example:
        what, fix = "finding batch norms takes running the model", "Give data, or an example of the inputs"
        raise UsageError(what, where="fold_bn_for_scoring", fix=fix)
    makers, folded, made = {}, dict(weights), []  # outputs are kept, so that no other takes the identity of one

    def remember(module: nn.Module, _: object, output: Tensor) -> None:
        made.append(output)
        makers[id(output)] = module

    def fold(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        name = names.get(makers.get(id(inputs[0])))
        if name in folded and norm.running_var is not None:
            scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
            folded[name] = weights[name] * scale.view(-1, *[1] * (weights[name].ndim - 1))

    names = {module: f"{name}.weight".lstrip(".") for name, module in model.named_modules()}
    layers = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
    norms = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
    hooks = [m.register_forward_hook(remember) for m in names if isinstance(m, layers)]
    hooks += [m.register_forward_pre_hook(fold) for m in names if isinstance(m, norms)]
    try:
        with torch.no_grad(), mode(model, training=False):
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return folded
