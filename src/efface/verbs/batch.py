"""Clean many pictures: in processes, or on a Ray cluster; one bad picture never stops the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from efface.errors import EffaceError, MaskError, UnknownNameError, UsageError
from efface.io.atomic import atomic_write, check_target
from efface.io.images import SUFFIXES, read_picture
from efface.io.manifest import Manifest, plan_outputs
from efface.io.weights import load_card
from efface.verbs.clean import apply, find, preview
from efface.verbs.engines import ENGINES
from efface.verbs.rules import Rules

OURS = "efface-"
"""How the names of files begin that a run leaves beside its results; they are never inputs."""
MANIFEST = f"{OURS}manifest.jsonl"


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
    dry_run: bool = False

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
        return {**counts, "seconds": round(self.seconds, 3), "dry_run": self.dry_run, "items": items}


Done = Callable[[Item, int], None]
"""Told each item as it ends, and how many there are to do."""


def clean_files(
    inputs: Sequence[str | Path],
    rules: Rules | None = None,
    *,
    out: str | Path | None = None,
    workers: int = 1,
    engine: Literal["local", "ray"] = "local",
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    done: Done | None = None,
) -> Summary:
    """Clean pictures, folders (with all below them) and patterns; results are called ``stem_clean.ext``.

    ``out`` is a folder, or the file to write where there is a single picture; without it results lie beside their
    pictures. A mask that is a folder holds one mask a picture, found by the picture's stem. ``dry_run`` writes pictures
    with the found text outlined, ``stem_boxes.png``, and cleans nothing. ``resume`` goes on after a stop of any kind:
    what is done is skipped, what failed is tried again. ``rules.memory`` is the bound of each of the ``workers``, which
    share the cores. A cluster must see all files under the same paths.

    Raises
    ------
    UsageError
        If nothing matches, two results would have one name, or ``resume`` meets other rules.
    WeightsError
        If ``rules.weights`` is no folder of weights.
    OutputError
        If a result is there already and ``overwrite`` is false, or the folder cannot be written.
    """
    rules, start = rules or Rules(), time.perf_counter()
    if "" in (out, *inputs):  # else it would mean the current folder
        raise UsageError("an empty name is no file or folder", fix="For the current folder write .")
    if workers < 1:
        raise UsageError(f"{workers} workers cannot work", where="workers", fix="Give 1 or more")
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if rules.weights is not None:
        load_card(rules.weights)  # once and now, not with each picture
    sources = gather(inputs)
    file = _names_file(out, inputs, sources)
    folder = _folder(sources, Path(out).parent if file and out is not None else out)
    overwrite = overwrite or (resume and (folder / MANIFEST).is_file())  # what a run left is its own to replace
    if file and out is not None:
        plan = {sources[0]: _outlined(Path(out)) if dry_run else Path(out)}
    else:
        plan = _plan(sources, out, [Path(i) for i in inputs if Path(i).is_dir()], overwrite, dry_run)
    ended: dict[str, Item] = {}
    with contextlib.ExitStack() as stack:
        manifest = None
        if not dry_run and (len(plan) > 1 or resume):
            manifest = stack.enter_context(Manifest(folder / MANIFEST, _options(rules), resume=resume))
        jobs = []
        for source, output in plan.items():
            if manifest is not None and manifest.done(source):
                ended[str(source)] = Item(str(source), str(output), "skipped", "done before")
            else:
                jobs.append(Job(source, output, rules, overwrite, dry_run))
        for item in stack.enter_context(contextlib.closing(ENGINES[engine](jobs, workers))):
            ended[item.source] = item
            if manifest is not None:
                manifest.add(item.source, item.output, item.status, reason=item.reason, seconds=item.seconds)
            if done is not None:
                done(item, len(jobs))
    return Summary([ended[str(source)] for source in plan], time.perf_counter() - start, dry_run)


@dataclass(frozen=True)
class Job:
    """One picture to clean, wherever that is done."""

    source: Path
    output: Path
    rules: Rules
    overwrite: bool
    dry_run: bool

    def run(self) -> Item:
        """Clean the picture, or outline what would go; whatever goes wrong is told in the item."""
        start = time.perf_counter()
        try:
            details = self._preview() if self.dry_run else self._clean()
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

    def _clean(self) -> dict[str, Any]:
        check_target(self.output, overwrite=self.overwrite)  # before the work, not after it
        cleaned = apply(self.source, self._with_own_mask())
        cleaned.save(self.output, overwrite=self.overwrite)
        return cleaned.as_dict()

    def _preview(self) -> dict[str, Any]:
        check_target(self.output, overwrite=self.overwrite)
        picture = read_picture(self.source)
        found, mask = find(picture, self._with_own_mask())
        with atomic_write(self.output, overwrite=self.overwrite) as temporary:
            preview(picture, found, mask).save(temporary, "PNG")
        scores = {"masked": round(float(mask.mean()), 4)}
        return {"texts": [f.as_dict() for f in found], "scores": scores, "notes": picture.notes}

    def _with_own_mask(self) -> Rules:
        """Return the rules with this picture's mask in place of a folder of masks."""
        folder = self.rules.mask
        if not (isinstance(folder, str | Path) and Path(folder).is_dir()):
            return self.rules
        masks = [
            p for p in sorted(Path(folder).iterdir()) if p.stem == self.source.stem and p.suffix.lower() in SUFFIXES
        ]
        if len(masks) != 1:
            fix = f"Put one picture called {self.source.stem}.png into the folder of masks"
            raise MaskError(f"{len(masks) or 'no'} masks for {self.source.name}", where=folder, fix=fix)
        return dataclasses.replace(self.rules, mask=masks[0])


