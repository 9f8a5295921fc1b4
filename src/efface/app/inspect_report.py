"""Show what an inspection found: tables of groups for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from efface.parts.counting import CONVENTION
from efface.verbs.inspect import Inspection, Row

SHOWN = 3
"""Layers of a group that its row names."""


def group_table(found: Inspection) -> Table:
    """Return a row for each group that can lose channels: its size, its layers, parameters and FLOPs."""
    table = _table(f"{found.model}: {len(found.free)} groups can lose channels", ("group", "channels", "layers"))
    for head in ("parameters", "share", "FLOPs", "share", "removal is zeroing"):
        table.add_column(head, justify="right")
    for row in found.free:
        channels = str(row.channels) if row.width == 1 else f"{row.channels} x {row.width}"
        parameters = f"{row.parameters:,}", f"{row.parameters / max(1, found.parameters):.1%}"
        flops = f"{row.flops:,}", f"{row.flops / max(1, found.flops):.1%}"
        exact = "yes" if row.invariant else "but for norms"
        table.add_row(row.name, channels, _layers(row), *parameters, *flops, exact)
    return table


def frozen_table(found: Inspection) -> Table:
    """Return a row for each group that is frozen, and why it is."""
    table = _table(f"{len(found.frozen)} groups are frozen", ("group", "channels", "why"))
    for row in found.frozen:
        table.add_row(row.name, str(row.channels), row.frozen)
    return table


def lines(found: Inspection) -> list[str]:
    """Return what there is to say besides: what is frozen, operations that are not known, how FLOPs are counted."""
    total = f"{found.parameters:,} parameters, {found.flops:,} FLOPs in all ({CONVENTION}); a weight is in the group of"
    return [
        f"{total} the channels that it makes and in that of those that it reads",
        f"{len(found.frozen)} groups are frozen; --frozen says why",
        *(f"Unknown operation, frozen: {told}" for told in found.unknown),
        f"Analysis: {found.seconds:.1f} s",
    ]


def _layers(row: Row) -> str:
    names = list(dict.fromkeys(name.rpartition(".")[0] or name for name in row.layers))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _table(title: str, heads: tuple[str, ...]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for head in heads:
        table.add_column(head, overflow="fold", justify="right" if head == "channels" else "left")
    return table
