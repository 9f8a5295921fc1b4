"""``efface score``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from efface.app.options import HOW, OUTPUT, Device, Json, parse_texts
from efface.errors import UsageError

if TYPE_CHECKING:
    from efface.core.erasure_report import Report
    from efface.parts.metrics.scores import Scores

ERASURE = Group.create_ordered("Edits of generators")


def score_(
    outputs: Annotated[
        str, Parameter(name="OUTPUTS", help="Cleaned picture, or folder of them; with --erasure a pipeline, or tiny.")
    ],
    /,
    *,
    truth: Annotated[Path | None, Parameter(group=HOW, help="What the outputs should be: folder, same names.")] = None,
    mask: Annotated[
        Path | None, Parameter(group=HOW, help="Masks of the text, for figures inside and outside.")
    ] = None,
    inputs: Annotated[Path | None, Parameter(group=HOW, help="Pictures before cleaning, to score beside.")] = None,
    legacy: Annotated[bool, Parameter(group=HOW, help="Also give the figures as published tables take them.")] = False,
    residue: Annotated[bool, Parameter(group=HOW, help="Add how much text a detector still finds.")] = False,
    erasure: Annotated[
        bool, Parameter(group=ERASURE, help="Score edits of a text-to-image pipeline, beside it as it was.")
    ] = False,
    edit: Annotated[
        list[Path] | None, Parameter(group=ERASURE, help="Edit that `efface forget` wrote. May be repeated.")
    ] = None,
    target: Annotated[
        str | None, Parameter(group=ERASURE, help="What was taken out; by default what the first edit says.")
    ] = None,
    instead: Annotated[str | None, Parameter(group=ERASURE, help="What was to take its place.")] = None,
    keep: Annotated[
        str | None,
        Parameter(group=ERASURE, help='What must still be drawn: "a cat; a dog", or a file with one a line.'),
    ] = None,
    also: Annotated[
        str | None, Parameter(group=ERASURE, help='Other words for the target: "disc; round thing", or a file.')
    ] = None,
    prompts: Annotated[
        str | None,
        Parameter(group=ERASURE, help="Prompts that no edit has seen, with {} where the concept stands; or a file."),
    ] = None,
    judge: Annotated[
        str | None, Parameter(group=ERASURE, help="Folder of a CLIP model that says what pictures show.")
    ] = None,
    attacks: Annotated[
        str | None,
        Parameter(
            group=ERASURE,
            help="Ways to bring the target back: ring-a-bell, hard-prompt, derived, unlearn-diff, p4d, "
            "textual-inversion, half-noised, inpainting; several with commas.",
        ),
    ] = None,
    beside: Annotated[
        str, Parameter(group=ERASURE, help="Baselines: negative (the target as negative prompt), uce, esd.")
    ] = "negative,uce",
    seeds: Annotated[int, Parameter(group=ERASURE, help="Pictures of each prompt.")] = 8,
    steps: Annotated[int, Parameter(group=ERASURE, help="Steps from noise to picture.")] = 20,
    guidance: Annotated[
        float | None, Parameter(group=ERASURE, help="How hard prompts pull. Default: 7.5; tiny 2.")
    ] = None,
    sheet: Annotated[
        Path | None, Parameter(group=ERASURE, help="Also write pictures of all models side by side to this file.")
    ] = None,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        Parameter(name=["--out", "-o"], group=OUTPUT, help="Also write all figures to this .csv or .json file."),
    ] = None,
    overwrite: Annotated[bool, Parameter(group=OUTPUT, help="Replace the file of --out.")] = False,
    json: Json = False,
) -> None:
    """Print the figures of a folder of results, or of edits of a generator."""
    from efface.app.erasure_sheet import erasure_sheet
    from efface.app.show import print_rich, share_bar
    from efface.io.atomic import atomic_write, check_target
    from efface.verbs.score import score
    from efface.verbs.score_erasure import SENTENCES, score_erasure

    for path in filter(None, (out, sheet)):
        check_target(path, overwrite=overwrite)
    scores: Scores | Report
    if not erasure:
        if edit or target or sheet:
            raise UsageError("edits are scored with --erasure", fix="Give it, or leave --edit, --target, --sheet out")
        with share_bar("scoring", shown=not json and sys.stderr.isatty()) as tell:
            scores = score(
                Path(outputs), truth=truth, masks=mask, inputs=inputs, legacy=legacy, residue=residue,
                progress=lambda share, name: tell(share, "scoring"),
            )  # fmt: skip
    else:
        if truth or mask or inputs or legacy or residue:
            raise UsageError("--erasure scores a pipeline, not pictures", fix="Leave --truth, --mask, --inputs out")
        scores = score_erasure(
            outputs, edit or [], target=target, instead=instead, keep=parse_texts(keep), also=parse_texts(also),
            sentences=parse_texts(prompts) or SENTENCES, judge=judge, attacks=_names(attacks),
            baselines=_names(beside), seeds=range(seeds), steps=steps, guidance=guidance, device=device,
            progress=lambda line: print(line, file=sys.stderr),
        )  # fmt: skip
        if sheet is not None:
            with atomic_write(sheet, overwrite=overwrite) as temporary:
                erasure_sheet(scores).save(temporary, "PNG")
    if out is not None:
        scores.save(out, overwrite=overwrite)
    if json:
        print(scores.to_json())
    else:
        print_rich(scores.table())


def _names(text: str | None) -> list[str]:
    """Read names with commas between them."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
