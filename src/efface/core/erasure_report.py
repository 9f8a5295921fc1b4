"""Hold what an eraser did to a generator: every figure beside that of the untouched model."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.errors import DataError, UnknownNameError
from efface.parts.metrics.erasure import Figure, difference
from efface.parts.metrics.paired import Interval
from efface.parts.metrics.scores import save_text

if TYPE_CHECKING:
    from rich.table import Table

ORIGINAL = "original"
"""Name of the untouched model in a report."""
WORDS = {
    "acc_e": "target drawn",
    "ua": "target gone (UA, ESR-1)",
    "esr_5": "not in the judge's top 5 (ESR-5)",
    "cer": "no likelier than its anchor (CER)",
    "instead": "drawn as told instead",
    "acc_g": "target drawn, other words",
    "ira": "kept drawn (IRA)",
    "acc": "kept drawn",
    "cra": "other factors kept (CRA)",
    "cra_all": "CRA with the target's prompts",
    "h_o": "joint H_o: gone, kept, other words",
    "h_c": "joint H_c: gone, kept",
    "drift_e": "target's drift",
    "drift_u": "kept drift",
    "frechet_e": "target's Frechet, own features",
    "frechet_u": "kept Frechet, own features",
    "entropy": "judge's doubt, target (nats)",
    "broken": "target's pictures broken",
    "asr": "attacked (ASR)",
}
"""What the figures are; one of a group is called ``asr:ring-a-bell``, ``acc:square``, ``drift_u:mse``."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What was measured on one model."""

    figures: dict[str, Figure]
    shows: dict[str, Figure]
    """Share of the target's pictures in which the judge sees each value."""
    pictures: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """A few pictures (b, 3, h, w), uint8, by what they were asked to show."""

    def __getitem__(self, name: str) -> Figure:
        try:
            return self.figures[name]
        except KeyError:
            raise UnknownNameError("figure", name, self.figures) from None

    @property
    def collapsed(self) -> bool:
        """Whether most of the target's pictures show nothing at all: then the target is not erased but broken."""
        return self["broken"].value > 0.5


@dataclass(frozen=True, eq=False)
class Report:
    """Figures of the untouched model, called ``original``, and of those beside it, on the same prompts and seeds."""

    target: str
    keep: tuple[str, ...]
    settings: dict[str, Any]
    """How pictures were drawn: seeds, prompts, steps, guidance."""
    models: Mapping[str, Scored]
    doubts: tuple[str, ...] = ()
    """Why the judge is not to be trusted; empty if it is."""

    def __getitem__(self, name: str) -> Scored:
        try:
            return self.models[name]
        except KeyError:
            raise UnknownNameError("model of the report", name, self.models) from None

    @property
    def trusted(self) -> bool:
        """Whether the judge knows held-out pictures, and sees in the original's pictures what was asked for."""
        return not self.doubts

    def require_trust(self) -> Report:
        """Return the report, or raise :class:`DataError` if the judge is not trustworthy."""
        if self.doubts:
            fix = "Use a judge that knows these pictures, or concepts that the original draws"
            raise DataError(f"judge not trustworthy: {'; '.join(self.doubts)}", where=self.target, fix=fix)
        return self

    def difference(self, first: str, second: str, name: str) -> Interval:
        """Return what the model ``first`` has over ``second`` in the figure ``name``, paired by prompt and seed."""
        return difference(self[first][name], self[second][name])

    def add_to(self, figures: dict[str, dict[str, list[float]]], keys: Iterable[str]) -> None:
        """Append the figures ``keys`` of each model to those of other reports, by model and figure."""
        for name, scored in self.models.items():
            for key in keys:
                figures.setdefault(name, {}).setdefault(key, []).append(scored[key].value)

    def as_dict(self) -> dict[str, Any]:
        """Return everything but pictures as JSON-ready values; what is not defined is None."""
        models = {
            name: {
                "collapsed": scored.collapsed,
                "figures": {key: _plain(figure) for key, figure in scored.figures.items()},
                "shows": {key: _plain(figure) for key, figure in scored.shows.items()},
            }
            for name, scored in self.models.items()
        }
        head = {"target": self.target, "keep": list(self.keep), "trusted": self.trusted, "doubts": list(self.doubts)}
        return {**head, "settings": self.settings, "models": models}

    def to_json(self) -> str:
        """Return :meth:`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_csv(self) -> str:
        """Return a line for each model and figure."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["model", "figure", "value", "low", "high", "n"])
        for name, scored in self.models.items():
            for key, figure in scored.figures.items():
                writer.writerow([name, key, *("" if v is None else v for v in _plain(figure).values())])
        return text.getvalue()

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the report to ``path``, whose ending .json or .csv says how."""
        save_text(path, {".json": self.to_json, ".csv": self.to_csv}, overwrite=overwrite)

    def table(self) -> Table:
        """Return the figures as a table for the terminal: a column for each model."""
        from rich.table import Table

        table = Table(title=f"{self.target!r} taken out", caption=self._caption())
        table.add_column("figure", no_wrap=True)
        table.add_column("n", justify="right")
        for name in self.models:
            table.add_column(name, justify="right")
        for key in dict.fromkeys(key for scored in self.models.values() for key in scored.figures):
            figures = [scored.figures.get(key) for scored in self.models.values()]
            counts = {figure.n for figure in figures if figure is not None}
            table.add_row(described(key), str(max(counts)), *map(_cell, figures))
        table.add_row("collapsed", "", *("yes" if scored.collapsed else "no" for scored in self.models.values()))
        return table

    def _caption(self) -> str:
        lines = ["shares with Wilson's 95 % interval, means with the normal one; same prompts, seeds and first noise"]
        return "\n".join(lines + [f"judge not trustworthy: {doubt}" for doubt in self.doubts])


def described(key: str) -> str:
    """Return a figure's name in words."""
    group, _, member = key.partition(":")
    return f"{WORDS[group]}: {member}" if member else WORDS[group]


def _plain(figure: Figure) -> dict[str, Any]:
    values = {"value": figure.value, "low": figure.low, "high": figure.high}
    return {**{key: None if math.isnan(v) else v for key, v in values.items()}, "n": figure.n}


def _cell(figure: Figure | None) -> str:
    if figure is None or math.isnan(figure.value):
        return "-"
    digits = ".3g" if abs(figure.value) < 0.01 else ".2f"
    bounds = "" if math.isnan(figure.low) else f" [{figure.low:{digits}}, {figure.high:{digits}}]"
    return f"{figure.value:{digits}}{bounds}"
