"""Show what a shrinking took: a table of layers for the terminal, and a page with plots."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from efface.app.report import STYLE
from efface.extras import need
from efface.io.atomic import write_text
from efface.verbs.shrunk import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from efface.parts.onnx import Parity

PAGE = "report.html"
HEADS = ("layer", "shape", "weights", "kept", "density", "share of kept")
MOST_BARS = 80
"""Layers that the plot shows; of more, as many as fit at equal distances."""
TABLE_STYLE = """
table { border-collapse: collapse; font-size: .9rem } td, th { padding: .15rem .8rem .15rem 0; text-align: right }
td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere } img { background: white }
"""


def tables(report: Report) -> list[Table]:
    """Return what to print: layers, channels where some went, and costs."""
    return [layer_table(report), *([channel_table(report)] if report.channels else []), report.cost.table()]


def channel_table(report: Report) -> Table:
    """Return a row for each group of channels: how many there were and are."""
    table = Table(title="Channels that go together", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for number, head in enumerate(("group", "before", "after", "left")):
        table.add_column(head, justify="right" if number else "left", overflow="fold")
    for row in report.channels:
        table.add_row(row.group, f"{row.before:,}", f"{row.after:,}", f"{row.after / row.before:.1%}")
    return table


def layer_table(report: Report) -> Table:
    """Return a row for each layer: how many of its weights stay, and their share of all that stay."""
    *rows, total = _rows(report)
    table = Table(title=title(report), box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True, title_justify="left")
    for number, (head, foot) in enumerate(zip(HEADS, total, strict=True)):
        table.add_column(head, foot, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def title(report: Report) -> str:
    """Say in one line what was done to which model."""
    return f"{report.model}: {report.method} takes {report.sparsity:.2%} of the prunable weights"


def lines(report: Report) -> list[str]:
    """Return what there is to say besides: share of all parameters, accuracy, notes of the method."""
    gone = 1 - report.cost.kept / report.cost.parameters
    told = [f"Of all parameters, biases and norms included, {gone:.2%} went"]
    if report.score_before is not None and report.score_after is not None:
        before, after = 100 * report.score_before.accuracy, 100 * report.score_after.accuracy
        told.append(f"Accuracy on {report.data}: {before:.2f} % before, {after:.2f} % after")
    if (time := report.latency) is not None:
        before, after = 1000 * time.before, 1000 * time.after
        told.append(f"A call with a batch of {time.batch}: {before:.3g} ms before, {after:.3g} ms after")
    return told + [f"Note: {note}" for note in report.notes]


def parity_line(parity: Parity) -> str:
    """Say where the ONNX file is, and how near it comes to the model."""
    batches = " and ".join(map(str, parity.batches))
    away = f"differs by {parity.difference:.1e} of the largest output" if parity.difference else "gives the same"
    return f"ONNX: {parity.path}, {away} at batches of {batches}"


def write_page(report: Report, folder: Path) -> Path:
    """Write a page with tables and plots into ``folder`` and return its path. Needs the extra `plots`."""
    images = "".join(
        f'<figure><img src="data:image/png;base64,{_png(plot(report))}" alt="{name}"><figcaption>{name}</figcaption>'
        "</figure>"
        for name, plot in (
            ("Density of each layer", plot_densities),
            ("Weights before and after", plot_weights),
            ("Cost before and after", plot_cost),
        )
    )
    head = html.escape(title(report))
    body = "".join(f"<p>{html.escape(line)}</p>" for line in [*lines(report), report.cost.convention])
    heads = _line(HEADS, "th")
    rows = "\n".join(_line(row, "td") for row in _rows(report))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{head}</title><style>{STYLE}{TABLE_STYLE}</style>\n<h1>{head}</h1>\n{body}\n{images}\n"
        f"<table><thead>{heads}</thead>\n{rows}</table>\n</html>\n"
    )
    write_text(folder / PAGE, page, overwrite=True)
    return folder / PAGE


def plot_densities(report: Report) -> Figure:
    """Draw the density of each layer as a bar, and that of all as a line."""
    step = -(-len(report.layers) // MOST_BARS)
    layers = report.layers[::step]
    figure, axes = _sheet(height=1.2 + 0.2 * len(layers))
    axes.barh([layer.name for layer in layers], [layer.density for layer in layers], color="tab:blue")
    axes.axvline(1 - report.sparsity, color="tab:red", linewidth=1)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set(xlabel="share of the weights that stay; the line is that of all layers together", xlim=(0, 1))
    return figure


def plot_weights(report: Report) -> Figure:
    """Draw how many weights have which value, before and after, zeros left out."""
    figure, axes = _sheet(height=3.5)
    for counts, name in ((report.before, "before"), (report.after, "after")):
        axes.stairs(counts, report.edges, label=name, fill=name == "after", alpha=0.7)
    axes.set(xlabel="value of a weight (zeros left out, the outermost bins hold what lies beyond)", ylabel="weights")
    axes.set_yscale("symlog")
    axes.legend()
    return figure


def plot_cost(report: Report) -> Figure:
    """Draw what is left of parameters, FLOPs and bytes, and the accuracy where it was measured."""
    cost = report.cost
    left = {"parameters": cost.kept / cost.parameters}
    if cost.flops and cost.flops_after is not None:
        left["FLOPs, in theory"] = cost.flops_after / cost.flops
    left |= {"bytes, dense": cost.dense_after / cost.dense, "bytes, sparse": cost.sparse_after / cost.dense}
    if report.score_before is not None and report.score_after is not None:
        left |= {"accuracy before": report.score_before.accuracy, "accuracy after": report.score_after.accuracy}
    figure, axes = _sheet(height=1 + 0.35 * len(left))
    bars = axes.barh(list(left), list(left.values()), color="tab:blue")
    axes.bar_label(bars, [f"{share:.1%}" for share in left.values()], padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="share of what it was before; accuracy as it is", xlim=(0, 1.15))
    return figure


def _rows(report: Report) -> list[Sequence[str]]:
    kept, weights = (sum(getattr(layer, name) for layer in report.layers) for name in ("kept", "weights"))
    rows: list[Sequence[str]] = []
    for layer in report.layers:
        shape = " x ".join(map(str, layer.shape))
        if layer.shape_after != layer.shape:
            shape += f" → {' x '.join(map(str, layer.shape_after)) if layer.shape_after else 'none'}"
        counts = f"{layer.weights:,}", f"{layer.kept:,}", f"{layer.density:.2%}"
        rows.append((layer.name, shape, *counts, f"{layer.kept / max(1, kept):.2%}"))
    return [*rows, ("all", "", f"{weights:,}", f"{kept:,}", f"{kept / weights:.2%}", "")]


def _sheet(height: float) -> tuple[Figure, Any]:
    figure = need("matplotlib.figure", extra="plots", job="--report").Figure(figsize=(9, height), layout="constrained")
    return figure, figure.subplots()


def _png(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return base64.b64encode(file.getvalue()).decode()


def _line(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
