"""``efface clean``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from efface.app.options import HOW, OUTPUT, WHAT, WORK, Device, Json
from efface.errors import EffaceError, UsageError


def clean_(
    inputs: Annotated[
        list[str], Parameter(name="PICTURE|FOLDER|GLOB...", help='What to clean; quote patterns: "scans/*.png".')
    ],
    /,
    *,
    remove: Annotated[Literal["text"], Parameter(group=WHAT, help="What goes.")] = "text",
    mask: Annotated[
        Path | None,
        Parameter(
            group=WHAT, help="Mask (white goes), or a folder of masks with the pictures' names. Default: find text."
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        Parameter(
            group=WHAT,
            metavar="X,Y,W,H",
            help="Take away what is in this box: left, top, width, height in pixels. May be repeated.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        Parameter(
            group=WHAT,
            metavar="X,Y,W,H|WORDS",
            help="Leave this region as it is, left, top, width, height in pixels; or the text that matches this "
            "regular expression: ^ before or $ behind words that look like a region. May be repeated.",
        ),
    ] = None,
    only: Annotated[
        str | None,
        Parameter(group=WHAT, help="Take away only text whose recognised words match this regular expression."),
    ] = None,
    confidence: Annotated[
        float, Parameter(group=WHAT, help="Take away only text found with at least this confidence, 0 to 1.")
    ] = 0.5,
    grow: Annotated[int | None, Parameter(group=WHAT, help="Grow the mask by this many pixels.")] = None,
    method: Annotated[str | None, Parameter(group=HOW, help="Method to use; see `efface list`.")] = None,
    fast: Annotated[
        bool, Parameter(group=HOW, help="Use the quickest good method; today the same as the default.")
    ] = False,
    best: Annotated[
        bool, Parameter(group=HOW, help="Average four mirrored views: better pictures, in up to four times as long.")
    ] = False,
    iterations: Annotated[
        int | None, Parameter(group=HOW, help="How often an iterative method refines. Default: as it was trained.")
    ] = None,
    weights: Annotated[
        Path | None, Parameter(group=HOW, help="Weights folder instead of the one that comes along.")
    ] = None,
    feather: Annotated[
        int, Parameter(group=HOW, help="Fade into the picture over this many pixels around the mask.")
    ] = 2,
    device: Device = "auto",
    memory: Annotated[
        str, Parameter(group=WORK, help="Memory that each worker stays within, such as 1500MB or 2GB.")
    ] = "2GB",
    max_pixels: Annotated[int, Parameter(group=WORK, help="Pixels of the largest picture to read.")] = 300_000_000,
    workers: Annotated[int, Parameter(group=WORK, help="Pictures to clean at the same time.")] = 1,
    engine: Annotated[
        Literal["local", "ray"], Parameter(group=WORK, help="Run here, or on a Ray cluster (extra `cluster`).")
    ] = "local",
    resume: Annotated[
        bool, Parameter(group=WORK, help="Go on with a folder where it stopped; done pictures stay.")
    ] = False,
    dry_run: Annotated[
        bool, Parameter(group=WORK, help="Clean nothing: draw the boxes and list the words found.")
    ] = False,
    out: Annotated[
        str | None,
        Parameter(name=["--out", "-o"], group=OUTPUT, help="Folder or file to write. Default: beside each picture."),
    ] = None,
    overwrite: Annotated[bool, Parameter(group=OUTPUT, help="Replace results that are there.")] = False,
    report: Annotated[bool, Parameter(group=OUTPUT, help="Also write a sheet that shows before and after.")] = False,
    json: Json = False,
) -> int:
    """Clean pictures, folders and patterns; return the exit code."""
    from efface.app.show import print_json, print_summary, progress_bar
    from efface.verbs.batch import clean_files
    from efface.verbs.rules import Rules

    if sum((method is not None, fast, best)) > 1:
        raise UsageError("--method, --fast and --best exclude each other", fix="Give one of them")
    rules = Rules(
        remove=remove,
        mask=mask,
        boxes=box or (),
        keep=keep or (),
        only=only,
        min_confidence=confidence,
        grow=grow,
        feather=feather,
        quality="fast" if fast else "best" if best else "default",
        method=method,
        iterations=iterations,
        weights=weights,
        memory=memory,
        max_pixels=max_pixels,
        device=device,
    )
    with progress_bar(shown=not json and sys.stderr.isatty()) as tell:
        summary = clean_files(
            inputs,
            rules,
            out=out,
            workers=workers,
            engine=engine,
            resume=resume,
            overwrite=overwrite,
            dry_run=dry_run,
            progress=tell,
        )
    if not json:
        print_summary(summary)
    code, sheet = summary.exit_code, None
    if report:
        from efface.app.report import write_report

        try:
            sheet = str(write_report(summary))
        except EffaceError as error:  # what was done counts all the same
            print(f"error: {error}", file=sys.stderr)
            code = code or error.exit_code
    if json:
        print_json({**summary.as_dict(), "report": sheet})
    elif sheet is not None:
        print(f"Before and after: {sheet}")
    return code
