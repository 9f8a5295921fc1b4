"""Print what the verbs return: tables for people, JSON for programs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from efface.core.catalogue import Entry, Param
from efface.core.claim import Effect, Result
from efface.verbs.find import Description

if TYPE_CHECKING:
    from efface.verbs.batch import Summary


def print_json(value: Any) -> None:
    """Print ``value`` as JSON on standard output, which carries nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_rich(*parts: Text | Table) -> None:
    """Print ``parts`` on standard output, 120 columns wide where that is no terminal."""
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=120)
    for part in parts:
        console.print(part)


def print_list(entries: Sequence[Entry]) -> None:
    """Print one line for each method."""
    if not entries:
        print("no method has all of these words")
        return
    rows = [(e.name, e.card.task, str(e.card.year), e.card.good_at or e.card.title) for e in entries]
    print_rich(_table(("method", "takes away", "year", "good at"), rows))


def print_description(found: Description) -> None:
    """Print a method's docstring, card, hyper-parameters, shipped weights and evidence."""
    entry = found.entry
    print_rich(Text(f"{entry.name}  ({entry.subject})", style="bold"), Text(entry.doc + "\n"))
    card = {k: v for k, v in entry.card.as_dict().items() if v not in ("", [])}
    shown = [(k, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for k, v in card.items()]
    print_rich(_table(("card", ""), shown))
    rows = [(p.name, str(p.default), bounds(p), p.help) for p in entry.params]
    print_rich(_table(("hyper-parameter", "default", "range", "is"), rows))
    for name, weights in found.weights.items():
        size = sum(file["bytes"] for file in weights["files"].values()) / 1e6
        print_rich(Text(f"weights {name}: {size:.1f} MB, comes with the package"))
    if found.result is None:
        print_rich(Text(f"No evidence is stored here; measure it with: efface check {entry.name}"))
    else:
        print_result(found.result)


def print_result(result: Result) -> None:
    """Print the effects of a claim as measured."""
    print_rich(Text(f"{result.method}: {result.claim.statement}", style="bold"))
    print_rich(Text(f"beside {result.claim.baseline}, on {result.data}, {result.seconds:.0f} s, seeds {result.seeds}"))
    rows = [(e.name, measured(e), e.rule, "yes" if e.shown else "no") for e in result.effects]
    print_rich(_table(("effect", "measured", "counts as shown when", "shown"), rows))


def print_summary(summary: Summary) -> None:
    """Print what became of each picture, why it failed, and what was left out; after a dry run, the words found."""
    for item in summary.items:
        if item.status == "done":
            taken = [text for text in item.details["texts"] if text["taken"]]
            notes = [
                *([f"{len(taken)} text{'s' * (len(taken) != 1)}"] if item.details["texts"] else []),
                *item.details["notes"],
            ]
            print(f"{item.output}  ({', '.join([*notes, f'{item.seconds:.1f} s'])})")
            for text in item.details["texts"] if summary.dry_run else ():
                print(f"  {'goes ' if text['taken'] else 'stays'}  {text['confidence']:.2f}  {_words(text)}")
        elif item.status == "skipped" and len(summary.items) == 1:
            print(f"{item.output}  ({item.reason})")
    for item in summary.items:
        if item.status == "failed":
            print(f"error: {item.reason}", file=sys.stderr)
    if len(summary.items) > 1:
        counts = ", ".join(f"{summary.count(status)} {status}" for status in ("done", "failed", "skipped"))
        print(f"{counts}, {summary.seconds:.1f} s")
    if summary.left_out:
        reasons = Counter(summary.left_out.values())
        print(f"left out: {', '.join(f'{count} {reason}' for reason, count in reasons.items())}")


@contextlib.contextmanager
def progress_bar(*, shown: bool) -> Iterator[Callable[[float, int, str], None]]:
    """Yield what is to be told how many pictures are done; show how far the work is, its rate and the time left."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
        task = bar.add_task("cleaning", total=None, rate="")

        def tell(done: float, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=escape(what))
            elapsed = bar.tasks[task].elapsed
            if elapsed and done >= 1:
                bar.update(task, rate=f"{done / elapsed:.2g} pictures/s, left")

        yield tell


@contextlib.contextmanager
def share_bar(first: str, *, shown: bool) -> Iterator[Callable[[float, str], None]]:
    """Yield what is to be told the share of the work that is done and what comes next after ``first``; show both."""
    with Progress(console=Console(stderr=True), disable=not shown, transient=True) as bar:
        task = bar.add_task(first, total=1.0)
        yield lambda share, what: bar.update(task, completed=share, description=what)


def measured(effect: Effect) -> str:
    """Return the mean of each arm of ``effect`` in one line, with the lowest and highest of several seeds."""
    return "; ".join(f"{arm} {_span(values)} {effect.unit}".rstrip() for arm, values in effect.measured.items())


def bounds(param: Param) -> str:
    """Return the values that a hyper-parameter may take, in words."""
    if param.choices is not None:
        return ", ".join(map(str, param.choices))
    if param.low is None and param.high is None:
        return ""
    return f"{'' if param.low is None else param.low} to {'' if param.high is None else param.high}".strip()


def _span(values: Sequence[float]) -> str:
    mean = f"{sum(values) / len(values):.4g}"
    return mean if min(values) == max(values) else f"{mean} ({min(values):.4g} to {max(values):.4g})"


def _words(text: dict[str, Any]) -> str:
    return f"{text['words']!r}" + ("" if text["taken"] else f"  ({text['stays']})")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
