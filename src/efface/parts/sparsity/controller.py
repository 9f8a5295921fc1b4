"""Change the connections of a network while it trains, in anybody's training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import PlanError, UsageError
from efface.parts.counting import Flops
from efface.parts.sparsity.densities import LAST, densities, exact_counts
from efface.parts.sparsity.growth import drop_smallest, exchangeable, grow_largest, momentum, protected
from efface.parts.sparsity.masks import BUFFERS, Attached, MaskSet, unwrapped
from efface.parts.sparsity.regimes import Growth, Regime
from efface.parts.sparsity.scores import random_scores
from efface.parts.sparsity.topk import feasible_floor, keep_global, keep_layerwise
from efface.seeds import torch_generator


@dataclass(frozen=True)
class Change:
    """What an update did, after ``step`` optimiser steps."""

    step: int
    density: float
    dropped: int
    """Weights that went, those included that came back at once, as zeros."""
    grown: int
    churn: float
    """Share of the live weights that did not live before."""
    layers: dict[str, float]
    """Density of each layer."""


class DynamicSparsity:
    """The masks of a network in training, and how they change by a :class:`Regime`.

    ``attach`` is all that a loop needs; the updates then come with the optimiser's steps, after any clipping and
    accumulation, by the gradients that the step used. Random parts depend on (seed, step, layer), so equal weights
    and gradients give equal masks in every process. With :meth:`state_dict` a training goes on as if never stopped.
    """

    def __init__(
        self,
        model: nn.Module,
        regime: Regime,
        *,
        masks: MaskSet | None = None,
        seed: int = 0,
        include: Iterable[str] = ("*",),
        exclude: Iterable[str] = (),
    ) -> None:
        """Draw the initial masks for ``model`` at ``regime.init_density``, or copy ``masks``; change nothing yet."""
        self.regime, self.seed, self.step = regime, seed, 0
        if masks is None:
            masks = MaskSet.ones_like(model, include, exclude)
            if regime.init_density < 1:
                counts = _counts(masks, regime, regime.init_density)
                masks = MaskSet(keep_layerwise(random_scores(masks, seed), counts), masks.aliases)
        self.masks = MaskSet(_copied(masks), masks.aliases)
        _check(self.masks, regime)
        self.history = [Change(0, self.masks.density, 0, 0, 0.0, _layers(self.masks))]
        self._fresh: dict[str, Tensor] = {}  # grown at the last update, where updates leave no time to grow
        self._fired = _copied(self.masks) if regime.unfired else {}

    def attach(self, model: nn.Module, optimizer: Any) -> Attached:
        """Mask ``model`` now and after every step of ``optimizer``, and update the masks when it is time.

        Raises
        ------
        UsageError
            In a step, where growth needs a gradient that is not there.
        LayerCollapse
            In a step, where a layer would lose all its weights.
        """
        optimizer = unwrapped(optimizer)
        self.masks.apply_(model)
        weights = {name: model.get_parameter(name) for name in self.masks}
        self.masks = MaskSet(_beside(self.masks, weights), self.masks.aliases)
        self._fresh, self._fired = _beside(self._fresh, weights), _beside(self._fired, weights)

        def update(*_: object) -> None:
            self.step += 1
            if self.regime.prunes(self.step) or self.regime.exchanged(self.step):
                self._update(weights, optimizer)

        changing = optimizer.register_step_post_hook(update)  # before the hook that masks by the result
        if self.regime.growth == "momentum":  # must go on for dead weights too
            holding: Any = optimizer.register_step_post_hook(lambda *_: self.masks.apply_(model))
        else:
            holding = self.masks.attach(model, optimizer)
        return Attached([changing, holding])

    @torch.no_grad()
    def _update(self, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        left = self._pruned(weights) if self.regime.prunes(self.step) else self.masks
        share = self.regime.exchanged(self.step)
        after, fresh, dropped = {}, {}, 0
        for name, weight in weights.items():
            count = exchangeable(left[name], share)
            kept = drop_smallest(weight, left[name], count, self._fresh.get(name))
            after[name] = kept
            if count:
                score = self._score(name, weight, optimizer)
                after[name] = grow_largest(score, kept, count, self._fired.get(name))
            fresh[name] = after[name] & ~kept
            dropped += int((self.masks[name] & ~kept).count_nonzero())
        new = MaskSet(after, self.masks.aliases)
        new.check()
        live = new.kept
        reborn = live - sum(int((mask & self.masks[name]).count_nonzero()) for name, mask in new.items())
        for name, weight in weights.items():
            state = optimizer.state.get(weight, {})
            for tensor in (weight, *(state[key] for key in BUFFERS if isinstance(state.get(key), Tensor))):
                tensor.masked_fill_(fresh[name], 0)
            self.masks[name].copy_(after[name])
        self._fresh = fresh if self.regime.every == 1 else {}
        self._fired = {name: fired | self.masks[name] for name, fired in self._fired.items()}
        grown = sum(int(mask.count_nonzero()) for mask in fresh.values())
        self.history.append(Change(self.step, new.density, dropped, grown, reborn / live, _layers(new)))

    def _pruned(self, weights: Mapping[str, nn.Parameter]) -> MaskSet:
        """Return the masks at the density that is due: weights of smallest magnitude go, dead ones stay dead."""
        live = {name: kept for name, (kept, _) in self.masks.per_layer().items()}
        scores = {
            name: protected(w, self._fresh.get(name)).masked_fill_(~self.masks[name], -torch.inf)
            for name, w in weights.items()
        }
        if self.regime.scope == "uniform":
            counts = _counts(self.masks, self.regime, self.regime.density_at(self.step))
            return keep_layerwise(scores, {name: min(count, live[name]) for name, count in counts.items()})
        keep = min(round(self.regime.density_at(self.step) * self.masks.total), sum(live.values()))
        return keep_global(scores, keep, min_keep={name: min(self.regime.min_keep, n) for name, n in live.items()})

    def _score(self, name: str, weight: nn.Parameter, optimizer: torch.optim.Optimizer) -> Tensor:
        """Return what growth in this layer goes by."""
        growth = self.regime.growth
        if growth == "random":
            generator = torch_generator(self.seed, self.step, name, "growth")
            return torch.rand(weight.shape, generator=generator).to(weight.device)
        score = weight.grad if growth == "gradient" else momentum(optimizer.state.get(weight, {}))
        if score is None:
            fix = "Keep gradients until after the step, exclude frozen layers, or grow at random"
            raise UsageError(f"growth at step {self.step} needs its {growth}, and there is none", where=name, fix=fix)
        return score.float().abs()

    def state_dict(self) -> dict[str, Any]:
        """Return the state: tensors, numbers, lists and dicts alone."""
        return {
            "step": self.step,
            "masks": _copied(self.masks),
            "fresh": _copied(self._fresh),
            "fired": _copied(self._fired),
            "history": [asdict(change) for change in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a :meth:`state_dict`, before or after attaching; raise :class:`PlanError` if it does not fit."""
        given = {name: tuple(mask.shape) for name, mask in state["masks"].items()}
        if given != {name: tuple(mask.shape) for name, mask in self.masks.items()}:
            raise PlanError("the state is of another network", fix="Build the network that was trained")
        for name, mask in self.masks.items():
            mask.copy_(state["masks"][name])
        self.step, self.history = state["step"], [Change(**change) for change in state["history"]]
        self._fresh, self._fired = (_beside(_copied(state[key]), self.masks) for key in ("fresh", "fired"))


