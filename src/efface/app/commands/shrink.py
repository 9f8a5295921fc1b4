"""``efface shrink``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from efface.app.options import (
    HOW,
    OUTPUT,
    WHAT,
    WORK,
    Device,
    Input,
    Json,
    Settings,
    Weights,
    parse_settings,
    parse_shape,
)  # fmt: skip


def shrink_(
    model: Annotated[
        str,
        Parameter(
            name="MODEL",
            help="Folder of transformers or diffusers, weights folder, .safetensors file or its .index.json, or "
            "module:factory.",
        ),
    ],
    /,
    *,
    sparsity: Annotated[
        float | None,
        Parameter(group=WHAT, help="Share that goes of the weights, or of what the method takes: 0.9 leaves a tenth."),
    ] = None,
    include: Annotated[
        list[str] | None,
        Parameter(group=WHAT, metavar="GLOB", help='Take only from these weights: "layers.*". May be repeated.'),
    ] = None,
    exclude: Annotated[
        list[str] | None, Parameter(group=WHAT, metavar="GLOB", help="Leave these weights alone. May be repeated.")
    ] = None,
    method: Annotated[str, Parameter(group=HOW, help="Method to use; see `efface list`.")] = "global-mp",
    set_: Settings = None,
    weights: Weights = None,
    data: Annotated[
        str | None,
        Parameter(
            group=HOW,
            help="What to train and measure on: digits, shapes, a folder of labelled pictures, or text.",
        ),
    ] = None,
    input_: Input = None,
    seed: Annotated[int, Parameter(group=HOW, help="Seed of every random draw.")] = 0,
    device: Device = "auto",
    dry_run: Annotated[bool, Parameter(group=WORK, help="Write nothing: show what would go from each layer.")] = False,
    out: Annotated[
        Path | None,
        Parameter(name=["--out", "-o"], group=OUTPUT, help="Folder to write. Default: a new one beside the model."),
    ] = None,
    overwrite: Annotated[bool, Parameter(group=OUTPUT, help="Replace an earlier result.")] = False,
    report: Annotated[
        bool, Parameter(group=OUTPUT, help="Also write a page with plots into the folder (extra `plots`).")
    ] = False,
    onnx: Annotated[
        Path | None,
        Parameter(
            group=OUTPUT, help="Also write the shrunk model to this .onnx file, checked against it (extra `onnx`)."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Take weights or channels out of a model, and print what went and where the result is."""
    from efface.app import shrink_report
    from efface.app.show import print_json, print_rich
    from efface.errors import UsageError
    from efface.extras import need
    from efface.io.folders import check_folder
    from efface.verbs.shrink import REPORT, shrink

    if dry_run and (report or out is not None or onnx is not None):
        raise UsageError("writes nothing", where="--dry-run", fix="Give it without --out, --report and --onnx")
    if report:
        need("matplotlib", extra="plots", job="--report")
    if out is not None:
        check_folder(out, overwrite=overwrite, ours=REPORT)  # before the work, not after it
    if onnx is not None:
        from efface.io.atomic import check_target
        from efface.parts.onnx import need_onnx

        need_onnx()
        check_target(onnx, overwrite=overwrite)
    shrunk = shrink(
        model,
        method=method,
        sparsity=sparsity,
        data=data,
        params=parse_settings(set_),
        include=include,
        exclude=exclude,
        weights=weights,
        shape=parse_shape(input_),
        seed=seed,
        device=device,
        progress=lambda line: print(line, file=sys.stderr),
    )
    folder = None if dry_run else shrunk.save(out, overwrite=overwrite)
    page = shrink_report.write_page(shrunk.report, folder) if report and folder is not None else None
    parity = None
    if onnx is not None and folder is not None:
        print(f"Shrunk model: {folder}; writing {onnx}", file=sys.stderr)  # it is there, whatever comes of ONNX
        parity = shrunk.save_onnx(onnx, overwrite=overwrite)
    if json:
        paths = {"out": folder, "report_page": page, "onnx": parity and parity.path}
        figures = {k: v for k, v in shrunk.report.as_dict().items() if k not in ("edges", "before", "after")}
        print_json({**{k: v and str(v) for k, v in paths.items()}, **figures})  # histograms are in report.json
        return
    print_rich(*shrink_report.tables(shrunk.report))
    for line in shrink_report.lines(shrunk.report):
        print(line)
    if folder is not None:
        print(f"Shrunk model: {folder}" + (f"\nReport: {page}" if page else ""))
    if parity is not None:
        print(shrink_report.parity_line(parity))
