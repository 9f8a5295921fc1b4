"""Tell how well a network heals: what it gains, in training on, after a part of its weights went (arXiv:2106.10404)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from efface.extras import need
from efface.io.atomic import atomic_write
from efface.parts.sparsity.regimes import Growth

if TYPE_CHECKING:
    from rich.table import Table

Criterion = Literal["magnitude", "random", "gradient", "snip", "momentum"]


@dataclass(frozen=True)
class Wound:
    """One pruning of a network in training, and what it had become some steps later; accuracies in [0, 1]."""

    step: int
    """Steps of training before it."""
    rate: float
    """Share of the live weights that went."""
    criterion: Criterion
    regrown: Growth
    """By what as many weights grew back at once."""
    before: float
    after: float

    @property
    def plasticity(self) -> float:
        """What was gained, or lost if negative."""
        return self.after - self.before


@dataclass(frozen=True)
class Plasticity:
    """How a network heals, by the time of the pruning and by its kind."""

    wounds: tuple[Wound, ...]

    def table(self) -> Table:
        """Return the wounds as a table for the terminal, accuracies in percent."""
        from rich import box
        from rich.table import Table

        table = Table(title="pruning plasticity", box=box.SIMPLE_HEAD, pad_edge=False)
        for head in ("step", "pruned", "by", "regrown by", "before", "after", "plasticity"):
            table.add_column(head, justify="left" if "by" in head else "right")
        for w in self.wounds:
            values = (f"{100 * w.before:.1f} %", f"{100 * w.after:.1f} %", f"{100 * w.plasticity:+.1f}")
            table.add_row(str(w.step), f"{w.rate:.0%}", w.criterion, w.regrown, *values)
        return table

    def plot(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Draw plasticity over steps, a line for each kind of pruning, as .png, .svg or .pdf."""
        figure = need("matplotlib.figure", extra="plots", job="a plot of plasticity").Figure
        sheet = figure(figsize=(8, 5), layout="constrained")
        axes = sheet.subplots()
        for rate, criterion, regrown in dict.fromkeys((w.rate, w.criterion, w.regrown) for w in self.wounds):
            line = [w for w in self.wounds if (w.rate, w.criterion, w.regrown) == (rate, criterion, regrown)]
            label = f"{rate:.0%} by {criterion}" + (f", regrown by {regrown}" if regrown != "none" else "")
            axes.plot([w.step for w in line], [100 * w.plasticity for w in line], marker="o", label=label)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set(xlabel="step of the pruning", ylabel="accuracy after healing - before pruning (points)")
        axes.legend(fontsize="small")
        with atomic_write(path, overwrite=overwrite) as temporary:
            sheet.savefig(temporary, dpi=120)
