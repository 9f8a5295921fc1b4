"""``efface convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from efface.app.options import HOW, OUTPUT, Json, Settings, parse_settings


def convert_(
    checkpoint: Annotated[Path, Parameter(name="CHECKPOINT", help="File of the paper: .pth, .pt or .safetensors.")],
    /,
    *,
    method: Annotated[str, Parameter(group=HOW, help="Method that the checkpoint belongs to.")],
    set_: Settings = None,
    out: Annotated[Path, Parameter(name=["--out", "-o"], group=OUTPUT, help="Weights folder to write.")],
    overwrite: Annotated[bool, Parameter(group=OUTPUT, help="Replace a weights folder that is there.")] = False,
    json: Json = False,
) -> None:
    """Convert a checkpoint, and print the folder written."""
    from efface.app.show import print_json
    from efface.verbs.convert import convert

    folder = convert(checkpoint, method=method, out=out, params=parse_settings(set_), overwrite=overwrite)
    if json:
        print_json({"folder": str(folder)})
    else:
        print(folder)
