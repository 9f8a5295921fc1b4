"""Show how a training goes: lines of JSON, a progress bar, sheets of samples, a plot of the losses."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from efface.io.atomic import atomic_write

if TYPE_CHECKING:
    from rich.progress import Progress

    from efface.core.method import Network

GAP = 4  # pixels between the pictures of a sheet


class Log:
    """The file of JSON lines. Values given to :meth:`add` are averaged until :meth:`write`."""

    def __init__(self, path: Path, step: int = 0) -> None:
        """Open the log at ``path``, and drop the lines after ``step``: they tell of steps that are taken again."""
        kept = [line for line in read_log(path) if line["step"] <= step] if path.exists() else []
        with atomic_write(path, overwrite=True) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        self.path, self.sums, self.counts = path, defaultdict[str, Tensor | float](float), defaultdict[str, int](int)

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Count ``values`` into the averages of the next line; scalars stay on their device until then."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value
            self.counts[name] += 1

    def write(self, step: int, **values: Any) -> dict[str, Any]:
        """Append the line of ``step`` with ``values`` and the averages, start new averages, and return the line."""
        averages = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        line = {"step": step} | {
            k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in (values | averages).items()
        }
        self.sums.clear()
        self.counts.clear()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; one that a crash left torn at the end is passed over."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def progress_bar(shown: bool) -> Progress:
    """Return a bar with rate, time left and loss, on the standard error stream; ``shown`` false keeps it silent."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.3g} samples/s  left"),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4g}"),
        console=Console(stderr=True),
        refresh_per_second=4,
        disable=not shown,
    )


def sample_sheet(method: Network, net: nn.Module, batch: Mapping[str, Tensor], path: Path) -> bool:
    """Write what ``net`` makes of ``batch`` as rows of: inputs, output, target. Return False where that is no picture.

    The inputs of the method's card are looked up in the batch by their names, the target as ``target``.
    """
    inputs = [batch[name] for name in method.card.inputs if name in batch]
    if len(inputs) < len(method.card.inputs) or inputs[0].ndim != 4 or inputs[0].shape[1] not in (1, 3):
        return False
    given = dict(zip(method.card.inputs[1:], inputs[1:], strict=True))
    training = net.training
    with torch.inference_mode():
        output = method.run(net.eval(), inputs[0], **given)
    net.train(training)
    columns = [*inputs, output, *([batch["target"]] if "target" in batch else [])]
    _save_sheet(columns, path)
    return True


def _save_sheet(columns: list[Tensor], path: Path) -> None:
    from PIL import Image

    columns = [c.detach().float().cpu().clamp(0, 1).expand(-1, 3, -1, -1) for c in columns]
    sheet = torch.cat([nn.functional.pad(c, (0, GAP, 0, GAP), value=1.0) for c in columns], dim=3)  # (b, 3, h, n * w)
    pixels = (torch.cat(list(sheet), dim=1) * 255).round().to(torch.uint8).permute(1, 2, 0)  # (b * h, n * w, 3)
    with atomic_write(path, overwrite=True) as temporary:
        Image.fromarray(pixels.numpy()).save(temporary)


def plot_losses(lines: list[dict[str, Any]], path: Path) -> bool:
    """Draw the totals and their parts over the steps; return False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in lines:
        for name, value in line.items():
            if name.startswith("loss/"):
                curves[name.removeprefix("loss/")].append((line["step"], value))
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
    positive = all(value > 0 for points in curves.values() for _, value in points)
    axes.set(xlabel="step", ylabel="loss", yscale="log" if positive else "symlog")
    if curves:
        axes.legend()
    with atomic_write(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=120)
    return True