def gather(inputs: Sequence[str | Path]) -> list[Path]:
    """Return the files that are meant: those named, those of folders and all below, and those that match patterns."""
    found: dict[Path, None] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            below = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
            files = [p for p in below if not p.name.startswith(OURS) and not _hidden(p.relative_to(path))]
        elif path.exists() or not glob.has_magic(str(given)):
            files = [path]
        else:
            files = [p for p in map(Path, sorted(glob.glob(str(given), recursive=True))) if p.is_file()]
        if not files:
            raise UsageError("no pictures are there", where=given, fix=f"Known endings: {' '.join(SUFFIXES)}")
        found |= dict.fromkeys(files)
    return list(found)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _names_file(out: str | Path | None, inputs: Sequence[str | Path], sources: Sequence[Path]) -> bool:
    """Return whether ``out`` is the file to write, not a folder."""
    if out is None or Path(out).suffix.lower() not in SUFFIXES or Path(out).is_dir():
        return False
    if len(sources) > 1 or any(Path(given).is_dir() for given in inputs):
        raise UsageError("is the name of one picture, and there may be several", where=out, fix="Name a folder")
    return True


def _folder(sources: Sequence[Path], out: str | Path | None) -> Path:
    return Path(out) if out is not None else Path(os.path.commonpath([path.parent.resolve() for path in sources]))


def _plan(
    sources: Sequence[Path], out: str | Path | None, roots: Sequence[Path], overwrite: bool, dry_run: bool
) -> dict[Path, Path]:
    """Return the file to write for each picture; what earlier runs made of others of them is left out."""
    previews = {f"{name}_boxes.png" for source in sources for name in (source.stem, source.name)}
    pictures = [source for source in sources if source.name not in previews]
    results = plan_outputs(pictures, out, overwrite=overwrite or dry_run, roots=roots)
    if not dry_run:
        return results
    outlined = {source: _outlined(path.with_name(source.name)) for source, path in results.items()}
    if len(set(outlined.values())) < len(outlined):  # a.jpg beside a.png
        return {source: path.with_name(f"{source.name}_boxes.png") for source, path in results.items()}
    return outlined


def _outlined(path: Path) -> Path:
    return path.with_name(f"{path.stem}_boxes.png")


def _options(rules: Rules) -> dict[str, Any]:
    """Return what must not change when a run is resumed: all that decides how results look."""
    return {k: v for k, v in dataclasses.asdict(rules).items() if k not in ("memory", "device")}
