"""Name the options that several commands share, and the groups that their help is arranged in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from efface.errors import UsageError

STOPPED = 130
"""Exit code of a command that its user stopped."""

WHAT = Group.create_ordered("What to take away")
HOW = Group.create_ordered("How")
WORK = Group.create_ordered("The work")
OUTPUT = Group.create_ordered("Output")

Json = Annotated[bool, Parameter(group=OUTPUT, help="Print results and errors as JSON on standard output.")]
Device = Annotated[str, Parameter(group=HOW, help="Where networks run: auto, cpu, cuda, cuda:1, mps.")]
Settings = Annotated[
    list[str] | None,
    Parameter(name="--set", group=HOW, metavar="NAME=VALUE", help="Hyper-parameter of the method. May be repeated."),
]
Weights = Annotated[
    Path | None, Parameter(group=HOW, help="Weights of module:factory: safetensors file or weights folder.")
]
Input = Annotated[
    str | None,
    Parameter(name="--input", group=HOW, metavar="NxCxHxW", help="Shape of an input: 1x3x224x224, or 1x128 tokens."),
]


def parse_numbers(text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them: ``0,1,2``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} is not a list of whole numbers", fix="Write them with commas: 0,1,2") from None


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Read a shape, ``1x3x224x224`` or with commas."""
    if text is None:
        return None
    try:
        shape = tuple(map(int, re.split("[x,]", text)))
    except ValueError:
        shape = (0,)
    if min(shape) < 1:
        raise UsageError(f"{text!r} is not a shape of whole numbers", where="--input", fix="Write it as 1x3x224x224")
    return shape


def parse_settings(texts: Iterable[str] | None) -> dict[str, Any]:
    """Read ``name=value`` each, the value in the form of TOML or a text without quotes."""
    return dict(map(_setting, texts or ()))


def _setting(text: str) -> tuple[str, Any]:
    import tomllib

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is not a setting", where="--set", fix="Write name=value")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def parse_texts(text: str | None) -> tuple[str, ...]:
    """Read texts from a file, one a line, or from ``text`` itself with semicolons between them."""
    if text is None:
        return ()
    try:
        path = Path(text)
        lines = path.read_text("utf-8").splitlines() if path.is_file() else text.split(";")
    except UnicodeDecodeError as error:
        raise UsageError("is no text file", where=text, fix="Write one text a line, in UTF-8") from error
    except OSError:  # too long for a name
        lines = text.split(";")
    return tuple(line.strip() for line in lines if line.strip())
