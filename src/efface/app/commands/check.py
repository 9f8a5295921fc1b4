"""``efface check``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from efface.app.options import HOW, OUTPUT, Device, Json, parse_numbers


def check_(
    names: Annotated[list[str], Parameter(name="METHOD", help="Names of methods; see `efface list`.")],
    /,
    *,
    data: Annotated[Path | None, Parameter(group=HOW, help="Folder of real pictures to measure on.")] = None,
    seeds: Annotated[str, Parameter(group=HOW, help="Seeds to measure with, commas between them.")] = "0,1,2",
    long: Annotated[bool, Parameter(group=HOW, help="Take longer, for a stronger form of the claim.")] = False,
    quick: Annotated[bool, Parameter(group=HOW, help="Only see that it runs; the figures mean nothing.")] = False,
    device: Device = "cpu",
    out: Annotated[
        Path | None,
        Parameter(name=["--out", "-o"], group=OUTPUT, help="Store results here. Default: results, nothing if --quick."),
    ] = None,
    json: Json = False,
) -> int:
    """Measure claims; return 1 if an effect did not show."""
    from efface.app.show import print_json, print_result
    from efface.core.catalogue import entry
    from efface.verbs.check import check, store

    for name in names:
        entry(name)  # a misspelt name costs nothing when it is found before the first measurement
    folder = out if out is not None or quick else Path("results")
    results = []
    for name in names:
        result = check(
            name,
            seeds=parse_numbers(seeds),
            data=data,
            long=long,
            quick=quick,
            device=device,
            progress=lambda line: print(line, file=sys.stderr),
        )
        results.append(result)
        if folder is not None:
            store(result, folder)
        if not json:
            print_result(result)
    if json:
        print_json([result.as_dict() for result in results])
    return 0 if quick or all(result.shown for result in results) else 1
