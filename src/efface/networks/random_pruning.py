"""Draw at random which weights a network has, before it is trained, and train what is left.

What is taken away are weights nobody looked at: a rule gives each layer its density, positions are drawn within the
layer, and the mask is held fixed while the network trains from its initial weights. The larger the network, the less it
loses by that, if the densities are good; so it is the cheapest way to a sparse network, and the control for every
other. A mask is a function of the seed, the rule and the density alone.

Liu et al., The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse Training
(arXiv:2202.02643). Counts are exact where the official code draws each weight for itself; ratios by SNIP and GraSP are
those of the network's own weights, where the official code draws new ones first; momenta are masked too.

Left out: corruptions of ImageNet-C among what robustness is measured by, and a command for it; new first weights for
the ratios of SNIP.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.errors import UsageError
from efface.parts.counting import effective_density, path_notes
from efface.parts.metrics.calibration import robustness
from efface.parts.sparsity.densities import densities, exact_counts
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.prunable import by_layer, prunable
from efface.parts.sparsity.scores import grasp, lamp, magnitude, random_scores, snip, synflow
from efface.parts.sparsity.topk import keep_global, keep_layerwise
from efface.training.edits import edits
from efface.training.recipe import Train
from efface.training.tuning import tune

if TYPE_CHECKING:
    from efface.core.plan import Plan
    from efface.parts.data.tasks import Task

SCORED = ("magnitude", "lamp", "synflow", "snip", "grasp")
"""Rules that rank all weights, and count how many of the highest each layer holds; the others go by shapes."""
PER_CLASS = 25
"""Pictures of each class that GraSP scores weights on."""


@dataclass(frozen=True, kw_only=True)
class RandomPruning(Editor):
    """Hyper-parameters of random pruning."""

    sparsity: float = param(0.8, "share of the weights that goes", low=0.0, high=0.999999)
    rule: str = param(
        "erk",
        "how the density of a layer follows from its shape, or from a score of its weights",
        choices=(
            "uniform", "uniform+", "er", "erk", "erk+", "igq", "balanced", "magnitude", "lamp", "synflow", "snip",
            "grasp",
        ),
    )  # fmt: skip
    given: tuple[str, ...] = param((), "densities of some layers, GLOB=SHARE; for rules by shape, which fit the others")
    last: float = param(0.0, "density of the last linear layer, for rules by shape; 0 is theirs", low=0.0, high=1.0)
    avoid_dead_rows: bool = param(False, "leave each output of a layer one weight at least")
    scaled: bool = param(False, "divide the initial weights by the root of their layer's density")
    include: tuple[str, ...] = param(("*",), "globs of the weights that may go")
    exclude: tuple[str, ...] = param((), "globs of the weights that stay")
    steps: int = param(62_500, "steps of training where data is given; 0 only prunes", low=0)
    batch: int = param(128, "pictures a step", low=1)
    optimizer: str = param("sgd", "rule that moves the weights", choices=("sgd", "adamw"))
    lr: float = param(0.1, "highest learning rate, a tenth of it after half and three quarters", low=0.0)
    weight_decay: float = param(5e-4, "decay of matrices and kernels", low=0.0)
    evaluate: bool = param(False, "train the dense network too, and measure calibration and robustness of both")

    card = Card(
        title="The Unreasonable Effectiveness of Random Pruning",
        paper="arXiv:2202.02643",
        year=2022,
        task="weights from networks",
        inputs=("model", "task"),
        good_at="Sparse training from scratch for the price of nothing, best in wide networks; and the control that "
        "tells what any cleverer choice of weights is worth. It ruins networks that are trained already.",
        left_out="corruptions",
    )
    small: ClassVar[dict[str, Any]] = {"steps": 4, "batch": 8, "optimizer": "adamw", "lr": 1e-3}

    def plan(self, model: nn.Module, data: Task | None, work: Work) -> Plan:
        """Return the mask, and where ``data`` is given the weights trained under it; ``model`` is the untrained one."""
        masks = self.masks(model, data, work)
        start = self._scaled(model, masks) if self.scaled else model
        effective = effective_density(model, masks)
        facts: dict[str, Any] = {"effective_density": effective, "notes": path_notes(masks.density, effective)}
        state = start.state_dict() if self.scaled else None
        if data is not None and self.steps:
            sparse = self._train(start, data, work, masks)
            state = sparse.state_dict()
            if self.evaluate:
                nets = {"sparse": sparse, "dense": self._train(model, data, work, None)}
                facts["robustness"] = {name: robustness(net, data, seed=work.seed) for name, net in nets.items()}
        return self.made(model, edits(model, masks, state), work, **facts)

    def masks(self, model: nn.Module, data: Task | None, work: Work) -> MaskSet:
        """Return the random mask.

        Raises
        ------
        UsageError
            If the rule scores weights on data and there is none, ``given`` is not as it should be, or
            ``avoid_dead_rows`` needs more weights than stay.
        """
        weights = prunable(model, self.include, self.exclude)
        scores = random_scores(weights, work.seed)
        counts = self._counts(model, weights, data, work)
        if self.avoid_dead_rows:
            scores = {name: _first_of_each_row(score, counts[name], name) for name, score in scores.items()}
        return keep_layerwise(scores, counts)

    def _counts(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], data: Task | None, work: Work
    ) -> dict[str, int]:
        """Return how many weights of each layer stay, by the rule."""
        sizes = {name: weight.numel() for name, weight in weights.items()}
        if self.rule in SCORED:
            if self.given:
                raise UsageError(f"the rule {self.rule} finds all densities itself", where="given", fix="Leave it out")
            keep = round((1 - self.sparsity) * sum(sizes.values()))
            ranked = keep_global(self._scores(model, weights, data, work), keep, min_keep=1)
            return {name: kept for name, (kept, _) in ranked.per_layer().items()}
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        linear = [name for name, shape in shapes.items() if len(shape) == 2]
        fixed = dict.fromkeys(linear[-1:], self.last) if self.last else {}
        fixed |= by_layer(model, self.given, self.exclude, where="given", what="not GLOB=SHARE")
        return exact_counts(densities(self.rule, shapes, 1 - self.sparsity, fixed=fixed), sizes)

    def _scores(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], data: Task | None, work: Work
    ) -> Mapping[str, Tensor]:
        """Return the score of each weight by which the rule counts what layers keep."""
        if self.rule == "magnitude":
            return magnitude(weights)
        if self.rule == "lamp":
            return lamp(weights)
        flow = partial(synflow, model, weights, density=1 - self.sparsity)
        if self.rule == "synflow" and work.example:
            return flow(work.example)
        if data is None:
            fix = "Give data, or the shape of an input" if self.rule == "synflow" else "Give data"
            raise UsageError(f"the rule {self.rule} runs the network", where="rule", fix=fix)
        count = {"synflow": 1, "snip": self.batch, "grasp": PER_CLASS * len(data.classes)}[self.rule]
        batch = data.train.batch(work.seed, 0, min(count, len(data.train)))
        device = next(model.parameters()).device
        batch = {key: value.to(device) for key, value in batch.items()}
        if self.rule == "synflow":
            return flow((batch["picture"],))
        return (snip if self.rule == "snip" else grasp)(model, weights, data.loss, [batch])

    def _scaled(self, model: nn.Module, masks: MaskSet) -> nn.Module:
        """Return a copy of ``model`` whose weights keep the variance of what they add up to."""
        net = copy.deepcopy(model)
        with torch.no_grad():
            for name, (kept, total) in masks.per_layer().items():
                net.get_parameter(name).mul_((total / kept) ** 0.5)
        masks.apply_(net)
        return net

    def _train(self, model: nn.Module, data: Task, work: Work, masks: MaskSet | None) -> nn.Module:
        """Return a copy of ``model`` trained from the weights it has, under ``masks``."""
        train = Train(
            steps=self.steps, batch=self.batch, seed=work.seed, optimizer=self.optimizer, lr=self.lr,
            nesterov=self.optimizer == "sgd", weight_decay=self.weight_decay, schedule="steps",
        )  # fmt: skip
        net, attach = copy.deepcopy(model).requires_grad_(), [] if masks is None else [masks.attach]
        tune(net, data, train, device=work.device, attach=attach, progress=work.progress)
        return net


def _first_of_each_row(score: Tensor, count: int, name: str) -> Tensor:
    """Return ``score`` with the largest of each output so high that it stays."""
    rows = score.flatten(1).clone()
    if count < len(rows):
        fix = "Lower the sparsity, or leave avoid_dead_rows"
        raise UsageError(f"{count} weights are kept, fewer than its {len(rows)} outputs", where=name, fix=fix)
    rows[torch.arange(len(rows)), rows.argmax(1)] += 1  # the scores are below 1
    return rows.view(score.shape)
