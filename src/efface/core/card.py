"""State what a method promises, as literals that can be read without importing anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from efface.errors import UsageError

Tiling = Literal["local", "global", "internal"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """Promise of a method or of a folder of weights.

    Every value in a method's card is a literal, so that the catalogue reads it from the syntax tree.
    """

    title: str
    """Title of the paper, or of the method where it is the house's own."""
    paper: str
    """Where it is published: ``arXiv:2402.19108``, or a sentence for a house method."""
    year: int
    task: str
    """What is taken away from what: ``text from pictures``."""
    inputs: tuple[str, ...] = ("picture",)
    """What ``run`` is given: ``picture`` (b, 3, h, w) in [0, 1], ``mask`` (b, 1, h, w) with 1 = take away."""
    multiple: int = 1
    """Height and width must be multiples of this (callers pad and crop back)."""
    tiling: Tiling = "local"
    """``local``: exact on tiles that overlap by ``radius``; ``global``: sees statistics of the whole picture, so crops
    around mask components are used; ``internal``: tiles by itself."""
    radius: int = 0
    """Receptive radius in pixels of a ``local`` network; context that a ``global`` one asks for around a mask."""
    smallest: int = 1
    """Least height and width in pixels that the network takes."""
    bytes_per_pixel: int = 2700
    """Memory that the network takes for each pixel it sees at once; measured by benchmarks/memory.py."""
    dtypes: tuple[str, ...] = ("float32",)
    """Number formats that ``run`` is tested with."""
    licence: str = "Apache-2.0"
    """Licence of the shipped weights."""
    good_at: str = ""
    """One line for people who choose: what it is good at, and what not."""
    speed: str = ""
    """Cost in words, with the machine and the size it was measured at."""
    left_out: str = ""
    """What of the paper is not here."""

    def as_dict(self) -> dict[str, Any]:
        """Return the card as JSON-ready values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Card:
        """Build a card from JSON-ready values; a missing or unknown field is a :class:`UsageError`."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**fields)
        except TypeError as error:
            raise UsageError(f"not a card: {error}") from error
