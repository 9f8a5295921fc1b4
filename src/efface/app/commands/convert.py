"""``efface convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from efface.app.options import HOW, OUTPUT, Json
from efface.errors import UsageError


def convert_(
    checkpoint: Annotated[Path, Parameter(name="CHECKPOINT", help="File of the paper: .pth, .pt or .safetensors.")],
    /,
    *,
    method: Annotated[str, Parameter(group=HOW, help="Method that the checkpoint belongs to.")],
    set_: Annotated[
        list[str] | None,
        Parameter(
            name="--set", group=HOW, metavar="NAME=VALUE", help="Hyper-parameter of the checkpoint. May be repeated."
        ),
    ] = None,
    out: Annotated[Path, Parameter(name=["--out", "-o"], group=OUTPUT, help="Weights folder to write.")],
    overwrite: Annotated[bool, Parameter(group=OUTPUT, help="Replace a weights folder that is there.")] = False,
    json: Json = False,
) -> None:
    """Convert a checkpoint, and print the folder written."""
    from efface.app.show import print_json
    from efface.verbs.convert import convert

    folder = convert(checkpoint, method=method, out=out, params=dict(map(_setting, set_ or ())), overwrite=overwrite)
    if json:
        print_json({"folder": str(folder)})
    else:
        print(folder)


def _setting(text: str) -> tuple[str, object]:
    import tomllib

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is not a setting", where="--set", fix="Write name=value")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value  # a text without quotes
