"""Hold the scores of a set of pictures, sum them up, and show them as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import UsageError
from efface.io.atomic import write_text
from efface.parts.metrics.pixels import CAP

if TYPE_CHECKING:
    from rich.table import Table

BETTER = {
    "psnr": "higher",
    "psnr_m": "higher",
    "psnr_bg": "higher",
    "mse": "lower",
    "ssim": "higher",
    "ssim_m": "higher",
    "mssim_legacy": "higher",
    "ms_ssim": "higher",
    "age": "lower",
    "peps": "lower",
    "pceps": "lower",
    "legacy_psnr": "higher",
    "legacy_mse": "lower",
    "legacy_mssim": "higher",
    "legacy_age": "lower",
    "legacy_peps": "lower",
    "legacy_pceps": "lower",
    "keep_err": "lower",
    "rim": "lower",
    "r_det": "lower",
}
"""Measures in the order in which they are shown, and which way is better."""


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of one measure over the ``n`` pictures that have it.

    ``capped`` of them reached the largest PSNR that is reported, so that the mean says less.
    """

    mean: float
    std: float
    n: int
    capped: int = 0


@dataclass(frozen=True)
class Row:
    """Scores of one picture."""

    name: str
    values: dict[str, float]
    skipped: bool = False
    """In no mean of a legacy measure: these leave out what equals its truth."""
    composited: bool | None = None
    """Whether the output equals the input outside the mask; None where that is not known."""

    def counted(self, name: str) -> float:
        """Return what counts into the mean of a measure, nan for nothing."""
        return math.nan if self.skipped and name.startswith("legacy_") else self.values.get(name, math.nan)

    @property
    def capped(self) -> list[str]:
        """Measures that reached the largest PSNR that is reported."""
        return [k for k, v in self.values.items() if "psnr" in k and v >= CAP]


@dataclass(frozen=True)
class Scores:
    """Scores of a set of pictures: a row each, what was found over the whole set, and which forms were taken."""

    rows: list[Row]
    forms: dict[str, str]
    """In words: which forms of the measures, whether composited, which detector."""
    whole_set: dict[str, float] = field(default_factory=dict)
    """What has no value per picture: recalls pooled over all texts, feature distance."""

    @property
    def summary(self) -> dict[str, Summary]:
        """Sum up each measure over the pictures that have it; the order of the pictures makes no difference."""
        return {
            name: _summarise(name, [v for row in self.rows if not math.isnan(v := row.counted(name))])
            for name in BETTER
            if any(name in row.values for row in self.rows)
        }

    def table(self) -> Table:
        """Return the summary as a table for the terminal."""
        from rich.table import Table

        title = f"{len(self.rows)} picture{'s' * (len(self.rows) != 1)}"
        if skipped := sum(row.skipped for row in self.rows):
            title += f", {skipped} skipped by legacy measures"
        table = Table(title=title, caption=self._caption())
        for heading in ("measure", "mean", "std", "n", "better"):
            table.add_column(heading, justify="left" if heading in ("measure", "better") else "right")
        for name, s in self.summary.items():
            mean = _digits(s.mean) + ("*" if s.capped else "")
            table.add_row(name, mean, _digits(s.std), str(s.n), BETTER[name])
        for name, value in self.whole_set.items():
            table.add_row(name, _digits(value), "", "set", "")
        return table

    def to_json(self) -> str:
        """Return everything as JSON; measures that are not defined are null."""
        content = {
            "forms": self.forms,
            "summary": {name: vars(s) for name, s in self.summary.items()},
            "set": self.whole_set,
            "pictures": [{**vars(row), "capped": row.capped} for row in self.rows],
        }
        return json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False)

    def to_csv(self) -> str:
        """Return a line per picture as CSV; measures that are not defined are empty."""
        names = [name for name in BETTER if any(name in row.values for row in self.rows)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["name", *names, "capped", "skipped"])
        for row in self.rows:
            values = [row.values.get(name, math.nan) for name in names]
            cells = ["" if math.isnan(v) else repr(v) for v in values]
            writer.writerow([row.name, *cells, " ".join(row.capped), int(row.skipped)])
        return text.getvalue()

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the scores to ``path``, whose ending .json or .csv says how.

        Raises :class:`UsageError` for another ending and :class:`OutputError` where it cannot be written.
        """
        save_text(path, {".json": self.to_json, ".csv": self.to_csv}, overwrite=overwrite)

    def _caption(self) -> str:
        forms = [f"{name}: {words}" for name, words in self.forms.items()]
        starred = any(s.capped for s in self.summary.values())
        return "\n".join(forms + [f"* holds values capped at {CAP:g} dB"] * starred)


def save_text(path: str | Path, forms: Mapping[str, Callable[[], str]], *, overwrite: bool = False) -> None:
    """Write to ``path`` what the one of ``forms`` gives that belongs to its ending.

    Raises :class:`UsageError` for another ending and :class:`OutputError` where it cannot be written.
    """
    if (suffix := Path(path).suffix.lower()) not in forms:
        what, fix = f"scores are saved as {' or '.join(forms)}", "Choose a name with such an ending"
        raise UsageError(what, where=path, fix=fix)
    write_text(path, forms[suffix]().rstrip("\n") + "\n", overwrite=overwrite)


def _summarise(name: str, values: list[float]) -> Summary:
    """Sum up with sums that depend on no order."""
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else math.nan
    return Summary(mean, std, n, sum(v >= CAP for v in values) if "psnr" in name else 0)


def _digits(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}" if abs(value) < 1 else f"{value:.3f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
