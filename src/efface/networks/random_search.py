"""Search among random sub-networks for the one that starts with the least loss, which is no better than any other.

What is taken away are hidden nodes of an untrained network: neurons of linear layers, channels of convolutions. Of each
hidden layer the same share goes, at random; among ``budget`` such choices the one whose sub-network has the least loss
on a fixed batch, with the weights it was given and no training, is kept. It lies deeper in the loss landscape from the
start. The finding is negative: trained alike it ends where a random choice ends, so that random search is a neutral
baseline, and ``compare`` holds any other way of choosing against it.

Rezsa Farahani, Random Search as a Baseline for Sparse Neural Network Architecture Search (arXiv:2403.08265). The paper
leaves sizes, budget and batch open; those here are the house's own.

Left out: networks that branch, whose nodes depend on one another; scores other than the loss at the start, and
successive halving; the size and FLOPs of each candidate beside its loss.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.core.ops import Replace
from efface.core.plan import Plan
from efface.parts.metrics.paired import Verdict, verdict
from efface.parts.sparsity.nodes import Hidden, hidden_layers, score_configurations, without_nodes
from efface.seeds import numpy_generator
from efface.training.course import Course, Outcome, needed
from efface.training.recipe import Train

if TYPE_CHECKING:
    from efface.parts.data.tasks import Task


@dataclass(frozen=True)
class Searched:
    """All configurations of a search: which nodes of each hidden layer stay, and the loss at the start."""

    hidden: tuple[Hidden, ...]
    alive: dict[str, Tensor]
    """Name of a hidden layer -> bool (count, nodes)."""
    losses: Tensor
    """(count,): on the batch that decides."""
    others: Tensor
    """(count,): on a second batch of equal size, which decides nothing."""

    @property
    def best(self) -> int:
        """Number of the configuration with the least loss."""
        return int(self.losses.argmin())

    @property
    def agreement(self) -> float:
        """Rank correlation of the losses on both batches: near 0, the least loss is chance of the batch."""
        ranks = np.stack([values.argsort().argsort().numpy() for values in (self.losses, self.others)])
        return float(np.corrcoef(ranks)[0, 1]) if ranks.shape[1] > 1 else 1.0

    def choice(self, number: int) -> dict[str, Tensor]:
        """Return configuration ``number``: by hidden layer, which nodes stay."""
        return {name: rows[number] for name, rows in self.alive.items()}


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Editor):
    """Hyper-parameters of the search for nodes at initialisation."""

    node_sparsity: float = param(0.8, "share of the nodes of each hidden layer that goes", low=0.0, high=0.999)
    budget: int = param(200, "configurations to try; all there are, where that is fewer", low=1)
    score_batch: int = param(1024, "training pictures on which the loss at the start is measured", low=1)
    chunk: int = param(64, "configurations that run at once", low=1)
    rescale: bool = param(False, "scale weights up by the inputs lost, so that signals keep their size")
    steps: int = param(0, "steps that train the network found; 0 leaves it as it starts", low=0)
    batch: int = param(64, "pictures per step", low=1)
    lr: float = param(1e-3, "learning rate of Adam", low=0.0)

    card = Card(
        title="Random Search as a Baseline for Sparse Neural Network Architecture Search",
        paper="arXiv:2403.08265",
        year=2024,
        task="nodes from networks",
        inputs=("model", "task"),
        good_at="A baseline that other ways of choosing nodes must beat. The result is small and dense, hence fast.",
        left_out="networks that branch",
    )
    needs = "task"
    goes = "node_sparsity"
    small: ClassVar[dict[str, Any]] = {"node_sparsity": 0.5, "budget": 6, "score_batch": 16, "steps": 3, "batch": 8}

    def plan(self, model: nn.Module, data: Task | None, work: Work) -> Plan:
        """Return the replacements by smaller layers, with the weights they start from or those trained.

        Raises :class:`UsageError` if there is no task, or the network is no chain of layers.
        """
        task = needed(data)
        found = self.search(model, task, work)
        replacements = self.replacements(model, found, found.choice(found.best))
        facts: dict[str, Any] = {
            "budget": len(found.losses),
            "loss": float(found.losses[found.best]),
            "losses": found.losses.tolist(),
            "agreement": found.agreement,
        }
        if self.steps:
            train = Train(steps=self.steps, batch=self.batch, seed=work.seed, lr=self.lr)
            child = Plan.of(model, replacements).apply(copy.deepcopy(model))
            trained = Course(child, task, train, work.device, progress=work.progress).run(child.state_dict()).weights
            replacements = [_with(op, trained) for op in replacements]
        return self.made(model, replacements, work, **facts)

    def search(self, model: nn.Module, task: Task, work: Work) -> Searched:
        """Draw configurations of ``model``, all different, and measure the loss of each at the start."""
        hidden = tuple(hidden_layers(model))
        keep = {layer.name: max(1, round((1 - self.node_sparsity) * layer.nodes)) for layer in hidden}
        alive = configurations(hidden, keep, self.budget, work.seed)
        losses = [self._losses(model, hidden, alive, task, work, part) for part in range(2)]
        return Searched(hidden, alive, *losses)

    def replacements(self, model: nn.Module, found: Searched, alive: Mapping[str, Tensor]) -> list[Replace]:
        """Return the edits that leave of ``model`` the nodes that are ``alive``, in smaller layers."""
        small = without_nodes(model, found.hidden, alive, rescale=self.rescale)
        return [Replace.by(name, layer, args) for name, (layer, args) in small.items()]

    def _losses(
        self, model: nn.Module, hidden: Sequence[Hidden], alive: Mapping[str, Tensor], task: Task, work: Work, part: int
    ) -> Tensor:
        count = min(self.score_batch, max(1, len(task.train) // 2))
        batch = task.train.take(task.train.order(work.seed, part * count, count))
        net = copy.deepcopy(model).to(work.device)
        made = score_configurations(
            net, hidden, alive, batch["picture"].to(work.device), rescale=self.rescale, chunk=self.chunk
        )
        labels = batch["label"].to(work.device)
        return torch.stack([F.cross_entropy(logits.float(), labels) for logits in made]).cpu()


def configurations(hidden: Sequence[Hidden], keep: Mapping[str, int], budget: int, seed: int) -> dict[str, Tensor]:
    """Return at most ``budget`` different choices of ``keep`` nodes in each layer, as bool (count, nodes).

    Where there are no more choices than that, all of them are returned, in order.
    """
    if math.prod(math.comb(layer.nodes, keep[layer.name]) for layer in hidden) <= budget:
        each = [list(itertools.combinations(range(layer.nodes), keep[layer.name])) for layer in hidden]
        chosen = list(itertools.product(*each))
    else:
        generator, seen = numpy_generator(seed, "configurations"), dict[tuple, None]()
        while len(seen) < budget:
            draw = (generator.permutation(layer.nodes)[: keep[layer.name]] for layer in hidden)
            seen[tuple(tuple(sorted(part.tolist())) for part in draw)] = None
        chosen = list(seen)
    alive = {layer.name: torch.zeros(len(chosen), layer.nodes, dtype=torch.bool) for layer in hidden}
    for number, parts in enumerate(chosen):
        for layer, places in zip(hidden, parts, strict=True):
            alive[layer.name][number, list(places)] = True
    return alive


@dataclass(frozen=True)
class Comparison:
    """Trainings of several sub-networks of one network, a list with one outcome per repeat for each."""

    outcomes: dict[str, list[Outcome]]

    def accuracies(self, name: str) -> list[float]:
        """Return the test accuracies of an arm, in percent."""
        return [100 * outcome.test.accuracy for outcome in self.outcomes[name]]

    def verdict(self, name: str, other: str) -> Verdict:
        """Say whether arm ``name`` ends better than ``other``, pair by pair."""
        return verdict(self.accuracies(name), self.accuracies(other), unit="points")


def compare(
    networks: Mapping[str, nn.Module],
    task: Task,
    train: Train,
    *,
    repeats: int = 5,
    device: str = "cpu",
    every: int = 0,
) -> Comparison:
    """Train each of ``networks`` from the weights it has, with equal batches in each of ``repeats`` orders of the data.

    Any way of choosing a sub-network can so be held against a random one: ``compare(...).verdict("mine", "random")``.
    """
    outcomes: dict[str, list[Outcome]] = {name: [] for name in networks}
    for repeat in range(repeats):
        for name, net in networks.items():
            course = Course(net, task, train, device, every)
            outcomes[name].append(course.run(net.state_dict(), seed=train.seed + repeat).outcome)
    return Comparison(outcomes)


def _with(op: Replace, weights: Mapping[str, Tensor]) -> Replace:
    """Return ``op`` with the weights that its layer has in a trained network."""
    return Replace(op.target, op.cls, op.args, {name: weights[f"{op.target}.{name}"] for name in op.state})
