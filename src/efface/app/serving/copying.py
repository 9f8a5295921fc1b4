"""Write a job down as a command and as Python, which do the same to the same file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from efface.app.serving.choosing import Means, how
from efface.app.serving.schemas import Rules
from efface.verbs import clean

OPTIONS = {"boxes": "box", "min_confidence": "confidence"}
"""Options of the command that are not called as the argument in Python is."""


@dataclass(frozen=True)
class Copies:
    """The same job in other words."""

    command: str
    python: str
    needs_mask: bool


def copies(wanted: Rules, name: str, means: Means) -> Copies:
    """Write down what was done to the picture called ``name``.

    Where text was chosen by rule alone, or boxes alone were given, the rules are written; else the mask that came out
    of them, ``STEM_mask.png``.
    """
    by_hand = bool(wanted.take or wanted.leave or wanted.mask or (wanted.texts and wanted.boxes))
    needs_mask = by_hand or not (wanted.texts or wanted.boxes)
    regions = [item for item in wanted.keep if not isinstance(item, str)]
    values: dict[str, Any] = {**how(wanted), "weights": means.weights, "memory": means.memory, "keep": regions}
    if needs_mask:
        values |= {"mask": mask_name(name), "grow": None}
    elif wanted.texts:
        values |= {"keep": wanted.keep, "only": wanted.only, "min_confidence": wanted.min_confidence}
    else:
        values |= {"boxes": wanted.boxes}
    usual = {field.name: field.default for field in fields(clean.Rules)}
    given = {key: value for key, value in values.items() if value not in (usual[key], [])}
    return Copies(_command(given, name), _python(given, name), needs_mask)


def mask_name(name: str) -> str:
    """Return what the mask of a picture is called where it is downloaded."""
    return f"{Path(name).stem}_mask.png"


def clean_name(name: str, suffix: str) -> str:
    """Return what a result is called where it is downloaded."""
    return f"{Path(name).stem}_clean{suffix}"


def _command(given: dict[str, Any], name: str) -> str:
    words = ["efface", "clean", f"./{name}" if name.startswith("-") else name]
    for key, value in given.items():
        option = f"--{OPTIONS.get(key, key)}"
        if key == "quality":
            words.append(f"--{value}")
            continue
        for item in value if isinstance(value, list) else [value]:
            text = ",".join(map(str, item)) if isinstance(item, tuple) else str(item)
            words += [f"{option}={text}"] if text.startswith("-") else [option, text]
    return shlex.join(words)


def _python(given: dict[str, Any], name: str) -> str:
    values = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    arguments = "".join(f", {key}={value!r}" for key, value in values.items())
    target = clean_name(name, Path(name).suffix)
    return f"import efface\n\ncleaned = efface.clean({name!r}{arguments})\ncleaned.save({target!r})\n"
