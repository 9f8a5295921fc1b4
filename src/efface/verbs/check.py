"""Measure what a method's paper claims, beside a baseline, and store what was found."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from efface.core.claim import Context, Result, measure
from efface.errors import DataError
from efface.io.atomic import atomic_write, write_json


def check(
    name: str,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    data: str | Path | None = None,
    long: bool = False,
    quick: bool = False,
    device: str = "cpu",
    progress: Callable[[str], None] = print,
) -> Result:
    """Run the claim of the method called ``name`` and return its effects as measured.

    ``data`` is a folder of real pictures for claims that take one; ``long`` spends more time for a stronger form of the
    claim; ``quick`` runs every line with almost no work, and what it measures means nothing.
    """
    folder = None if data is None else Path(data)
    if folder is not None and not folder.is_dir():
        raise DataError("is not a folder", where=folder, fix="Give the folder that holds the data")
    return measure(
        name, Context(seeds=tuple(seeds), data=folder, long=long, quick=quick, device=device, progress=progress)
    )


def store(result: Result, folder: str | Path) -> list[Path]:
    """Write ``result`` into ``folder`` as JSON, and as a plot where matplotlib is installed; return the paths."""
    paths = [Path(folder) / f"{result.method}.json"]
    write_json(paths[0], result.as_dict(), overwrite=True)
    if importlib.util.find_spec("matplotlib") is not None:
        paths.append(paths[0].with_suffix(".png"))
        with atomic_write(paths[1], overwrite=True) as temporary:
            _plot(result, temporary)
    return paths


def _plot(result: Result, path: Path) -> None:
    """Draw one panel for each effect: a bar for the mean of each arm, a dot for each seed."""
    from matplotlib.figure import Figure

    columns = len(result.effects)
    figure = Figure(figsize=(max(4.0, 3.2 * columns), 3.6), layout="constrained")
    figure.suptitle(f"{result.method}: {result.claim.statement}", fontsize=9, wrap=True)
    for axes, effect in zip(figure.subplots(1, columns, squeeze=False)[0], result.effects, strict=True):
        for place, values in enumerate(effect.measured.values()):
            axes.bar(place, sum(values) / len(values), color="0.8")
            axes.plot([place] * len(values), values, "o", color="0.2", markersize=4)
        axes.set_xticks(range(len(effect.measured)), list(effect.measured), rotation=20, fontsize=8)
        axes.set_ylabel(effect.unit)
        axes.set_title(f"{effect.name}\n{'shown' if effect.shown else 'not shown'}", fontsize=8)
    figure.savefig(path, dpi=120)
