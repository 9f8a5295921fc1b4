"""Show what was measured of a plan: tables for the terminal, and the same with plots as a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from efface.extras import need
from efface.io.atomic import atomic_write, write_text
from efface.parts.data.tasks import Score
from efface.parts.timing import Timing
from efface.verbs.bench import Bench
from efface.verbs.blocks import Exported
from efface.verbs.sensitivity import Sensitivity

PAGE = "report.html"
FORMAT = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>efface bench</title>'
    "<style>{stylesheet} body {{ color: {foreground}; background: {background} }}</style>"
    "<pre><code>{code}</code></pre>"
)


def bench_parts(bench: Bench) -> list[RenderableType]:
    """Return the times of the layers and of the whole, what the plan costs, and notes."""
    shapes = ", ".join("x".join(map(str, shape)) for shape in bench.shapes)
    title = f"{bench.model}, {bench.plan}: input {shapes}, {bench.dtype}, {bench.device}, {bench.threads} threads"
    rows = [
        (layer.name, layer.kind, f"{layer.density:.1%}", *_times(layer.before, layer.after)) for layer in bench.layers
    ]
    heads = ("layer", "kind", "density", "before, ms", "after, ms", "speed-up")
    total = ("whole model", "", "", *_times(bench.before, bench.after))
    table = _table(title, heads, [*rows, total], left=2)
    said = "Times are medians of warm calls in turns, ± half the distance between their quartiles."
    scores = (("before", bench.score_before), ("after", bench.score_after))
    return [table, said, bench.cost.table(), *_accuracy(bench.data, scores), *bench.notes]


def export_parts(exported: Exported) -> list[RenderableType]:
    """Return what column blocks make of each masked layer, and what that does to the accuracy."""
    heads = ("layer", "kept as", "speed-up", "density", "columns kept", "of the mask kept")
    rows = [
        (la.name, la.form, f"{la.speedup:.2f}", f"{la.density:.1%}", f"{la.columns:.1%}", f"{la.coverage:.1%}")
        for la in exported.layers
    ]
    table = _table("Column blocks, where they win when timed", heads, rows, left=2)
    said = f"{len(exported.replaced)} of {len(exported.layers)} masked layers are quicker in column blocks"
    if exported.replaced:
        said += f"; {exported.coverage:.1%} of the weights that their masks keep are still there"
        said += ", and with them the others of their columns, which the masks had taken" if exported.revived else ""
    scores = (
        ("original", exported.score_original),
        ("with the plan", exported.score_before),
        ("with column blocks", exported.score_after),
    )
    return [table, said + ".", *_accuracy(exported.data, scores)]


def sensitivity_parts(found: Sensitivity) -> list[RenderableType]:
    """Return the measure of each layer at each sparsity, and how much is safe to take."""
    heads = ("layer", "weights", *(f"{sparsity:.0%}" for sparsity in found.sparsities), "safe")
    rows = [
        (layer.name, f"{layer.weights:,}", *(f"{value:.3f}" for value in layer.values), f"{layer.safe:.0%}")
        for layer in found.layers
    ]
    title = f"{found.model}: {found.measure} as a layer alone loses its smallest weights"
    where = "" if found.data is None else f" on {found.data}"
    said = f"Dense: {found.base:.3f}{where}. Safe: within {found.tolerance:g} of that up to this share."
    return [_table(title, heads, rows, left=1), said]


def plot_times(bench: Bench, path: Path) -> None:
    """Draw how long each layer takes before and after, as .png, .svg or .pdf."""
    figure = need("matplotlib.figure", extra="plots", job="--report").Figure
    sheet = figure(figsize=(9, 1.5 + 0.3 * len(bench.layers)), layout="constrained")
    axes = sheet.subplots()
    for shift, name, colour in ((-0.2, "before", "tab:grey"), (0.2, "after", "tab:blue")):
        times = [1e3 * getattr(layer, name).seconds for layer in bench.layers]
        axes.barh([place + shift for place in range(len(times))], times, 0.4, label=name, color=colour)
    axes.set_yticks(range(len(bench.layers)), [layer.name for layer in bench.layers])
    axes.invert_yaxis()
    axes.set(xlabel="median, ms", title=f"{bench.model}, {bench.plan}: {bench.speedup:.2f} times as quick")
    axes.legend()
    with atomic_write(path) as temporary:
        sheet.savefig(temporary, dpi=120)


def write_page(parts: Iterable[RenderableType], plots: Iterable[Path], folder: Path) -> Path:
    """Write ``parts`` as a page with the pictures ``plots`` in it into ``folder``, and return its path."""
    console = Console(record=True, file=io.StringIO(), width=150, highlight=False)
    for part in parts:
        console.print(part, "")
    images = (base64.b64encode(plot.read_bytes()).decode() for plot in plots)
    page = console.export_html(code_format=FORMAT)
    page += "".join(f'<img src="data:image/png;base64,{image}" alt="plot" style="max-width: 100%">' for image in images)
    write_text(folder / PAGE, page + "\n</html>\n")
    return folder / PAGE


def _times(before: Timing, after: Timing) -> tuple[str, str, str]:
    return _time(before), _time(after), f"{before.seconds / after.seconds:.2f}"


def _time(timing: Timing) -> str:
    return f"{1e3 * timing.seconds:.3g} ± {(timing.high - timing.low) / 2 / timing.seconds:.0%}"


def _accuracy(data: str | None, scores: Iterable[tuple[str, Score | None]]) -> list[str]:
    told = [f"{100 * score.accuracy:.2f} % {name}" for name, score in scores if score is not None]
    return [f"Accuracy on {data}: {', '.join(told)}"] if told else []


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
