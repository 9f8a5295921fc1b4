"""Clean many pictures: in processes, or on a Ray cluster; one bad picture never stops the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from efface.core.catalogue import entry
from efface.core.trained import describe, pick_device
from efface.errors import EffaceError, MaskError, UnknownNameError, UsageError
from efface.io.atomic import check_target
from efface.io.images import read_picture
from efface.io.leftovers import MANIFEST, is_preview, save_preview
from efface.io.manifest import Manifest, plan_outputs
from efface.verbs.clean import apply
from efface.verbs.engines import ENGINES
from efface.verbs.gather import gather, masks_of, previews
from efface.verbs.marking import Progress, find, preview
from efface.verbs.repairing import FIXED_BYTES
from efface.verbs.rules import Rules


@dataclass(frozen=True)
class Item:
    """What became of one picture."""

    source: str
    output: str
    status: Literal["done", "failed", "skipped"]
    reason: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    """What :meth:`efface.verbs.clean.Cleaned.as_dict` says."""


@dataclass(frozen=True)
class Summary:
    """What became of all of them."""

    items: list[Item]
    seconds: float
    folder: Path = Path()
    """Where the record of the run lies, and its report goes."""
    dry_run: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    """Files among the inputs that are none, and why."""

    def count(self, status: str) -> int:
        """Return how many items ended as ``status``."""
        return sum(item.status == status for item in self.items)

    @property
    def exit_code(self) -> int:
        """0: all done; 1: some failed; that of the refusal where a single picture was refused."""
        failed = [item for item in self.items if item.status == "failed"]
        return failed[0].exit_code if len(self.items) == 1 and failed else int(bool(failed))

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        counts = {status: self.count(status) for status in ("done", "failed", "skipped")}
        items = [asdict(item) for item in self.items]
        told = {"seconds": round(self.seconds, 3), "dry_run": self.dry_run, "left_out": self.left_out}
        return {**counts, **told, "items": items}


Told = Callable[[float, int, str], None]
"""Told how many pictures are done, one at work in part, how many there are to do, and what goes on."""


def clean_files(
    inputs: str | Path | Sequence[str | Path],
    rules: Rules | None = None,
    *,
    out: str | Path | None = None,
    workers: int = 1,
    engine: Literal["local", "ray"] = "local",
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Told = lambda done, total, what: None,
) -> Summary:
    """Clean pictures, folders (with all below them) and patterns; results are called ``stem_clean.ext``.

    ``out`` is a folder, or the file to write where there is a single picture; without it results lie beside their
    pictures. A mask that is a folder holds one mask a picture, with the picture's path below its folder, or its name
    where no other picture has it. ``dry_run`` writes pictures with the found text outlined, ``stem_boxes.png``, over
    earlier ones, and cleans nothing. ``resume`` goes on after a stop of any kind: what is done is skipped, what failed
    is tried again. Without ``out`` the record for that lies in the folder of the pictures, or in the current one where
    they are of several. ``rules.memory`` is the bound of each of the ``workers``, which share the cores. A cluster must
    see all files under the same paths.

    Raises
    ------
    UsageError
        If nothing matches, two results would have one name or one that of an input, ``resume`` meets other rules, or no
        picture could be cleaned by such rules.
    WeightsError, MaskError
        If ``rules.weights`` is no folder of weights, or ``rules.mask`` is a path where nothing is.
    OutputError
        If a result is there already and ``overwrite`` is false, or the folder cannot be written.
    """
    rules, start = rules or Rules(), time.perf_counter()
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    if "" in (out, *inputs):  # else it would mean the current folder
        raise UsageError("an empty name is no file or folder", fix="For the current folder write .")
    if workers < 1:
        raise UsageError(f"{workers} workers cannot work", where="workers", fix="Give 1 or more")
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    _check(rules)
    given = gather(inputs)
    file = given.file(out)
    folder = given.folder(out) if file is None else file.parent
    manifest = Manifest(folder / MANIFEST, _options(rules))

    def replaces(path: Path) -> bool:
        return overwrite or (is_preview(path) if dry_run else resume and manifest.made(path))

    if file is not None:
        results = {given.pictures[0]: file}
    else:
        results = plan_outputs(given.pictures, out, replaces=lambda path: dry_run or replaces(path), roots=given.roots)
    given.leave_out_results(results, manifest.made)
    plan = previews(results) if dry_run else results
    own = masks_of(list(plan), given.roots, Path(rules.mask)) if _is_folder(rules.mask) else {}
    ended: dict[Path, Item] = {}
    jobs = []
    for source, output in plan.items():
        if resume and not dry_run and manifest.done(source, output):
            ended[source] = Item(str(source), str(output), "skipped", "done before")
        else:
            jobs.append(Job(source, output, rules, replaces(output), dry_run, own.get(source)))
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(manifest) if not dry_run and (len(plan) > 1 or resume) else None
        if record is not None:
            record.plan({job.source: job.output for job in jobs})
        number = 0

        def tell(fraction: float, what: str) -> None:
            progress(number + fraction, len(jobs), what)

        for item in stack.enter_context(contextlib.closing(ENGINES[engine](jobs, workers, tell))):
            ended[Path(item.source)] = item
            number += 1
            if record is not None:
                record.add(item.source, item.output, item.status, reason=item.reason, seconds=item.seconds)
            tell(0.0, item.source)
    items = [ended[source] for source in plan]
    left_out = {str(path): reason for path, reason in given.left_out.items()}
    return Summary(items, time.perf_counter() - start, folder, dry_run, left_out)


@dataclass(frozen=True)
class Job:
    """One picture to clean, wherever that is done."""

    source: Path
    output: Path
    rules: Rules
    overwrite: bool
    dry_run: bool
    masks: list[Path] | None = None
    """What a folder of masks holds for this picture."""

    def run(self, tell: Progress = lambda fraction, what: None) -> Item:
        """Clean the picture, or outline what would go; whatever goes wrong is told in the item."""
        start = time.perf_counter()

        def named(fraction: float, what: str) -> None:
            tell(fraction, f"{self.source.name}: {what}")

        try:
            check_target(self.output, overwrite=self.overwrite)  # before the work, not after it
            details = self._preview(named) if self.dry_run else self._clean(named)
        except EffaceError as error:
            return self.failed(str(error), error.exit_code, time.perf_counter() - start)
        except Exception as error:  # a fault of ours must not stop the other pictures either
            reason = f"unexpected {type(error).__name__}: {error}. Please report this"
            if isinstance(error, MemoryError) or "memory" in str(error):  # torch and cv2 raise errors of their own
                reason = "there is not enough memory. Lower --memory or --workers"
            return self.failed(reason, seconds=time.perf_counter() - start)
        return Item(str(self.source), str(self.output), "done", seconds=time.perf_counter() - start, details=details)

    def failed(self, reason: str, exit_code: int = EffaceError.exit_code, seconds: float = 0.0) -> Item:
        """Return the item of a picture that was not cleaned for a ``reason``, which comes to name the picture."""
        reason = reason if str(self.source) in reason else f"{self.source}: {reason}"
        return Item(str(self.source), str(self.output), "failed", reason, exit_code, seconds)

    def _clean(self, tell: Progress) -> dict[str, Any]:
        cleaned = apply(self.source, self._own_rules(), progress=tell, output=self.output)
        cleaned.save(self.output, overwrite=self.overwrite)
        return cleaned.as_dict()

    def _preview(self, tell: Progress) -> dict[str, Any]:
        picture = read_picture(self.source, max_pixels=self.rules.max_pixels)
        found, mask = find(picture, self._own_rules(), tell)
        save_preview(preview(picture, found, mask), self.output, overwrite=self.overwrite)
        scores = {"masked": round(float(mask.mean()), 4)}
        notes = [] if mask.any() else ["nothing would be taken away"]
        return {"texts": [f.as_dict() for f in found], "scores": scores, "notes": [*notes, *picture.notes]}

    def _own_rules(self) -> Rules:
        """Return the rules with this picture's mask in place of a folder of masks."""
        if self.masks is None:
            return self.rules
        if len(self.masks) != 1:
            what = f"{len(self.masks) or 'no'} masks for {self.source.name}"
            fix = f"Put one picture called {self.source.stem}.png into it, in the place of the picture in its folder"
            raise MaskError(what, where=self.rules.mask, fix=fix)
        return dataclasses.replace(self.rules, mask=self.masks[0])


def _check(rules: Rules) -> None:
    """Refuse at once what would be refused with each picture. Torch is not imported unless it must."""
    if isinstance(rules.mask, str | Path) and not Path(rules.mask).exists():
        raise MaskError("there is no such file or folder", where=rules.mask, fix="Check the path of the mask")
    name, weights, device = rules.network
    method = entry(str(describe(name, weights)[1].get("method")))
    if rules.iterations is not None and "iterations" not in {param.name for param in method.params}:
        raise UsageError(f"{method.name} is not iterative", where="iterations", fix="Leave them out")
    if device not in ("auto", "cpu"):
        pick_device(device)
    if (memory := int(rules.memory)) < int(Rules.memory):  # that is enough for all
        from efface.parts.crops import pixels_for

        pixels_for(memory, bytes_per_pixel=method.card.bytes_per_pixel, fixed=FIXED_BYTES)


def _is_folder(mask: Any) -> bool:
    return isinstance(mask, str | Path) and Path(mask).is_dir()


def _options(rules: Rules) -> dict[str, Any]:
    """Return what must not change when a run is resumed: all that decides how results look."""
    return {k: v for k, v in dataclasses.asdict(rules).items() if k not in ("memory", "max_pixels", "device")}
