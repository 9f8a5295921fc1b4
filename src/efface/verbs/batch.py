"""Clean many pictures: in processes, or on a Ray cluster; one bad picture never stops the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from efface.errors import EffaceError, MaskError, UnknownNameError, UsageError
from efface.extras import need
from efface.io.atomic import atomic_write, check_target
from efface.io.images import SUFFIXES, read_picture
from efface.io.manifest import Manifest, plan_outputs
from efface.verbs.clean import Rules, apply, find, preview

MANIFEST = "efface-manifest.jsonl"


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
"""Told each item as it ends, and how many there are in all."""


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
    with the found text outlined, ``stem_boxes.png``, and cleans nothing. ``resume`` goes on after a stop of any kind.

    Raises
    ------
    UsageError
        If nothing matches, two results would have one name, or ``resume`` meets other rules.
    OutputError
        If a result is there already and ``overwrite`` is false, or the folder cannot be written.
    """
    rules, start = rules or Rules(), time.perf_counter()
    if workers < 1:
        raise UsageError(f"{workers} workers cannot work", where="workers", fix="Give 1 or more")
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    plan = _plan(inputs, out, overwrite=overwrite or resume, dry_run=dry_run)
    items: list[Item] = []
    with contextlib.ExitStack() as stack:
        manifest = None
        if not dry_run and (len(plan) > 1 or resume):
            opened = Manifest(_folder(plan, out) / MANIFEST, _options(rules), resume=resume)
            manifest = stack.enter_context(opened)
        jobs = []
        for source, output in plan.items():
            if manifest is not None and manifest.done(source):
                items.append(Item(str(source), str(output), "skipped", "done before"))
            else:
                jobs.append(Job(source, output, rules, overwrite=overwrite or resume, dry_run=dry_run))
        for item in ENGINES[engine](jobs, workers):
            items.append(item)
            if manifest is not None:
                manifest.add(item.source, item.output, item.status, reason=item.reason, seconds=item.seconds)
            if done is not None:
                done(item, len(plan))
    return Summary(items, time.perf_counter() - start, dry_run)


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

        def item(status: Literal["done", "failed"], **values: Any) -> Item:
            return Item(str(self.source), str(self.output), status, seconds=time.perf_counter() - start, **values)

        try:
            return item("done", details=self._preview() if self.dry_run else self._clean())
        except EffaceError as error:
            return item("failed", reason=str(error), exit_code=error.exit_code)
        except MemoryError:
            reason = f"{self.source}: not enough memory. Lower --memory or --workers"
            return item("failed", reason=reason, exit_code=EffaceError.exit_code)
        except Exception as error:  # a fault of ours must not stop the other pictures either
            reason = f"{self.source}: unexpected {type(error).__name__}: {error}. Please report this"
            return item("failed", reason=reason, exit_code=EffaceError.exit_code)

    def _clean(self) -> dict[str, Any]:
        check_target(self.output, overwrite=self.overwrite)  # before the work, not after it
        cleaned = apply(self.source, self._with_own_mask())
        self.output.parent.mkdir(parents=True, exist_ok=True)
        cleaned.save(self.output, overwrite=self.overwrite)
        return cleaned.as_dict()

    def _preview(self) -> dict[str, Any]:
        picture = read_picture(self.source)
        found, mask = find(picture, self._with_own_mask())
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.output, overwrite=True) as temporary:
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
            files = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
        elif path.exists() or not glob.has_magic(str(given)):
            files = [path]
        else:
            files = [p for p in map(Path, sorted(glob.glob(str(given), recursive=True))) if p.is_file()]
        if not files:
            raise UsageError("no pictures are there", where=given, fix=f"Known endings: {' '.join(SUFFIXES)}")
        found |= dict.fromkeys(files)
    return list(found)


def _plan(inputs: Sequence[str | Path], out: str | Path | None, *, overwrite: bool, dry_run: bool) -> dict[Path, Path]:
    sources, roots = gather(inputs), [Path(i) for i in inputs if Path(i).is_dir()]
    if out is not None and len(sources) == 1 and not roots and Path(out).suffix.lower() in SUFFIXES:
        return {sources[0]: Path(out)}
    if not dry_run:
        return plan_outputs(sources, out, overwrite=overwrite, roots=roots)
    outlined = plan_outputs(sources, out, suffix="_boxes", overwrite=True, roots=roots)
    named = {source: path.with_suffix(".png") for source, path in outlined.items()}
    shared = len(set(named.values())) < len(named)  # a.jpg beside a.png
    return {source: path.with_name(f"{path.name}.png") for source, path in outlined.items()} if shared else named


def _folder(plan: dict[Path, Path], out: str | Path | None) -> Path:
    return Path(out) if out is not None else Path(os.path.commonpath([path.parent.resolve() for path in plan.values()]))


def _options(rules: Rules) -> dict[str, Any]:
    """Return what must not change when a run is resumed: all that decides how results look."""
    return {k: v for k, v in dataclasses.asdict(rules).items() if k not in ("memory", "device")}


def _local(jobs: Sequence[Job], workers: int) -> Iterator[Item]:
    if workers == 1 or len(jobs) < 2:
        yield from (job.run() for job in jobs)
        return
    waiting = list(jobs)
    while waiting:
        # "spawn": a fork of a process with running threads may hang
        context = multiprocessing.get_context("spawn")
        threads = max(1, (os.cpu_count() or 1) // workers)
        with ProcessPoolExecutor(min(workers, len(waiting)), context, _limit_threads, (threads,)) as pool:
            futures = {pool.submit(Job.run, job): job for job in waiting}
            try:
                for future in as_completed(futures):
                    item = future.result()
                    waiting.remove(futures[future])
                    yield item
            except BrokenProcessPool:
                # whichever picture killed its process is among the first; alone, it can hurt no other
                yield _alone(waiting.pop(0), context)


def _alone(job: Job, context: Any) -> Item:
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(Job.run, job).result()
        except BrokenProcessPool:
            reason = (
                f"{job.source}: the process that cleaned it was killed, perhaps for memory. Lower --memory or --workers"
            )
            return Item(str(job.source), str(job.output), "failed", reason, EffaceError.exit_code)


def _limit_threads(threads: int) -> None:
    """Share the cores among the workers; libraries read these before they start their own threads."""
    for name in ("OMP_NUM_THREADS", "EFFACE_THREADS"):
        os.environ[name] = str(threads)


def _ray(jobs: Sequence[Job], workers: int) -> Iterator[Item]:
    """Run the jobs through Ray Data, on the cluster that RAY_ADDRESS names or on a local one of ``workers``."""
    data = need("ray.data", extra="cluster", job="--engine ray")
    ray = need("ray", extra="cluster", job="--engine ray")
    here = not ray.is_initialized()
    if here:
        ray.init(num_cpus=None if os.environ.get("RAY_ADDRESS") else workers, log_to_driver=False)
    try:
        rows = data.from_items([{"job": job} for job in jobs]).repartition(len(jobs))
        for row in rows.map(lambda row: {"item": row["job"].run()}, num_cpus=1).iter_rows():
            yield row["item"]
    finally:
        if here:
            ray.shutdown()


ENGINES: dict[str, Callable[[Sequence[Job], int], Iterator[Item]]] = {"local": _local, "ray": _ray}
