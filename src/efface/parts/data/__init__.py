"""Sources of training and test data, found by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from efface.parts.data.erase_text import EraseText


def source(name: str, **options: Any) -> EraseText:
    """Build the data source called ``name`` from the options of a recipe; a wrong one is a :class:`UsageError`."""
    if name not in SOURCES:
        raise UnknownNameError("data source", name, SOURCES)
    maker = SOURCES[name]
    try:
        inspect.signature(maker).bind(**options)
    except TypeError as error:
        raise UsageError(f"{error}", where=f"data source {name}") from error
    return maker(**options)


def erase_text(
    folder: str | Path | None = None,
    split: str = "train",
    fonts: str | Path | list[str | Path] | None = None,
    size: int = 128,
    words: tuple[int, int] = (1, 3),
    subset: float = 0.5,
) -> EraseText:
    """Return made-up texts on the photographs of ``folder``, or on made-up ones where it is None.

    ``split`` is ``train`` (with BSDS500's own ``val`` in it) or ``test``: photographs, font families and words of the
    two have nothing in common. ``fonts`` are a folder or font files; None takes the system's.
    """
    from efface.parts.data.erase_text import EraseText
    from efface.parts.data.photos import photographs
    from efface.parts.text.fonts import find_fonts, split_fonts

    if split not in ("train", "test"):
        raise UsageError(f"no split is called {split!r}", fix="Use 'train' or 'test'")
    if isinstance(fonts, list):
        faces = [Path(f) for f in fonts]
    else:
        faces = find_fonts(None if fonts is None else [Path(fonts)])
    train, test = split_fonts(faces)
    return EraseText(
        photos=photographs(None if folder is None else Path(folder), "train+val" if split == "train" else "test"),
        fonts=tuple(train if split == "train" else test),
        size=size,
        words=(words[0], words[1]),
        subset=subset,
        split="train" if split == "train" else "test",
    )


SOURCES: dict[str, Callable[..., EraseText]] = {"erase-text": erase_text}
