"""Write edits of a text-to-image pipeline in the forms that other software reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from efface.core.run import versions
from efface.errors import UnknownNameError, UsageError
from efface.io.atomic import write_json
from efface.io.folders import atomic_folder
from efface.io.weights import CARD

if TYPE_CHECKING:
    from efface.core.plan import Plan

Form = Literal["pipeline", "lora", "map"]


def export(
    pipe: Any,
    edits: Sequence[Plan | str | Path],
    folder: str | Path,
    form: Form = "pipeline",
    *,
    strength: float = 1.0,
    overwrite: bool = False,
) -> Path:
    """Write what ``edits`` do together to ``pipe`` into ``folder``, all or nothing, and return the folder.

    Parameters
    ----------
    pipe
        A pipeline of diffusers, which is afterwards as it was; its folder or name in the hub's cache; or ``tiny``.
    edits
        What :func:`efface.forget` made on this pipeline, or folders of it, taken ``strength`` times.
    form
        ``pipeline``: the whole edited pipeline, for ``from_pretrained`` of diffusers; ``lora``: a file for
        ``load_lora_weights``; ``map``: one matrix for the text embeddings, see :class:`efface.core.textmap.TextMap`.

    Raises
    ------
    UsageError
        If there is no edit, or the edits cannot take this form.
    PlanError
        If an edit is for another pipeline, is there twice, or conflicts with another.
    """
    from efface.core.eraser import edited
    from efface.core.hub import open_pipeline, save_pipeline
    from efface.core.loraexport import save_lora
    from efface.core.plan import Plan
    from efface.core.textmap import TextMap

    if form not in get_args(Form):
        raise UnknownNameError("form", form, get_args(Form))
    if not edits:
        raise UsageError("no edit is given", where="export", fix="Name what `efface forget` wrote")
    plans = [(Plan.load(edit) if isinstance(edit, str | Path) else edit).scaled(strength) for edit in edits]
    pipe = open_pipeline(pipe) if isinstance(pipe, str | Path) else pipe
    with atomic_folder(folder, overwrite=overwrite, ours=CARD) as new:
        if form == "map":
            TextMap.of(pipe, plans).save(new)
        elif form == "lora":
            save_lora(pipe, plans, new)
        else:
            with edited(pipe, plans):
                save_pipeline(pipe, new)
            made_by = [plan.made_by for plan in plans]
            write_json(new / CARD, {"edits": made_by, "versions": versions(), "files": {}})  # diffusers checks its own
    return Path(folder)
