"""``efface inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from efface.app.options import HOW, OUTPUT, Input, Json, Weights, parse_shape


def inspect_(
    model: Annotated[
        str,
        Parameter(
            name="MODEL", help="Folder of transformers or diffusers, weights folder of efface, or module:factory."
        ),
    ],
    /,
    *,
    input_: Input = None,
    weights: Weights = None,
    seed: Annotated[int, Parameter(group=HOW, help="Seed of the inputs that are drawn.")] = 0,
    frozen: Annotated[bool, Parameter(group=OUTPUT, help="List also every group that is frozen, and why.")] = False,
    out: Annotated[
        Path | None,
        Parameter(name=["--out", "-o"], group=OUTPUT, help="Picture to draw: .png, .svg or .pdf (extra `plots`)."),
    ] = None,
    overwrite: Annotated[bool, Parameter(group=OUTPUT, help="Replace an earlier picture.")] = False,
    json: Json = False,
) -> None:
    """Print which channels can go together, what is frozen and why, and what each group costs."""
    from efface.app.inspect_report import frozen_table, group_table, lines
    from efface.app.show import print_json, print_rich
    from efface.verbs.inspect import inspect

    found = inspect(model, weights=weights, shape=parse_shape(input_), seed=seed)
    if out is not None:
        found.plot(out, overwrite=overwrite)
    if json:
        print_json({**found.as_dict(), "out": out and str(out)})
        return
    print_rich(group_table(found))
    if frozen:
        print_rich(frozen_table(found))
    for line in lines(found):
        print(line)
    if out is not None:
        print(f"Picture: {out}")
