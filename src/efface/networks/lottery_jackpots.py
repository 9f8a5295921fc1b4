"""Find a lottery jackpot: a mask with which a trained network does well, without a change to any weight.

What is taken away are weights of a trained network, and which ones is all that is learned. Every weight has a score;
the masked network runs forward, and the gradient at the masked weight, times the weight, moves the score (straight
through, eq. 5). After each step the layer keeps the weights with the largest scores. The search starts from the
magnitude mask, whose weights score 1 and all others 0.99, since the mask that is found is mostly that one: it is over
in a fraction of the epochs that random scores take. Only a share of the swaps is made, (1 - t/T)^4 at time t of T: the
gain of each is estimated as if it were the only one (short restriction, section 3.3). In the released code that share
is always 1, and on CIFAR the search runs on random weights; here both are as the paper has them.

Layers keep as many weights as a global ranking of magnitudes gives them; the last layer stays whole, and the others
make up for it. Batch statistics follow the mask. ``tune_steps`` trains the kept weights afterwards.

Zhang et al., Lottery Jackpots Exist in Pre-trained Models (arXiv:2104.08700).

Left out: a search that is resumed after a stop, or begins with a mask that is given; a file for the masks of many
tasks, since each of their plans is one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.errors import UsageError
from efface.parts.sparsity.densities import exact_counts
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.prunable import prunable
from efface.parts.sparsity.scores import random_scores
from efface.parts.sparsity.search import MaskSearch
from efface.parts.sparsity.topk import keep_global, keep_layerwise
from efface.training.course import needed
from efface.training.edits import edits
from efface.training.recipe import Train
from efface.training.tuning import tune

if TYPE_CHECKING:
    from efface.core.plan import Plan
    from efface.parts.data.tasks import Task


@dataclass(frozen=True, kw_only=True)
class LotteryJackpots(Editor):
    """Hyper-parameters of the search for a mask over frozen weights."""

    sparsity: float = param(0.9, "share of the weights to take away", low=0.0, high=0.999999)
    budgets: str = param("global", "how many weights each layer keeps", choices=("global", "uniform"))
    start: str = param("magnitude", "mask that the search starts from", choices=("magnitude", "random"))
    spare_last: bool = param(True, "keep the last layer whole; the others make up for it")
    restriction: float = param(4.0, "power of the short restriction; 0 makes every swap", low=0.0, high=16.0)
    include: tuple[str, ...] = param(("*",), "globs of the weights that may go")
    exclude: tuple[str, ...] = param((), "globs of the weights that stay")
    steps: int = param(5280, "steps of the search: 30 epochs of CIFAR-10", low=1)
    batch: int = param(256, "pictures per step", low=2)
    lr: float = param(0.1, "highest learning rate of the scores, on a cosine to 0", low=0.0)
    momentum: float = param(0.9, "decay of the average of gradients", low=0.0, high=0.9999)
    weight_decay: float = param(5e-4, "decay of the scores", low=0.0)
    tune_steps: int = param(0, "steps that train the kept weights afterwards", low=0)
    tune_lr: float = param(0.01, "highest learning rate of those", low=0.0)

    card = Card(
        title="Lottery Jackpots Exist in Pre-trained Models",
        paper="arXiv:2104.08700",
        year=2023,
        task="weights from networks",
        inputs=("model", "task"),
        good_at="Leaves every kept weight of a trained network bit-equal, so many masks share one checkpoint.",
    )
    needs = "task"
    small: ClassVar[dict[str, Any]] = {"sparsity": 0.4, "steps": 4, "batch": 8}

    def plan(self, model: nn.Module, data: Task | None, work: Work) -> Plan:
        """Return the masks found and the batch statistics under them, with ``tune_steps`` also trained weights.

        Raises :class:`UsageError` if there is no task, or the last layer alone is more than what is to stay.
        """
        task, net = needed(data), copy.deepcopy(model)
        first = self.first(model, work)
        masks = self.search(net, task, first, work)
        masks.apply_(net)
        if self.tune_steps:
            train = Train(
                steps=self.tune_steps, batch=self.batch, seed=work.seed, optimizer="sgd", lr=self.tune_lr,
                betas=(self.momentum, 0.999), schedule="cosine",
            )  # fmt: skip
            tune(net.requires_grad_(), task, train, device=work.device, attach=[masks.attach], progress=work.progress)
        ops = edits(model, masks, net.state_dict())
        return self.made(model, ops, work, overlap=masks.overlap(first))

    def first(self, model: nn.Module, work: Work) -> MaskSet:
        """Return the mask to start from, which also says how many weights each layer keeps."""
        weights = prunable(model, self.include, self.exclude)
        sizes = {name: weight.numel() for name, weight in weights.items()}
        keep = sum(sizes.values()) - round(self.sparsity * sum(sizes.values()))
        counts = self._counts(weights, keep)
        if self.start == "random":
            return keep_layerwise(random_scores(weights, work.seed), counts)
        return keep_layerwise(weights, counts, key=torch.abs)

    def _counts(self, weights: dict[str, nn.Parameter], keep: int) -> dict[str, int]:
        last = list(weights)[-1]
        spared = {last: weights[last].numel()} if self.spare_last else {}
        searched = {name: weight for name, weight in weights.items() if name not in spared}
        left = keep - sum(spared.values())
        if left < max(1, len(searched)):
            what, fix = f"{keep} weights are to stay, too few for {len(weights)} layers", "Lower the sparsity"
            if spared:
                what += f", the last of which keeps its {weights[last].numel()}"
                fix += ", or set spare_last=false"
            raise UsageError(what, where=self.name, fix=fix)
        if self.budgets == "global":
            ranked = keep_global(searched, left, min_keep=1, key=torch.abs)
            return {name: kept for name, (kept, _) in ranked.per_layer().items()} | spared
        sizes = {name: weight.numel() for name, weight in searched.items()}
        return exact_counts(dict.fromkeys(sizes, left / sum(sizes.values())), sizes) | spared

    def search(self, net: nn.Module, task: Task, first: MaskSet, work: Work) -> MaskSet:
        """Return the masks found from ``first`` on; ``net`` keeps its weights, and its batch statistics follow."""
        searched = MaskSearch(net, MaskSet({name: mask.clone() for name, mask in first.items() if not mask.all()}))
        train = Train(
            steps=self.steps, batch=self.batch, seed=work.seed, optimizer="sgd", lr=self.lr,
            betas=(self.momentum, 0.999), weight_decay=self.weight_decay, schedule="cosine",
        )  # fmt: skip
        attach = partial(searched.attach, restriction=self._restriction)
        tune(searched, task, train, device=work.device, attach=[attach], progress=work.progress)
        return MaskSet({name: searched.masks.get(name, mask).cpu() for name, mask in first.items()}, first.aliases)

    @property
    def _restriction(self) -> Callable[[int], float] | None:
        """Share of the swaps that is made after so many steps; None where all are."""
        return (lambda step: (1 - step / self.steps) ** self.restriction) if self.restriction else None
