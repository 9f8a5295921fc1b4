"""Take weights out of a model that somebody has, and give back the model, the plan of what went, and a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.core.catalogue import entries, entry
from efface.core.models import Opened, open_model
from efface.core.planfile import PLAN
from efface.core.run import versions
from efface.errors import UsageError
from efface.io.atomic import write_json
from efface.io.folders import atomic_folder, check_folder, free_name
from efface.verbs.inputs import check_inputs, drawn, require_network
from efface.verbs.shrunk import (
    Report,
    channels_after,
    histogram,
    histogram_edges,
    latency,
    layers_after,
    weights_after,
)  # fmt: skip

if TYPE_CHECKING:
    from torch import Tensor, nn

    from efface.core.method import Editor
    from efface.core.plan import Plan
    from efface.parts.data.language import Corpus
    from efface.parts.data.tasks import Score, Task
    from efface.parts.onnx import Parity

REPORT = "report.json"
DATA = {
    "task": 'Give data: "digits", "shapes" or a folder of labelled pictures (--data)',
    "text": "Give a text file, or a folder of .txt files (--data)",
}
"""How to give what a method needs."""


@dataclass(frozen=True)
class Shrunk:
    """A model without some of its weights."""

    opened: Opened
    plan: Plan
    report: Report
    example: tuple[Any, ...] = ()
    """Positional inputs of the model, where they are known."""

    @cached_property
    def model(self) -> nn.Module:
        """The model, with the plan applied in place; ``plan.undo(model)`` takes that back, bit by bit."""
        return self.plan.apply(self.opened.model)

    def place(self, folder: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Return where :meth:`save` writes: ``folder``, by default one beside the model with a name that is free.

        Raises :class:`OutputError` if that is taken.
        """
        return _place(self.opened, folder, overwrite)

    def save(self, folder: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Write the model in the form it came in, ``plan/`` and ``report.json`` into ``folder``: all or nothing.

        Returns the folder, by default a new one beside the model. With ``overwrite`` one that is there is replaced if
        it holds an earlier result.
        """
        place = self.place(folder, overwrite=overwrite)
        with atomic_folder(place, overwrite=overwrite, ours=REPORT) as new:
            self.opened.write(new, self._edit)
            self.plan.save(new / PLAN)
            for number, plan in enumerate(self.opened.plans):
                plan.save(new / f"{PLAN}-{number}")
            write_json(new / REPORT, self.report.as_dict(), overwrite=True)  # that of an earlier shrinking was copied
        return place

    def save_onnx(self, path: str | Path, *, overwrite: bool = False) -> Parity:
        """Write the model as ONNX to ``path``, for any batch size, and return how near the file comes to it.

        Raises
        ------
        UsageError
            If no inputs of the model are known, or the extra `onnx` is not installed.
        InputError
            If an operation has no form in ONNX, or onnxruntime computes something else with the file.
        OutputError
            If the file is there already and ``overwrite`` is false, or cannot be written.
        """
        from efface.parts.onnx import export_onnx

        if not self.example:
            fix = "Give the shape of one, --input 1x3x224x224, or data"
            raise UsageError("ONNX is made from a call, and what the model takes is not known", where=path, fix=fix)
        return export_onnx(self.model, self.example, path, overwrite=overwrite)

    def _edit(self, model: nn.Module) -> None:
        if model is self.opened.model:
            _ = self.model
            return
        from efface.core.trial import edited

        self.plan.check(model)
        for _undo in edited(self.plan.ops, model):  # which apply would keep, and nobody wants for a copy on the disk
            pass


def shrink(
    model: nn.Module | str | Path,
    *,
    method: str = "global-mp",
    sparsity: float | None = None,
    data: Task | Corpus | str | Path | None = None,
    params: Mapping[str, Any] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    weights: str | Path | None = None,
    example: Tensor | tuple[Any, ...] = (),
    shape: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[str], None] | None = None,
) -> Shrunk:
    """Take weights out of ``model`` with the method called ``method``.

    Parameters
    ----------
    model
        A module, which is changed in place once all else has succeeded; or ``"module:factory"`` (with ``weights``), a
        folder of transformers or diffusers, a weights folder, or a bare safetensors file: files stay as they are, and
        the result is written by :meth:`Shrunk.save`.
    sparsity, include, exclude
        Share that goes of what the method takes (weights; or nodes, channels, layers), and globs of the weights that
        may; they are hyper-parameters of the method, as those in ``params`` are.
    data
        A task, ``"shapes"``, ``"digits"`` or a folder of labelled pictures: for methods that train or score, and to
        measure the accuracy before and after. For methods that need text: a corpus, a text file or a folder of them.
    example, shape
        Positional inputs of the model, or the shape of its first one, by which FLOPs are counted. Known by themselves
        with ``data`` and for most folders of transformers and diffusers.
    progress
        Is told what happens, a line at a time.

    Raises
    ------
    UsageError
        If a name is unknown, a value out of bounds, the model does not take data or input, or the method needs data
        and none is given.
    InputError
        If model or data cannot be read, or the weights hold NaN. The model is untouched after any error.
    """
    start = time.perf_counter()
    editor = _editor(method, sparsity, {"include": _globs(include), "exclude": _globs(exclude)}, dict(params or {}))
    if editor.needs != "nothing" and data is None:
        raise UsageError(f"{editor.name} needs data", where="data", fix=DATA[editor.needs])

    from efface.core.method import Work
    from efface.core.trained import pick_device
    from efface.core.trial import trial
    from efface.parts.counting import positional
    from efface.parts.data.tasks import Task
    from efface.parts.sparsity.prunable import asides, prunable

    device, opened = pick_device(device), open_model(model, weights, seed=seed)
    net, task = opened.model, _data_for(opened, editor.needs, data)
    pictures, example = task if isinstance(task, Task) else None, positional(example)
    if example or shape is not None:
        require_network(opened)
        example = example or drawn(opened, pictures, shape, seed)
        check_inputs(net, example, where=opened.name)
    example = example or drawn(opened, pictures, None, seed)
    work = Work(seed=seed, device=device, example=example, progress=progress or (lambda line: None))

    score_before = _score(net, task, device)
    plan = editor.plan(net, task, work)
    with nullcontext() if task is None else trial(plan.ops, net):
        score_after = _score(net, task, device)
    edges = histogram_edges(net)
    cost = plan.cost(net, example)
    report = Report(
        model=opened.name,
        method=editor.name,
        params=editor.params(),
        seed=seed,
        layers=layers_after(plan, net),
        channels=channels_after(plan),
        cost=cost,
        latency=latency(plan, net, example, cost),
        edges=edges,
        before=histogram(prunable(net).values(), edges),
        after=histogram(weights_after(plan, net), edges),
        data=None if task is None else task.name,
        score_before=score_before,
        score_after=score_after,
        notes=(*asides(net), *plan.made_by.get("notes", ()), *_uneven(opened, plan)),
        seconds=round(time.perf_counter() - start, 2),
        versions=versions(),
    )
    shrunk = Shrunk(opened, plan, report, example)
    if opened.form == "module":
        _ = shrunk.model  # applies the plan
    return shrunk


def _editor(name: str, sparsity: float | None, given: Mapping[str, Any], params: dict[str, Any]) -> Editor:
    """Build the method ``name`` with ``sparsity`` and what of ``given`` is not None, and ``params``."""
    editors = {e.name: e for e in entries().values() if e.kind == "Editor" and e.subject == "networks"}
    found = entry(name, editors, what="method that takes weights out of networks")
    method: type[Editor] = found.load()
    given = {key: value for key, value in given.items() if value is not None}
    if strangers := sorted(given.keys() - {param.name for param in found.params}):
        raise UsageError(f"{found.name} has no such option", where=strangers[0], fix=f"See: efface show {found.name}")
    if sparsity is not None:  # what methods of channels, nodes or layers have in its place bears other names
        given |= {method.stays: round(1 - sparsity, 12)} if method.stays else {method.goes: sparsity}
    if twice := sorted(given.keys() & params.keys()):
        raise UsageError("is given twice", where=twice[0], fix="Give it once")
    return method.from_params({**given, **params})  # type: ignore[return-value]


def _globs(globs: Iterable[str] | None) -> list[str] | None:
    return None if globs is None else [globs] if isinstance(globs, str) else list(globs)


def _data_for(opened: Opened, needs: str, data: Task | Corpus | str | Path | None) -> Task | Corpus | None:
    """Find the task or text, and raise :class:`UsageError` unless the model can be run on it."""
    if data is None:
        return None
    require_network(opened)

    from efface.parts.data.language import Corpus
    from efface.parts.data.tasks import Task, task
    from efface.verbs.inputs import text

    if not isinstance(data, Task | Corpus | str | Path):
        what = f"data are given as {type(data).__name__}"
        raise UsageError(what, where="data", fix=DATA["text" if needs == "text" else "task"])
    found = data if isinstance(data, Task | Corpus) else text(opened, data) if needs == "text" else task(data)
    found.check(opened.model)
    return found


def _score(net: nn.Module, task: Task | Corpus | None, device: str) -> Score | None:
    if task is None:
        return None
    home = next(net.parameters()).device
    try:
        return task.score(net.to(device))
    finally:
        net.to(home)


def _uneven(opened: Opened, plan: Plan) -> list[str]:
    """Say it where the configuration of a folder cannot tell which channels are left."""
    from efface.core.hub import sizes_left
    from efface.core.ops import Drop
    from efface.core.trial import trial

    if opened.form not in ("transformers", "diffusers") or not any(isinstance(op, Drop) for op in plan.ops):
        return []
    with trial(plan.ops, opened.model):
        uneven = bool(sizes_left(opened.model))
    note = "Layers have other sizes than config.json has words for: efface opens the folder, {} alone does not"
    return [note.format(opened.form)] if uneven else []


def _place(opened: Opened, folder: str | Path | None, overwrite: bool) -> Path:
    if folder is None:
        beside = Path() if opened.path is None or opened.form == "factory" else opened.path.resolve().parent
        return free_name(beside / f"{opened.name}_shrunk")
    check_folder(folder, overwrite=overwrite, ours=REPORT)
    return Path(folder)
