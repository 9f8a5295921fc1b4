"""``efface list``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from efface.app.options import Json


def list_(
    *,
    search: Annotated[str, Parameter(help="Only methods with all of these words in name, card or text.")] = "",
    subject: Annotated[str | None, Parameter(help="Only this subject, such as pictures.")] = None,
    task: Annotated[str | None, Parameter(help="Only methods whose task holds these words.")] = None,
    json: Json = False,
) -> None:
    """Print the methods that fit."""
    from efface.app.show import print_json, print_list
    from efface.verbs.find import find, summary

    found = find(search, subject=subject, task=task)
    if json:
        print_json([summary(entry) for entry in found])
    else:
        print_list(found)
