"""``efface fit``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from efface.app.options import HOW, OUTPUT, STOPPED, WORK, Device, Json


def fit_(
    recipe: Annotated[
        Path, Parameter(name="RECIPE", help="TOML file that says what is trained, on what, and how long.")
    ],
    /,
    *,
    data: Annotated[
        Path | None, Parameter(group=HOW, help="Folder of training pictures instead of the recipe's.")
    ] = None,
    steps: Annotated[int | None, Parameter(group=HOW, help="Steps to train instead of the recipe's.")] = None,
    seed: Annotated[int | None, Parameter(group=HOW, help="Seed instead of the recipe's.")] = None,
    set_: Annotated[
        list[str] | None,
        Parameter(
            name="--set", group=HOW, metavar="NAME=VALUE", help="Change the recipe: train.lr=3e-4. May be repeated."
        ),
    ] = None,
    device: Device = "auto",
    resume: Annotated[bool, Parameter(group=WORK, help="Go on where the run in --out stopped.")] = False,
    dry_run: Annotated[
        bool, Parameter(group=WORK, help="Train nothing: say how large it is and how long it takes.")
    ] = False,
    out: Annotated[
        Path | None, Parameter(name=["--out", "-o"], group=OUTPUT, help="Folder of the run. Default: runs/RECIPE.")
    ] = None,
    json: Json = False,
) -> int:
    """Train, and say where the run is; return 130 if it was stopped before its end."""
    from efface.app.show import print_json
    from efface.verbs.fit import fit

    run = fit(
        recipe,
        out=out,
        data=data,
        resume=resume,
        steps=steps,
        seed=seed,
        device=device,
        dry_run=dry_run,
        set=set_ or (),
        progress=lambda line: print(line, file=sys.stderr if json else sys.stdout),
    )
    if json:
        print_json({"path": str(run.path), "finished": run.finished})
    return 0 if dry_run or run.finished else STOPPED
