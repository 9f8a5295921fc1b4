"""Take text out of a picture."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efface.io.atomic import write_bytes
from efface.io.images import MAX_PIXELS, Picture, check_fits, format_of, read_picture, write_picture
from efface.io.picture import full_scale
from efface.parts import masks
from efface.verbs.marking import Found, Progress, find
from efface.verbs.repairing import fill_flat, load_network, repair, stages_of
from efface.verbs.rules import Places, Rules

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Cleaned:
    """A picture from which something was taken, and what that was."""

    picture: Picture
    mask: NDArray[np.bool_]
    """(h, w): what was taken away."""
    boxes: list[Found]
    """The text that was found; empty where a mask or boxes were given."""
    scores: dict[str, float]
    """``masked``: share of the picture; ``flat``: share of that filled exactly, without a network; ``rim``: mean change
    on the rim of the mask, high where it cuts through text; ``seconds``."""
    method: str
    notes: list[str] = field(default_factory=list)
    iterates: list[Picture] = field(default_factory=list)
    """What an iterative method had after each iteration, the last one being ``picture``, where that was asked for."""
    source: Path | None = None
    """The file that the picture came from."""

    @property
    def image(self) -> Image.Image:
        """The picture for Pillow, at 8 bits."""
        return self.picture.image

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the picture, with all that its file said beside the pixels; the format follows from the name.

        Where nothing was taken away and the format stays, the file is copied.
        """
        untouched = not self.picture.changed and format_of(path) == self.picture.origin.format
        if untouched and self.source is not None and self.source.is_file():
            write_bytes(path, self.source.read_bytes(), overwrite=overwrite)
        else:
            write_picture(self.picture, path, overwrite=overwrite)

    def as_dict(self) -> dict[str, Any]:
        """Return all but the pixels, JSON-ready."""
        return {
            "size": [self.picture.width, self.picture.height],
            "method": self.method,
            "scores": {k: round(v, 4) for k, v in self.scores.items()},
            "texts": [found.as_dict() for found in self.boxes],
            "notes": [*self.notes, *self.picture.notes],
        }


def clean(
    image: Any,
    remove: str = "text",
    *,
    mask: Any = None,
    boxes: Places = (),
    keep: Places = (),
    only: str | None = None,
    min_confidence: float = 0.5,
    grow: int | None = None,
    feather: int = 2,
    quality: str = "default",
    method: str | None = None,
    iterations: int | None = None,
    weights: str | Path | None = None,
    memory: int | str = 2_000_000_000,
    max_pixels: int = MAX_PIXELS,
    device: str = "auto",
    progress: Progress | None = None,
) -> Cleaned:
    """Take text out of ``image``: a path, PIL image, array or tensor, which is not changed itself.

    With neither ``mask`` nor ``boxes`` text is found by itself. What the other arguments mean is said in
    :class:`Rules`. Pixels outside the mask and its feather stay bit-equal.

    Raises
    ------
    PictureError, MaskError
        If the picture or the mask is refused.
    UsageError, WeightsError
        If a rule, the method or its weights are not as they should be.
    """
    rules = Rules(
        remove=remove,
        mask=mask,
        boxes=boxes,
        keep=keep,
        only=only,
        min_confidence=min_confidence,
        grow=grow,
        feather=feather,
        quality=quality,
        method=method,
        iterations=iterations,
        weights=weights,
        memory=memory,
        max_pixels=max_pixels,
        device=device,
    )
    return apply(image, rules, progress=progress)


def apply(
    image: Any,
    rules: Rules,
    *,
    progress: Progress | None = None,
    iterates: bool = False,
    output: Path | None = None,
) -> Cleaned:
    """Do to ``image`` what ``rules`` say; see :func:`clean`. ``iterates`` keeps those of an iterative method.

    Where the picture is to be written to ``output``, which cannot hold it, it is refused before the work.
    """
    tell, start = progress or (lambda fraction, what: None), time.perf_counter()
    with ThreadPoolExecutor(1, "efface-load") as pool:
        loading = pool.submit(load_network, *rules.network) if rules.searches else None  # while text is looked for
        tell(0.0, "reading")
        picture, network = read_picture(image, max_pixels=rules.max_pixels), None
        if output is not None:
            check_fits(picture, output)
        found, mask = find(picture, rules, tell)
        rim = np.flatnonzero(masks.rim(mask))
        values = picture.pixels.reshape(mask.size, -1)
        before = values[rim].astype(np.float32)
        tell(0.3, "filling what is flat")
        kept = rules.kept(mask.shape)
        rest, stages = fill_flat(picture, mask, kept, rules.feather) if mask.any() else mask, [picture]
        if rest.any():
            tell(0.35, "loading the network")
            network = loading.result() if loading else load_network(*rules.network)
            stages = stages_of(picture, network, rules) if iterates else stages
            repair(stages, rest, kept, network, rules, tell)
    tell(1.0, "done")
    masked = int(mask.sum())
    change = np.abs(values[rim] - before)
    scores = {
        "masked": masked / mask.size,
        "flat": 1 - int(rest.sum()) / masked if masked else 0.0,
        "rim": float(change.mean()) / full_scale(picture.pixels.dtype) if change.size else 0.0,
        "seconds": time.perf_counter() - start,
    }
    notes = [] if masked else [f"nothing was taken away: {_why_nothing(rules)}"]
    method = network.card["method"] if network else rules.network[0] or str(rules.weights)
    source = Path(image) if isinstance(image, str | Path) else None
    return Cleaned(picture, mask, found, scores, method, notes, stages if len(stages) > 1 else [], source)


def _why_nothing(rules: Rules) -> str:
    if rules.searches:
        return "no such text"
    return "the mask is empty" if rules.mask is None else "no pixel of the mask is at least half white and not kept"
