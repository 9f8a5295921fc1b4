"""Draw the channels of a network: a line for each layer, a colour for each group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from efface.extras import need
from efface.io.atomic import atomic_write

if TYPE_CHECKING:
    from efface.verbs.inspect import Inspection

MOST_LAYERS = 120
"""Layers that are drawn; of a larger network, the first."""
COLOURS = 20


def plot(inspection: Inspection, path: Path | str, *, overwrite: bool = False) -> None:
    """Draw for each layer its dimensions one beside the other, as wide as their channels, coloured by group.

    Dimensions of one colour lose channels together; grey is frozen.
    """
    figure = need("matplotlib.figure", extra="plots", job="a plot of channels").Figure
    matplotlib = need("matplotlib", extra="plots", job="a plot of channels")
    colours = matplotlib.colormaps["tab20"]
    bars: dict[str, list[tuple[int, object, str]]] = {}
    for number, row in enumerate(inspection.free):
        for member in inspection.graph.groups[row.name].members:
            count = int((member.classes >= 0).sum())
            side = "makes" if member.dim == 0 else "reads"
            bars.setdefault(member.name, []).append((count, colours(number % COLOURS), side))
    names = [name for name in inspection.graph.trace.tensors if name in bars and name.endswith("weight")][:MOST_LAYERS]
    sheet = figure(figsize=(10, 1.6 + 0.2 * len(names)), layout="constrained")
    made, read = sheet.subplots(1, 2, sharey=True)
    for axes, side in ((made, "makes"), (read, "reads")):
        for place, name in enumerate(names):
            left = 0
            for count, colour, which in bars[name]:
                if which == side:
                    axes.barh(place, count, left=left, color=colour, edgecolor="white", linewidth=0.5)
                    left += count
        axes.set(xlabel=f"channels that the layer {side}", yticks=range(len(names)), yticklabels=names)
        axes.margins(y=0.01)
    made.invert_yaxis()
    title = f"{inspection.model}: {len(inspection.free)} groups, one colour each; what has no bar is frozen"
    sheet.suptitle(title)
    with atomic_write(path, overwrite=overwrite) as temporary:
        sheet.savefig(temporary, dpi=120)
