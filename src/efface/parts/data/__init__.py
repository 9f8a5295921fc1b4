"""Sources of training and test data, found by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import DataError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from efface.parts.data.boxed import BoxedPictures, HiddenStyle
    from efface.parts.data.erase_text import EraseText
    from efface.parts.data.language import Tokens
    from efface.parts.data.world import Captioned, Captions, Judged, World

    Source = EraseText | BoxedPictures | HiddenStyle | World | Judged | Captioned | Captions | Tokens


def source(name: str, **options: Any) -> Source:
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
    sizes: tuple[float, float] = (8, 64),
    rare: float = 0.0,
    subset: float = 0.5,
) -> EraseText:
    """Return made-up texts on the photographs of ``folder``, or on made-up ones where it is None.

    ``split`` is ``train`` (with BSDS500's own ``val`` in it) or ``test``: photographs, font families and words of the
    two have nothing in common. ``fonts`` are a folder or font files; None takes the system's, and the built-in face
    where there is none. ``sizes`` are the least and the greatest size of text, in pixels per em; ``rare`` is how
    often one glows, is faint or is soft. Raises :class:`DataError` where photographs or given fonts cannot be found.
    """
    from efface.parts.data.erase_text import EraseText
    from efface.parts.data.photos import photographs
    from efface.parts.text.fonts import split_fonts

    if split not in ("train", "test"):
        raise UsageError(f"no split is called {split!r}", fix="Use 'train' or 'test'")
    faces = split_fonts(_faces(fonts))[split == "test"]
    if fonts and not faces:
        raise DataError(f"no font family falls to the split {split}", where=fonts, fix="Give more families")
    return EraseText(
        photos=photographs(None if folder is None else Path(folder), "train+val" if split == "train" else "test"),
        fonts=tuple(faces),
        size=size,
        words=(words[0], words[1]),
        sizes=(sizes[0], sizes[1]),
        rare=rare,
        subset=subset,
        split="train" if split == "train" else "test",
    )


def boxed_text(
    folder: str | Path | None = None,
    boxes: str | Path | None = None,
    size: int = 256,
    fonts: str | Path | list[str | Path] | None = None,
) -> BoxedPictures | HiddenStyle:
    """Return crops of the pictures with text in ``folder``, of which only the ``boxes`` of the text are known.

    ``boxes`` is a JSON file; None asks the text detector. Without a folder, text with an outline and a shadow is
    written on made-up pictures, with ``fonts``: a folder or font files; None takes the system's.
    """
    from efface.parts.data.boxed import BoxedPictures, HiddenStyle
    from efface.parts.data.photos import photographs

    if folder is not None:
        return BoxedPictures(folder=Path(folder), boxes=None if boxes is None else Path(boxes), size=size)
    return HiddenStyle(
        photos=photographs(None, "train"),
        size=size,
        options={"stroke": 1, "stroke_width": 0, "shadow": 1, "direction": 3},
        scale=size / 512,
        fonts=tuple(_faces(fonts)),
    )


def _faces(fonts: str | Path | list[str | Path] | None) -> list[Path]:
    from efface.parts.text.fonts import find_fonts

    if isinstance(fonts, list):
        return [Path(f) for f in fonts]
    found = find_fonts(None if fonts is None else [Path(fonts)])
    if fonts is not None and not found:
        raise DataError(
            "holds no font that can write Latin text", where=fonts, fix="Name a folder of .ttf or .otf files"
        )
    return found


def world() -> World:
    """Return scenes of the procedural world, drawn anew for every batch."""
    from efface.parts.data.world import World

    return World()


def world_judged(autoencoder: str | Path) -> Judged:
    """Return what a judge of the world learns from; ``autoencoder`` is the folder of its weights."""
    from efface.parts.data.world import Judged

    return Judged(autoencoder)


def world_captions() -> Captions:
    """Return captions of the procedural world, with what they tell of."""
    from efface.parts.data.world import Captions

    return Captions()


def world_captioned(autoencoder: str | Path, text: str | Path, scenes: int = 16384) -> Captioned:
    """Return captioned latents of ``scenes`` scenes; ``autoencoder`` and ``text`` are the folders of their weights."""
    from efface.parts.data.world import Captioned

    return Captioned(autoencoder, text, scenes)


def text(folder: str | Path, length: int = 128) -> Tokens:
    """Return windows of ``length`` characters of a text file, or of all texts in ``folder``, but for their end."""
    from efface.parts.data.language import Corpus, characters

    return Corpus.read(folder, characters(), length=length).train


SOURCES: dict[str, Callable[..., Source]] = {
    "erase-text": erase_text,
    "boxed-text": boxed_text,
    "world": world,
    "world-judged": world_judged,
    "world-captions": world_captions,
    "world-captioned": world_captioned,
    "text": text,
}
