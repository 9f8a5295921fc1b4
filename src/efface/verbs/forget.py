"""Take concepts out of a text-to-image pipeline, and give back the edit, which is small, can be undone and exported."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.core.catalogue import entries, entry
from efface.core.run import versions
from efface.errors import UnknownNameError, UsageError
from efface.io.atomic import write_json
from efface.io.folders import atomic_folder
from efface.io.weights import CARD, load_card
from efface.verbs.export import Form, export

if TYPE_CHECKING:
    from efface.core.eraser import Concepts, Eraser
    from efface.core.plan import Plan

REPORT = "report.json"


@dataclass(frozen=True)
class Report:
    """What a forgetting changed, and how it came about."""

    pipeline: str
    method: str
    params: dict[str, Any]
    seed: int
    erases: tuple[dict[str, str], ...]
    """Concepts under ``remove``, and under ``instead`` what takes their places."""
    keep: int
    """Number of texts that were to stay as they are."""
    layers: int
    weights: int
    """Weights of these layers."""
    norm: float
    """L2 norm of what is added to them."""
    size: int
    """Bytes of the edit's tensors."""
    notes: tuple[str, ...]
    seconds: float
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Forgotten:
    """A pipeline, still as it was, and the edit that takes concepts out of it."""

    pipe: Any
    plan: Plan
    report: Report

    def scaled(self, strength: float) -> Forgotten:
        """Return the same with the edit at ``strength``: 1 is the whole of it, and 0 none."""
        return dataclasses.replace(self, plan=self.plan.scaled(strength))

    def apply(self) -> Any:
        """Edit the pipeline in place and return it; its tokenizer is then one that knows the words the edit adds."""
        from efface.core.eraser import editable
        from efface.parts.concepts.vocabulary import teach

        self.plan.apply(editable(self.pipe))
        teach(self.pipe, self.plan.made_by.get("words", ()))
        return self.pipe

    def undo(self) -> Any:
        """Put back, bit by bit, what :meth:`apply` took, and return the pipeline."""
        from efface.core.eraser import editable
        from efface.parts.concepts.vocabulary import unteach

        self.plan.undo(editable(self.pipe))
        if self.plan.made_by.get("words"):
            unteach(self.pipe)
        return self.pipe

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the edit, a plan with ``report.json``, into ``folder``: all or nothing. Returns the folder."""
        with atomic_folder(folder, overwrite=overwrite, ours=REPORT) as new:
            self.plan.save(new)
            write_json(new / REPORT, self.report.as_dict())
        return Path(folder)

    def export(self, folder: str | Path, form: Form = "pipeline", *, overwrite: bool = False) -> Path:
        """Write the edit into ``folder`` in a form that others read, as :func:`efface.export` does."""
        return export(self.pipe, [self.plan], folder, form, overwrite=overwrite)


def forget(
    pipe: Any,
    *,
    remove: str | Sequence[str],
    instead: str | Sequence[str] | None = None,
    keep: str | Sequence[str] = (),
    method: str = "rece",
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[str], None] | None = None,
) -> Forgotten:
    """Take the concepts ``remove`` out of ``pipe`` with the method called ``method``.

    Parameters
    ----------
    pipe
        A pipeline of diffusers, which stays as it is until the result is applied; its folder; its name on the hub, if
        it is in the cache; or ``tiny``, the one that comes with the package.
    instead
        What takes the place of every concept, or of each in order. By default the method's own choice, often nothing.
    keep
        Texts that are to draw as before. The more and the nearer to ``remove``, the better neighbours fare.
    params
        Hyper-parameters of the method.
    progress
        Is told what happens, a line at a time.

    Raises
    ------
    UsageError
        If a name is unknown, a value out of bounds, a concept cannot be told to the pipeline, is its own replacement or
        also to be kept, has been taken out before, or the pipeline has no cross-attention.
    InputError
        If the pipeline cannot be read, or its weights hold NaN. It is untouched after any error.
    """
    from efface.core.eraser import Concepts, check_concepts, editable
    from efface.core.hub import open_pipeline
    from efface.core.method import Work
    from efface.core.plan import applied
    from efface.core.trained import pick_device

    start = time.perf_counter()
    eraser, concepts = _eraser(method, dict(params or {})), Concepts.of(remove, instead, keep)
    name, device = str(pipe) if isinstance(pipe, str | Path) else type(pipe).__name__, pick_device(device)
    if isinstance(pipe, str | Path):
        _refuse_again(concepts, _edits_in(Path(pipe)), name)
        pipe = open_pipeline(pipe, device)
    check_concepts(pipe, concepts)
    _refuse_again(concepts, [plan.made_by for plan in applied(editable(pipe))], name)
    plan = eraser.plan(pipe, concepts, Work(seed=seed, device=device, progress=progress or (lambda line: None)))
    rows = plan.diff(editable(pipe)).rows
    report = Report(
        pipeline=name,
        method=eraser.name,
        params=eraser.params(),
        seed=seed,
        erases=tuple(concepts.facts()["erases"]),
        keep=len(concepts.keep),
        layers=len({name for op in plan.ops for name in op.touches}),
        weights=sum(row.weights for row in rows),
        norm=sum(row.norm**2 for row in rows) ** 0.5,
        size=sum(tensor.nbytes for op in plan.ops for tensor in op.tensors().values()),
        notes=tuple(plan.made_by.get("notes", ())),
        seconds=round(time.perf_counter() - start, 2),
        versions=versions(),
    )
    return Forgotten(pipe, plan, report)


def _eraser(name: str, params: dict[str, Any]) -> Eraser:
    erasers = {e.name for e in entries().values() if e.kind == "Eraser"}
    found = entry(name)
    if found.name not in erasers:
        raise UnknownNameError("method that takes concepts out of generators", name, erasers)
    return found.load().from_params(params)  # type: ignore[attr-defined]


def _edits_in(folder: Path) -> list[dict[str, Any]]:
    """Return the edits that the pipeline in ``folder`` was exported with."""
    return list(load_card(folder).get("edits", ())) if (folder / CARD).is_file() else []


def _refuse_again(concepts: Concepts, edits: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raise :class:`UsageError` if one of ``edits`` has taken out one of ``concepts`` before."""
    gone = {one["remove"].casefold() for edit in edits for one in edit.get("erases", ())}
    if again := [concept for concept in concepts.remove if concept.casefold() in gone]:
        what = f"{', '.join(map(repr, again))} has been taken out of this pipeline before"
        raise UsageError(what, where=where, fix="Start from the original pipeline")