def training_flops(history: Sequence[Change], flops: Flops, steps: int, growth: Growth) -> float:
    """Return the theoretical FLOPs per sample of ``steps`` steps with the masks that ``history`` tells.

    A step costs three times the forward pass at its density. Growth by gradient needs the dense gradient of the weights
    at each update, growth by momentum at every step (RigL, arXiv:1911.11134, appendix H).
    """
    total = 0.0
    for i, change in enumerate(history):
        until = history[i + 1].step if i + 1 < len(history) else steps
        sparse = flops.kept(change.layers)
        dense = {"momentum": until - change.step, "gradient": int(until < steps and history[i + 1].grown > 0)}
        total += 3 * sparse * (until - change.step) + (flops.total - sparse) * dense.get(growth, 0)
    return total


def _counts(masks: MaskSet, regime: Regime, density: float) -> dict[str, int]:
    """Return how many weights of each layer live: at first, and where layers are equal at any time."""
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    sizes = {name: mask.numel() for name, mask in masks.items()}
    if regime.scope == "global":
        return exact_counts(densities(regime.rule, shapes, density), sizes)
    linear = [name for name, shape in shapes.items() if len(shape) == 2]
    held = dict.fromkeys(linear[-1:], LAST) if density < LAST and len(shapes) > 1 else {}
    return exact_counts(densities("uniform", shapes, density, fixed=held), sizes)


def _check(masks: MaskSet, regime: Regime) -> None:
    """Raise :class:`UsageError` unless ``masks`` can come to the density of ``regime``."""
    masks.check()
    keep, sizes = round(regime.density * masks.total), {name: mask.numel() for name, mask in masks.items()}
    if regime.scope == "uniform":
        _counts(masks, regime, regime.density)
    elif regime.min_keep > (most := feasible_floor(sizes, keep)):
        what = f"{keep} weights are too few to leave each of {len(masks)} layers {regime.min_keep}"
        fix = f"Lower the sparsity: {sum(min(size, regime.min_keep) for size in sizes.values())} weights would do"
        raise UsageError(what, where="min_keep", fix=f"{fix}, or leave each {most}" if most else fix)


def _layers(masks: MaskSet) -> dict[str, float]:
    return {name: kept / total for name, (kept, total) in masks.per_layer().items()}


def _copied(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.clone() for name, mask in masks.items()}


def _beside(masks: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``masks`` on the devices of the ``tensors`` of the same names."""
    return {name: mask.to(tensors[name].device) for name, mask in masks.items()}
