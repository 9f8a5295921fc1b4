"""``efface show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from efface.app.options import Json


def show_(
    name: Annotated[str, Parameter(name="METHOD", help="Name of a method; see `efface list`.")],
    /,
    *,
    results: Annotated[
        Path | None,
        Parameter(help="Folder with the results of `efface check`. Default: results, or efface's own."),
    ] = None,
    json: Json = False,
) -> None:
    """Print what is known of a method."""
    from efface.app.show import print_description, print_json
    from efface.verbs.find import describe

    found = describe(name, results=results)
    if json:
        print_json(found.as_dict())
    else:
        print_description(found)
