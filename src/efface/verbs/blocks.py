"""Make a plan's masks quick on a CPU: layers in column blocks, where they win when timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efface.core.ops import Mask, Op, Replace, TensorOp
from efface.core.plan import Plan
from efface.core.trial import trial
from efface.errors import UsageError
from efface.parts.data.tasks import Score, Task
from efface.parts.nn.modes import mode
from efface.parts.sparsity.blocks import Choice, choose, convertible, from_dense
from efface.parts.sparsity.project import BLOCK, columns_near, coverage, pattern_mask, project
from efface.parts.sparsity.prunable import prunable, tied
from efface.parts.timing import using
from efface.verbs.subject import Progress, Subject, quiet, subject


@dataclass(frozen=True)
class BlockLayer:
    """A masked layer, and what column blocks make of it."""

    name: str
    form: str
    """``dense`` where no form of blocks was quicker: the layer stays as the plan leaves it."""
    speedup: float
    """How many times as quick as the dense layer, by itself."""
    density: float
    """Share of the weights that the mask keeps."""
    columns: float
    """Share of the columns that each block keeps."""
    coverage: float
    """Share of the weights kept by the mask that are in those columns."""


@dataclass(frozen=True)
class Exported:
    """A plan whose masks became column blocks where that was quicker."""

    plan: Plan
    layers: tuple[BlockLayer, ...]
    coverage: float
    """Share of the weights kept by the masks of the replaced layers that are still there."""
    revived: bool
    """Whether weights that a mask had taken out are back where their column stays, at no cost: so in plans that do
    nothing but mask. Weights that were trained to do without them stay alone."""
    data: str | None
    score_original: Score | None
    score_before: Score | None
    """With the plan as it was given."""
    score_after: Score | None

    @property
    def replaced(self) -> tuple[BlockLayer, ...]:
        """Layers that are in column blocks now."""
        return tuple(layer for layer in self.layers if layer.form != "dense")

    def as_dict(self) -> dict[str, Any]:
        """Return all but the plan as JSON-ready values."""
        scores = {name: getattr(self, name) for name in ("score_original", "score_before", "score_after")}
        return {
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "coverage": self.coverage,
            "revived": self.revived,
            "data": self.data,
            **{name: score and dataclasses.asdict(score) for name, score in scores.items()},
        }


def export_blocks(
    model: nn.Module | str | Path,
    plan: Plan | str | Path,
    *,
    columns: float | None = None,
    block: int = BLOCK,
    include: Iterable[str] = ("*",),
    weights: str | Path | None = None,
    data: Task | str | Path | None = None,
    example: tuple[Any, ...] = (),
    shape: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    seconds: float = 0.3,
    progress: Progress = quiet,
) -> Exported:
    """Return ``plan`` with masked layers in column blocks where these are quicker on this machine.

    Rows of a weight are cut into blocks of at most ``block``; each keeps the share ``columns`` of the input columns
    that holds most of what the mask keeps (by default the mask's own density). More columns keep more of the mask, and
    gain less. Each layer is timed for ``seconds`` on the input that it has in the model; ``include`` are globs of the
    weights that may be replaced. The rest is as in :func:`efface.bench`.

    Raises
    ------
    UsageError
        If the plan masks nothing that could be replaced, ``columns`` is not in (0, 1], or no inputs are known.
    """
    if columns is not None and not 0 < columns <= 1:
        raise UsageError(f"{columns} is not a share of the columns", where="columns", fix="Give more than 0, at most 1")
    what = subject(model, plan, weights=weights, data=data, example=example, shape=shape, seed=seed, device=device)
    with using(threads):
        return convert(what, columns=columns, block=block, include=include, seconds=seconds, progress=progress)


def convert(
    what: Subject,
    *,
    columns: float | None,
    block: int,
    include: Iterable[str],
    seconds: float,
    progress: Progress = quiet,
) -> Exported:
    """Replace the masked layers of a subject's plan; see :func:`export_blocks`."""
    net, plan = what.net, what.plan
    if plan is None:
        raise UsageError("there is no plan to export", fix="Give one: efface bench MODEL PLAN")
    masks = _masks(plan, net, prunable(net, include))
    revived = all(isinstance(op, Mask) for op in plan.ops)
    rows: list[BlockLayer] = []
    chosen: dict[str, tuple[Tensor, str]] = {}
    edits: list[Op] = []
    with trial(plan.ops, net):
        inputs = _inputs(what, masks)
        for number, (name, x) in enumerate(inputs.items()):
            progress(number / len(inputs), name)
            layer, mask = net.get_submodule(name), masks[name]
            pattern = _pattern(layer, mask, columns, block)
            choice = choose(layer, x, pattern, seconds=seconds)
            rows.append(_row(name, choice, mask, pattern))
            if choice.module is not None:
                chosen[name] = pattern, choice.form
                if not revived:
                    edits.append(Replace.by(name, choice.module, choice.module.args()))
        score_before = what.score()
    if not rows:
        fix = "Export a plan that masks linear layers or convolutions without groups"
        raise UsageError("the plan masks no layer that has a form in column blocks", where=plan.name, fix=fix)
    if revived:
        for name, (pattern, form) in chosen.items():
            new = from_dense(net.get_submodule(name), pattern, form)
            edits.append(Replace.by(name, new, new.args()))
    kept = [op for op in plan.ops if not (isinstance(op, TensorOp) and op.target.rpartition(".")[0] in chosen)]
    facts: dict[str, Any] = {"columns": columns, "block": block, "revived": revived, "of": plan.made_by}
    new_plan = Plan.of(net, [*kept, *edits], method=f"{plan.name}, column blocks", **facts)
    with trial(new_plan.ops, net):
        score_after = what.score()
    counts = {name: int(masks[name].sum()) for name in chosen}
    shares = {row.name: row.coverage for row in rows}
    return Exported(
        plan=new_plan,
        layers=tuple(rows),
        coverage=sum(counts[n] * shares[n] for n in chosen) / max(1, sum(counts.values())),
        revived=revived,
        data=None if what.task is None else what.task.name,
        score_original=what.score(),
        score_before=score_before,
        score_after=score_after,
    )


def _masks(plan: Plan, net: nn.Module, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return what ``plan`` keeps of each layer that it masks and that has a form in column blocks, by its name."""
    found, shared = plan.masks(), set(tied(net).values())
    layers = {name.removesuffix(".weight"): name for name in weights if name.endswith(".weight")}
    return {
        layer: found[name]
        for layer, name in layers.items()
        if name in found and name not in shared and convertible(net.get_submodule(layer))
    }


def _inputs(what: Subject, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the input of each layer called, in the order of the calls, when the model runs on its example."""
    inputs: dict[str, Tensor] = {}
    handles = []
    for name in names:
        layer = what.net.get_submodule(name)

        def keep(layer: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            if args and convertible(layer):
                inputs[name] = args[0]

        handles.append(layer.register_forward_pre_hook(keep))
    try:
        with torch.inference_mode(), mode(what.net, training=False):
            what.net(*what.example)
    finally:
        for handle in handles:
            handle.remove()
    return inputs


def _pattern(layer: nn.Module, mask: Tensor, columns: float | None, block: int) -> Tensor:
    """Return the columns that hold most of the squared weights that ``mask`` keeps."""
    weight = layer.get_parameter("weight").detach()
    share = columns if columns is not None else float(mask.float().mean())
    kept = columns_near(weight.shape[1], share)
    return project(weight.float().square() * mask.to(weight.device), kept, block)


def _row(name: str, choice: Choice, mask: Tensor, pattern: Tensor) -> BlockLayer:
    pattern = pattern.cpu()
    share = float(pattern_mask(pattern, tuple(mask.shape)).float().mean())
    return BlockLayer(name, choice.form, choice.speedup, float(mask.float().mean()), share, coverage(mask, pattern))
