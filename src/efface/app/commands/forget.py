"""``efface forget``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from efface.app.options import HOW, OUTPUT, WHAT, WORK, Device, Json, Settings, parse_settings, parse_texts


def forget_(
    pipeline: Annotated[
        str,
        Parameter(
            name="PIPELINE",
            help="Folder of a diffusers pipeline, name of one in the hub's cache, or tiny: our own.",
        ),
    ],
    /,
    *,
    remove: Annotated[list[str], Parameter(group=WHAT, help='What is to go: "van gogh". May be repeated.')],
    instead: Annotated[
        list[str] | None,
        Parameter(group=WHAT, help="What takes its place: once for all, or once for each --remove."),
    ] = None,
    keep: Annotated[
        str | None,
        Parameter(group=WHAT, help='Texts that must draw as before: a file with one a line, or "a cat; a dog".'),
    ] = None,
    method: Annotated[str, Parameter(group=HOW, help="Method to use; see `efface list`.")] = "rece",
    set_: Settings = None,
    seed: Annotated[int, Parameter(group=HOW, help="Seed of every random draw.")] = 0,
    device: Device = "auto",
    dry_run: Annotated[bool, Parameter(group=WORK, help="Write nothing: show what would change.")] = False,
    out: Annotated[Path, Parameter(name=["--out", "-o"], group=OUTPUT, help="Folder of the edit.")] = Path("edit"),
    export: Annotated[
        Path | None, Parameter(group=OUTPUT, help="Also write the edit in a form that others read into this folder.")
    ] = None,
    form: Annotated[
        Literal["pipeline", "lora", "map"],
        Parameter(group=OUTPUT, help="That form: a whole diffusers pipeline, a LoRA file, or a map of embeddings."),
    ] = "pipeline",
    overwrite: Annotated[bool, Parameter(group=OUTPUT, help="Replace an earlier edit.")] = False,
    json: Json = False,
) -> None:
    """Take concepts out of a pipeline, and print what changed and where the edit is."""
    from efface.app.show import print_json
    from efface.io.folders import check_folder
    from efface.io.weights import CARD
    from efface.verbs.forget import REPORT, forget

    if not dry_run:  # before the work, not after it
        check_folder(out, overwrite=overwrite, ours=REPORT)
        if export is not None:
            check_folder(export, overwrite=overwrite, ours=CARD)
    forgotten = forget(
        pipeline,
        remove=remove,
        instead=instead,
        keep=parse_texts(keep),
        method=method,
        params=parse_settings(set_),
        seed=seed,
        device=device,
        progress=lambda line: print(line, file=sys.stderr),
    )
    report = forgotten.report
    paths: dict[str, str | None] = {"out": None, "export": None}
    if not dry_run:
        paths["out"] = str(forgotten.save(out, overwrite=overwrite))
        if export is not None:
            paths["export"] = str(forgotten.export(export, form, overwrite=overwrite))
    if json:
        print_json({**paths, **report.as_dict()})
        return
    gone = ", ".join(f"{e['remove']!r} (instead: {e['instead']!r})" if e["instead"] else repr(e["remove"])
                     for e in report.erases)  # fmt: skip
    print(f"{report.pipeline}: {report.method} takes out {gone} in {report.seconds:.1f} s")
    print(f"{report.weights:,} weights of {report.layers} layers move by {report.norm:.4g}; {report.size:,} bytes")
    for note in report.notes:
        print(f"Note: {note}")
    for name, path in (("Edit", paths["out"]), (f"Exported as {form}", paths["export"])):
        if path is not None:
            print(f"{name}: {path}")
