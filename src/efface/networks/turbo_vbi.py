"""Compress a network by Bayesian inference under a prior whose surviving weights come in clusters.

What is taken away are weights that a variational posterior puts near zero. Each weight has a precision rho (its prior
is N(0, 1/rho)), each precision a support s: rho is moderate where s = 1 and large where s = 0; and the supports of a
layer form a Markov field along the rows and columns of its grid (section III). *Turbo-VBI* goes back and forth between
two modules. Module A (section IV-B) infers q(w) = N(mu, sigma^2) by stochastic gradients with local reparametrisation,
then rho and s in closed form; Module B (IV-C) tells each support what its neighbours make of it, by message passing,
and only that (*extrinsic*): it becomes the prior of the next round. So clusters grow, and whole neurons vanish.

Clusters make indices cheap and blocks full. Where they lie follows the order of channels, which in hidden layers is
arbitrary: see :mod:`efface.parts.sparsity.grid`. Neurons left without inputs or outputs are removed for good.

The authors' form of the precision's update is for complex weights; the exact one for real weights is the default. The
paper takes q(rho) and q(s) apart; then every weight keeps the support it begins with, as b <rho> follows <s>. So here
the two are inferred together unless ``coupled`` is off: the same model, a tighter bound. The authors' code multiplies
posteriors with priors before Module B, which counts them twice. Rates b are in units of a layer's mean square weight.

Left out: stopping before the last round when the prior has settled; the change of each round is told.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.core.removal import plan_removal
from efface.errors import InputError, UsageError
from efface.io.weights import save_weights
from efface.parts.graph import channel_graph
from efface.parts.graph.idle import idle
from efface.parts.nn.batchnorm import reestimate
from efface.parts.nn.bayesian import Bayes, Posterior, bayesian, plain, sigma
from efface.parts.sparsity.budget import best
from efface.parts.sparsity.gammas import Gamma, apart, together
from efface.parts.sparsity.grid import (
    LIMIT,
    ORDER,
    Chain,
    GridMarkov,
    Independent,
    SupportPrior,
    clusters,
    from_grid,
    to_grid,
)
from efface.parts.sparsity.masks import Attached, MaskSet, unwrapped
from efface.parts.sparsity.prunable import prunable
from efface.seeds import derive
from efface.training.course import needed
from efface.training.edits import edits
from efface.training.recipe import Train
from efface.training.tuning import tune

if TYPE_CHECKING:
    from efface.core.plan import Plan
    from efface.parts.data.tasks import Task

REPEATS = 3
"""How often precisions and supports are inferred in turn, in each round."""
BATCHES = 20
"""Batches from which running statistics are estimated after pruning."""


@dataclass(frozen=True, kw_only=True)
class TurboVBI(Editor):
    """Hyper-parameters of variational inference with a clustered support."""

    prior: str = param(
        "grid", "supports in a Markov field, or each by itself (plain VBI)", choices=("grid", "independent")
    )
    p01: tuple[float, ...] = param((0.29, 0.29), "chance to live after a dead weight, down columns and along rows")
    p11: tuple[float, ...] = param((0.49, 0.49), "chance to live after a live weight, down columns and along rows")
    density: float = param(0.3, "chance to live where supports are independent", low=1e-3, high=0.999)
    em: bool = param(False, "fit the chances to each layer, once a round")
    active: tuple[float, ...] = param((1.0, 1.0), "a and b of the precisions of live weights", low=1e-6, high=1e6)
    inactive: tuple[float, ...] = param((1.0, 0.01), "a and b of those of dead weights", low=1e-6, high=1e6)
    scale: float = param(0.0, "unit of weights for b; 0 is each layer's root mean square, the paper has 1", low=0.0)
    coupled: bool = param(True, "infer precisions and supports together; the paper has them apart")
    complex_form: bool = param(False, "update precisions as for complex weights, as the authors' code does")
    sigma: float = param(0.02, "standard deviation of the weights at first", low=1e-6, high=10.0)
    kl_weight: float = param(1.0, "weight of the divergence from the prior", low=0.0)
    anneal: float = param(0.2, "share of the steps over which that weight rises from 0", low=0.0, high=1.0)
    prune: str = param(
        "threshold", "keep weights by |mu|, |mu| / sigma or belief in their support",
        choices=("threshold", "snr", "support"),
    )  # fmt: skip
    bound: float = param(0.01, "what a weight must reach to be kept", low=0.0)
    sparsity: float = param(0.0, "share of the weights that goes, by rank; 0 leaves it to the bound", high=0.9999)
    structure: bool = param(True, "remove neurons that are left without inputs or outputs")
    finetune: int = param(1000, "steps of training after pruning", low=0)
    include: tuple[str, ...] = param(("*",), "globs of the weights that may go")
    exclude: tuple[str, ...] = param((), "globs of the weights that stay")
    rounds: int = param(20, "rounds of both modules", low=1)
    steps: int = param(150, "optimiser steps in each round", low=1)
    batch: int = param(128, "pictures a step", low=1)
    lr: float = param(1e-3, "learning rate (Adam)", low=0.0)
    folder: str = param("", "folder to write the posterior to: sigma and belief of each weight")

    card = Card(
        title="Structured Bayesian Compression for Deep Neural Networks Based on The Turbo-VBI Approach",
        paper="arXiv:2302.10483",
        year=2023,
        task="weights from networks",
        inputs=("model", "task"),
        good_at="Masks whose live weights lie together: cheap indices, whole neurons gone, and a variance for each "
        "weight that stays.",
    )
    needs = "task"
    small: ClassVar[dict[str, Any]] = {"sparsity": 0.5, "rounds": 2, "steps": 3, "finetune": 2, "batch": 8}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("p01", "p11", "active", "inactive"):
            if len(getattr(self, name)) != 2:
                raise UsageError(f"{getattr(self, name)} are not two numbers", where=f"{self.name}.{name}")

    def plan(self, model: nn.Module, data: Task | None, work: Work) -> Plan:
        """Return the mean weights that are kept, trained on, and without the neurons that are left idle.

        Facts tell the clusters of each layer, the rounds, and which neurons went. A sparsity is exact, but for what
        goes with idle neurons.

        Raises
        ------
        UsageError
            If there is no task, or a layer has no Gaussian form.
        LayerCollapse
            If nothing of a layer stays.
        """
        task = needed(data)
        found, turbo = self.infer(model, task, work)
        if self.folder:
            save_weights(self.folder, found.tensors(), {"method": self.name, "params": self.params()})
        net, masks = found.net, self.masks(found)
        masks.check()
        graph, stay, notes = None, dict[str, Any](), self.notes()
        if self.structure:
            picture = task.train.take(np.arange(2))["picture"].to(next(net.parameters()).device)
            try:
                graph = channel_graph(net, (picture,))
                stay, masks = idle(graph, masks)
            except InputError as error:
                notes.append(f"idle neurons stay, since the network cannot be exported: {error.what}")
        masks.apply_(net)
        reestimate(net, (task.train.batch(work.seed, step, self.batch)["picture"] for step in range(BATCHES)))
        if self.finetune:
            train = Train(
                steps=self.finetune, batch=self.batch, seed=derive(work.seed, "finetune"), lr=self.lr, schedule="cosine"
            )
            tune(net, task, train, device=work.device, attach=[masks.attach], progress=work.progress)
        drops = plan_removal(graph, stay) if graph is not None and stay else []
        facts: dict[str, Any] = {
            "clusters": {name: clusters(to_grid(mask.cpu())).as_dict() for name, mask in masks.items()},
            "removed": {drop.removal.group: int((~stay[drop.removal.group]).sum()) for drop in drops},
            "density": masks.density,
            "rounds": turbo.history,
            "notes": notes,
        }
        ops = [*edits(model, masks, net.state_dict()), *drops]
        return self.made(model, ops, work, **facts)

    def infer(self, model: nn.Module, task: Task, work: Work) -> tuple[Posterior, Turbo]:
        """Return the posterior of the weights of a copy of ``model``, having trained it, and both modules."""
        net = copy.deepcopy(model).requires_grad_()
        layers = bayesian(net, prunable(net, self.include, self.exclude), self.sigma)
        turbo = Turbo(self, layers, len(task.train))
        train = Train(steps=self.rounds * self.steps, batch=self.batch, seed=work.seed, lr=self.lr)
        tune(net, task, train, device=work.device, attach=[turbo.attach], progress=work.progress)
        spreads = {name: sigma(layer).detach() for name, layer in layers.items()}
        plain(layers.values())
        supports = {name: belief.support.sigmoid() for name, belief in turbo.beliefs.items()}
        return Posterior(net, spreads, supports), turbo

    def masks(self, found: Posterior) -> MaskSet:
        """Return which weights stay."""
        means = {name: found.net.get_parameter(name).detach().abs() for name in found.sigma}
        match self.prune:
            case "snr":
                scores = {name: mean / found.sigma[name] for name, mean in means.items()}
            case "support":
                scores = dict(found.support)
            case _:
                scores = means
        every = MaskSet.ones_like(found.net, self.include, self.exclude)
        if self.sparsity:
            return best(scores, every, round((1 - self.sparsity) * every.total))
        return MaskSet({name: score >= self.bound for name, score in scores.items()}, every.aliases)

    def support(self) -> SupportPrior:
        """Return module B as it begins."""
        if self.prior == "independent":
            return Independent(self.density)
        down, across = (Chain(p01, p11) for p01, p11 in zip(self.p01, self.p11, strict=True))
        return GridMarkov(down, across)

    def notes(self) -> list[str]:
        """Return what users should know of the settings."""
        field = self.support()
        if not isinstance(field, GridMarkov):
            return []
        couplings = field.down.coupling, field.across.coupling
        notes = ["p11 < p01: live weights avoid each other, so there will be no clusters"] if min(couplings) < 0 else []
        if min(couplings) > ORDER:
            notes.append("p11 is so far above p01 that whole layers may live or die as one; bring them closer")
        return notes


@dataclass
class Belief:
    """What is believed of the weights of a layer, each a tensor of its shape."""

    prior: Tensor
    """Log-odds of the support, as module B gave them."""
    support: Tensor
    """Log-odds of the support, with what the weight itself says."""
    precision: Tensor
    """Mean of rho."""


class Turbo:
    """Both modules, at work in a training: gradients of the divergence before each step, beliefs after each round."""

    def __init__(self, method: TurboVBI, layers: dict[str, Bayes], examples: int) -> None:
        self.method, self.layers, self.examples = method, layers, examples
        self.step, self.history = 0, list[dict[str, float]]()
        self.units = {name: float(layer.weight.detach().square().mean()) for name, layer in layers.items()}
        self.priors = dict.fromkeys(layers, method.support())
        self.beliefs: dict[str, Belief] = {}

    def attach(self, net: nn.Module, optimizer: Any) -> Attached:
        """Begin: infer beliefs from the weights as they are, and follow the optimiser's steps."""
        optimizer = unwrapped(optimizer)
        for name, layer in self.layers.items():
            prior = self._neighbours(name, torch.zeros_like(layer.weight))
            self.beliefs[name] = Belief(prior, prior, torch.ones_like(prior))
            self._module_a(name)
        hooks = optimizer.register_step_pre_hook(self._pull), optimizer.register_step_post_hook(self._round)
        return Attached(hooks)

    @torch.no_grad()
    def _pull(self, *_: object) -> None:
        """Add the gradient of KL(q(w) || N(0, 1 / <rho>)), per example, as the loss is."""
        method, total = self.method, self.method.rounds * self.method.steps
        rise = min(1.0, self.step / (method.anneal * total)) if method.anneal else 1.0
        weight = method.kl_weight * rise / self.examples
        for name, layer in self.layers.items():
            rho, spread = self.beliefs[name].precision, sigma(layer)
            assert layer.weight.grad is not None
            assert layer.spread.grad is not None
            layer.weight.grad.add_(rho * layer.weight, alpha=weight)
            layer.spread.grad.add_((spread * rho - 1 / spread) * layer.spread.sigmoid(), alpha=weight)

    @torch.no_grad()
    def _round(self, *_: object) -> None:
        self.step += 1
        if self.step % self.method.steps:
            return
        change = 0.0
        for name, belief in self.beliefs.items():
            self._module_a(name)
            prior = self._neighbours(name, belief.support - belief.prior)
            change = max(change, float((prior.sigmoid() - belief.prior.sigmoid()).abs().max()))
            belief.prior = prior
            self._module_a(name)
        total = sum(belief.support.numel() for belief in self.beliefs.values())
        live = sum(float(belief.support.sigmoid().sum()) for belief in self.beliefs.values())
        self.history.append({"step": self.step, "live": live / total, "change": change})

    def _module_a(self, name: str) -> None:
        """Infer precisions and supports of a layer from the second moments of its weights."""
        layer, belief, method = self.layers[name], self.beliefs[name], self.method
        moment = layer.weight.detach().square() + sigma(layer).detach().square()
        unit = method.scale**2 or self.units[name] or 1.0
        active, inactive = (Gamma(a, b * unit) for a, b in (method.active, method.inactive))
        half = 1.0 if method.complex_form else 0.5
        for _ in range(1 if method.coupled else REPEATS):
            infer = together if method.coupled else apart
            belief.support, belief.precision = infer(moment, belief.prior, belief.support, active, inactive, half)

    def _neighbours(self, name: str, evidence: Tensor) -> Tensor:
        """Return module B's prior for a layer, given what each of its weights says (log-odds)."""
        grid = to_grid(evidence)
        if self.method.em and self.history:
            self.priors[name] = self.priors[name].refit(grid)
        return from_grid(self.priors[name].extrinsic(grid), evidence.shape).clamp(-LIMIT, LIMIT)
