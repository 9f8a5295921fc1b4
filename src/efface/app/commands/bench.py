"""``efface bench``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from efface.app.options import HOW, OUTPUT, WHAT, WORK, Device, Input, Json, Weights, parse_shape
from efface.errors import UsageError

FIGURES = "bench.json"
"""File that marks a folder as a result of this command."""


def bench_(
    model: Annotated[
        str, Parameter(name="MODEL", help="Folder of transformers or diffusers, weights folder, or module:factory.")
    ],
    plan: Annotated[
        Path | None, Parameter(name="PLAN", help="Folder of a plan, or what `efface shrink` wrote.")
    ] = None,
    /,
    *,
    export: Annotated[
        Literal["column-blocks"] | None,
        Parameter(group=WHAT, help="Also make a plan in which masked layers have this form where it is quicker."),
    ] = None,
    columns: Annotated[
        float | None,
        Parameter(group=WHAT, help="Share of the columns that a block keeps. Default: the density of the mask."),
    ] = None,
    block: Annotated[int, Parameter(group=WHAT, help="Most rows of a block; 128 to 256 are quickest.")] = 256,
    sensitivity: Annotated[
        bool, Parameter(group=WHAT, help="Measure how much of each layer alone is safe to take.")
    ] = False,
    include: Annotated[
        list[str] | None,
        Parameter(group=WHAT, metavar="GLOB", help="Export or look at these weights only. May be repeated."),
    ] = None,
    weights: Weights = None,
    data: Annotated[
        str | None, Parameter(group=HOW, help="What to score on: digits, shapes, or a folder of labelled pictures.")
    ] = None,
    input_: Input = None,
    seed: Annotated[int, Parameter(group=HOW, help="Seed of the input and of a factory's weights.")] = 0,
    device: Device = "auto",
    threads: Annotated[int | None, Parameter(group=WORK, help="Threads of the CPU. Default: all cores.")] = None,
    seconds: Annotated[
        float, Parameter(group=WORK, help="Seconds to time the whole, again its layers, and a tenth for each form.")
    ] = 3.0,
    out: Annotated[
        Path | None,
        Parameter(
            name=["--out", "-o"],
            group=OUTPUT,
            help="Folder for figures, plots and the new plan. Default with --export or --report: NAME_bench, here.",
        ),
    ] = None,
    overwrite: Annotated[bool, Parameter(group=OUTPUT, help="Replace an earlier result.")] = False,
    report: Annotated[
        bool, Parameter(group=OUTPUT, help="Also write a page with tables and plots (extra `plots`).")
    ] = False,
    json: Json = False,
) -> None:
    """Measure a model before and after a plan, and print the figures."""
    if plan is None and export is not None:
        raise UsageError("--export needs a plan", fix="Give one: efface bench MODEL PLAN --export column-blocks")
    if plan is None and not sensitivity:
        raise UsageError("there is nothing to measure", fix="Give a PLAN, or --sensitivity")
    from efface.extras import need
    from efface.io.atomic import write_json
    from efface.io.folders import atomic_folder, check_folder, free_name

    if report or (sensitivity and (out or export)):
        need("matplotlib", extra="plots", job="a plot")
    if out is not None:
        check_folder(out, overwrite=overwrite, ours=FIGURES)  # before the work, not after it

    from efface.app import bench_report
    from efface.app.show import print_json, print_rich, share_bar
    from efface.core.planfile import PLAN
    from efface.parts.timing import using
    from efface.verbs import bench as benches
    from efface.verbs import blocks
    from efface.verbs import sensitivity as sensitivities
    from efface.verbs.subject import subject

    what = subject(model, plan, weights=weights, data=data, shape=parse_shape(input_), seed=seed, device=device)
    globs = include or ["*"]
    found = exported = times = None
    with using(threads), share_bar("opening", shown=not json and sys.stderr.isatty()) as progress:
        if sensitivity:
            found = sensitivities.look(what, include=globs, progress=progress)
        if export is not None:
            exported = blocks.convert(
                what, columns=columns, block=block, include=globs, seconds=seconds / 10, progress=progress
            )
            what = replace(what, plan=exported.plan)
        if what.plan is not None:
            times = benches.measure(what, seconds=seconds, progress=progress)
    results = {"sensitivity": found, "export": exported, "bench": times}
    parts = [
        *(bench_report.sensitivity_parts(found) if found else ()),
        *(bench_report.export_parts(exported) if exported else ()),
        *(bench_report.bench_parts(times) if times else ()),
    ]
    figures = {name: result.as_dict() for name, result in results.items() if result is not None}
    folder = out or (free_name(Path(f"{what.opened.name}_bench")) if exported or report else None)
    if folder is not None:
        with atomic_folder(folder, overwrite=overwrite, ours=FIGURES) as new:
            write_json(new / FIGURES, figures)
            if exported and exported.replaced:
                exported.plan.save(new / PLAN)
            if found:
                found.plot(new / "sensitivity.png")
            if times and report:
                bench_report.plot_times(times, new / "times.png")
            if report:
                bench_report.write_page(parts, sorted(new.glob("*.png")), new)
    if json:
        print_json({"out": folder and str(folder), **figures})
        return
    print_rich(*parts)
    if folder is not None:
        print(f"Figures: {folder / FIGURES}")
        if report:
            print(f"Report: {folder / bench_report.PAGE}")
        if exported and exported.replaced:
            print(f"New plan: {folder / PLAN}")
