"""Show what a plan would take from a model, edit by edit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from efface.core.ops import Row
from efface.extras import need
from efface.io.atomic import atomic_write

if TYPE_CHECKING:
    from rich.table import Table

WIDEST = 60
"""Most bars in a plot; of more edits, those that take the largest share are drawn."""


@dataclass(frozen=True)
class Diff:
    """Rows of what the edits of a plan would do, in their order."""

    name: str
    rows: tuple[Row, ...]

    @property
    def weights(self) -> int:
        """Weights of all targets, before."""
        return sum(row.weights for row in self.rows)

    @property
    def removed(self) -> int:
        """Weights that would go."""
        return sum(row.removed for row in self.rows)

    @property
    def share(self) -> float:
        """Share of the weights of all targets that would go."""
        return self.removed / self.weights if self.weights else 0.0

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120, color_system=None)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get()

    def table(self) -> Table:
        """Return the rows as a table for the terminal."""
        from rich import box
        from rich.table import Table

        table = Table(title=f"{self.name}: what would go", box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
        total = f"{self.removed:,}"
        foot = ("all", "", "", f"{self.weights:,}", f"{self.weights - self.removed:,}", total, f"{self.share:.1%}", "")
        heads = ("layer", "edit", "shape", "weights", "kept", "removed", "share", "norm")
        for number, (head, end) in enumerate(zip(heads, foot, strict=True)):
            table.add_column(head, end, justify="left" if number < 3 else "right", overflow="fold")
        for row in self.rows:
            counts = (f"{n:,}" for n in (row.weights, row.kept, row.removed))
            shape = " x ".join(map(str, row.shape))
            table.add_row(row.target, row.op, shape, *counts, f"{row.share:.1%}", f"{row.norm:.4g}")
        return table

    def plot(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Draw the share of weights and the norm that would go from each layer, as .png, .svg or .pdf."""
        figure = need("matplotlib.figure", extra="plots", job="a plot of a plan").Figure
        largest = sorted(self.rows, key=lambda row: -row.share)[:WIDEST]
        rows = [row for row in reversed(self.rows) if row in largest]
        sheet = figure(figsize=(9, 1.5 + 0.22 * len(rows)), layout="constrained")
        shares, norms = sheet.subplots(1, 2, sharey=True)
        names = [row.target for row in rows]
        shares.barh(names, [100 * row.share for row in rows], color="tab:red")
        norms.barh(names, [row.norm for row in rows], color="tab:blue")
        shares.set(xlabel="weights that would go (%)", xlim=(0, 100))
        norms.set(xlabel="L2 norm of what would go")
        sheet.suptitle(f"{self.name}: {self.removed:,} of {self.weights:,} weights ({self.share:.1%})")
        with atomic_write(path, overwrite=overwrite) as temporary:
            sheet.savefig(temporary, dpi=120)
