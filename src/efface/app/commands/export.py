"""``efface export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from efface.app.options import HOW, OUTPUT, Json


def export_(
    pipeline: Annotated[str, Parameter(name="PIPELINE", help="The pipeline that the edits were made for.")],
    edits: Annotated[list[Path], Parameter(name="EDIT", help="Folders of edits; they act together.", negative=())],
    /,
    *,
    form: Annotated[
        Literal["pipeline", "lora", "map"],
        Parameter(group=HOW, help="A whole diffusers pipeline, a LoRA file, or a map of embeddings."),
    ] = "pipeline",
    strength: Annotated[float, Parameter(group=HOW, help="How much the edits act; 1 is as they were made.")] = 1.0,
    out: Annotated[Path, Parameter(name=["--out", "-o"], group=OUTPUT, help="Folder to write.")],
    overwrite: Annotated[bool, Parameter(group=OUTPUT, help="Replace an earlier export.")] = False,
    json: Json = False,
) -> None:
    """Export, and print the folder written."""
    from efface.app.show import print_json
    from efface.io.folders import check_folder
    from efface.io.weights import CARD
    from efface.verbs.export import export

    check_folder(out, overwrite=overwrite, ours=CARD)  # before the work, not after it
    folder = export(pipeline, edits, out, form, strength=strength, overwrite=overwrite)
    if json:
        print_json({"folder": str(folder), "form": form, "edits": [str(path) for path in edits]})
    else:
        print(folder)
