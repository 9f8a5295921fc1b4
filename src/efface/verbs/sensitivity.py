"""Measure how much of each layer is safe to take: accuracy, or output, against sparsity, a layer at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from efface.errors import UsageError
from efface.extras import need
from efface.io.atomic import atomic_write
from efface.parts.data.tasks import Task
from efface.parts.nn.modes import mode
from efface.parts.sparsity.prunable import prunable
from efface.parts.sparsity.scores import magnitude
from efface.parts.sparsity.topk import keep_layerwise
from efface.verbs.subject import Progress, Subject, quiet, subject

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
TOLERANCES = {"accuracy": 0.01, "output error": 0.1}
"""How far each measure may move from that of the dense model."""
LIMIT = 1000
"""Examples that are scored at each point."""


@dataclass(frozen=True)
class LayerCurve:
    """What happens as one layer alone loses its smallest weights."""

    name: str
    weights: int
    values: tuple[float, ...]
    """Accuracy in [0, 1], or L2 norm of the change of the output over that of the output, at each sparsity."""
    safe: float
    """Largest sparsity up to which every value is within the tolerance; 0 where the first is not."""


@dataclass(frozen=True)
class Sensitivity:
    """Curves of all layers of a model."""

    model: str
    measure: Literal["accuracy", "output error"]
    data: str | None
    base: float
    """The measure of the dense model."""
    tolerance: float
    sparsities: tuple[float, ...]
    layers: tuple[LayerCurve, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the curves as JSON-ready values."""
        return dataclasses.asdict(self)

    def plot(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Draw the measure of each layer at each sparsity, and how far is safe, as .png, .svg or .pdf."""
        figure = need("matplotlib.figure", extra="plots", job="a plot of sensitivity").Figure
        sheet = figure(figsize=(9, 1.6 + 0.22 * len(self.layers)), layout="constrained")
        axes = sheet.subplots()
        values = [layer.values for layer in self.layers]
        error = self.measure != "accuracy"
        image = axes.imshow(values, aspect="auto", cmap="viridis_r" if error else "viridis", vmin=0, vmax=1)
        for row, layer in enumerate(self.layers):
            for column, (value, sparsity) in enumerate(zip(layer.values, self.sparsities, strict=True)):
                weight = "bold" if sparsity <= layer.safe else "normal"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, weight=weight, color="w")
        axes.set_xticks(range(len(self.sparsities)), [f"{s:.0%}" for s in self.sparsities])
        axes.set_yticks(range(len(self.layers)), [layer.name for layer in self.layers], fontsize=8)
        axes.set(xlabel="share of the layer's weights taken out; bold: safe", title=f"{self.model}: {self.measure}")
        sheet.colorbar(image, ax=axes, label=self.measure)
        with atomic_write(path, overwrite=overwrite) as temporary:
            sheet.savefig(temporary, dpi=120)


def sensitivity(
    model: nn.Module | str | Path,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    tolerance: float | None = None,
    include: Iterable[str] = ("*",),
    weights: str | Path | None = None,
    data: Task | str | Path | None = None,
    limit: int | None = LIMIT,
    example: tuple[Any, ...] = (),
    shape: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = quiet,
) -> Sensitivity:
    """Take the smallest weights out of each layer of ``model`` in turn, and measure what that does.

    With ``data`` the measure is the accuracy on ``limit`` validation examples, else how far the output moves on a
    random input, relative to its norm. ``tolerance`` is how much of either is safe to lose, by default one point of
    accuracy or a tenth of the output; ``include`` are globs of the weights looked at. The rest is as in
    :func:`efface.bench`; the model comes out as it went in, bit by bit.

    Raises
    ------
    UsageError
        If a sparsity is not within 0 and 1, or no inputs are known.
    """
    what = subject(model, weights=weights, data=data, example=example, shape=shape, seed=seed, device=device)
    return look(what, sparsities=sparsities, tolerance=tolerance, include=include, limit=limit, progress=progress)


def look(
    what: Subject,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    tolerance: float | None = None,
    include: Iterable[str] = ("*",),
    limit: int | None = LIMIT,
    progress: Progress = quiet,
) -> Sensitivity:
    """Measure the sensitivity of a subject's layers; see :func:`sensitivity`."""
    if not sparsities or not all(0 <= sparsity <= 1 for sparsity in sparsities):
        raise UsageError(f"{sparsities} are no sparsities", where="sparsities", fix="Give numbers from 0 to 1")
    measured: Literal["accuracy", "output error"] = "output error" if what.task is None else "accuracy"
    tolerance = TOLERANCES[measured] if tolerance is None else tolerance
    chosen, levels = prunable(what.net, include), tuple(sorted(sparsities))
    dense = _output(what)
    base = _measure(what, dense, limit)
    layers = []
    for number, (name, weight) in enumerate(chosen.items()):
        progress(number / len(chosen), name)
        values = _curve(what, name, weight, levels, dense, limit)
        near = [abs(value - base) <= tolerance or (what.task is not None and value > base) for value in values]
        safe = [*near, False].index(False)
        layers.append(LayerCurve(name, weight.numel(), values, levels[safe - 1] if safe else 0.0))
    data_name = None if what.task is None else what.task.name
    return Sensitivity(what.opened.name, measured, data_name, base, tolerance, levels, tuple(layers))


def _curve(
    what: Subject, name: str, weight: nn.Parameter, levels: Sequence[float], dense: Tensor, limit: int | None
) -> tuple[float, ...]:
    """Return the measure at each of ``levels``; the weight is then as it was."""
    before, scores = weight.detach().clone(), magnitude({name: weight})
    values = []
    try:
        for sparsity in levels:
            kept = weight.numel() - round(sparsity * weight.numel())
            keep_layerwise(scores, {name: kept}).apply_(what.net)
            values.append(_measure(what, dense, limit))
    finally:
        with torch.no_grad():
            weight.copy_(before)
    return tuple(values)


def _measure(what: Subject, dense: Tensor, limit: int | None) -> float:
    if what.task is not None:
        return what.task.score(what.net, "val", limit).accuracy
    moved = torch.linalg.vector_norm(_output(what) - dense) / torch.linalg.vector_norm(dense).clamp_min(1e-12)
    return float(moved)


def _output(what: Subject) -> Tensor:
    """Return the first tensor of what the model makes of its example, in float32."""
    with torch.inference_mode(), mode(what.net, training=False):
        made = what.net(*what.example)
    found: list[Tensor] = []
    torch.utils._pytree.tree_map_only(Tensor, found.append, made)
    if not found:
        raise UsageError("the model returns no tensor", where=what.opened.name, fix="Give data to score it on")
    return found[0].float()
