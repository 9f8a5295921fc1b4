"""``efface score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from efface.app.options import HOW, OUTPUT, Json


def score_(
    outputs: Annotated[Path, Parameter(name="OUTPUTS", help="Cleaned picture, or folder of them.")],
    /,
    *,
    truth: Annotated[Path | None, Parameter(group=HOW, help="What the outputs should be: folder, same names.")] = None,
    mask: Annotated[
        Path | None, Parameter(group=HOW, help="Masks of the text, for figures inside and outside.")
    ] = None,
    inputs: Annotated[Path | None, Parameter(group=HOW, help="Pictures before cleaning, to score beside.")] = None,
    legacy: Annotated[bool, Parameter(group=HOW, help="Add the forms that published tables used.")] = False,
    residue: Annotated[bool, Parameter(group=HOW, help="Add how much text a detector still finds.")] = False,
    out: Annotated[
        Path | None,
        Parameter(name=["--out", "-o"], group=OUTPUT, help="Also write all figures to this .csv or .json file."),
    ] = None,
    overwrite: Annotated[bool, Parameter(group=OUTPUT, help="Replace the file of --out.")] = False,
    json: Json = False,
) -> None:
    """Print the figures of a folder of results."""
    from efface.app.show import print_rich
    from efface.verbs.score import score

    scores = score(outputs, truth=truth, masks=mask, inputs=inputs, legacy=legacy, residue=residue)
    if out is not None:
        scores.save(out, overwrite=overwrite)
    if json:
        print(scores.to_json())
    else:
        print_rich(scores.table())
