"""Take text out of a picture."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efface.errors import MaskError, PictureError, UsageError
from efface.io.atomic import write_bytes
from efface.io.images import MAX_PIXELS, Picture, format_of, read_picture, write_picture
from efface.io.picture import full_scale
from efface.parts import masks
from efface.parts.text.detect import TextBox, find_text
from efface.verbs.rules import Places, Rules, as_box

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from efface.core.trained import Trained

Mask = NDArray[np.bool_]
Progress = Callable[[float, str], None]
"""Told how much is done, in [0, 1], and what goes on; an exception that it raises ends the job."""
FIXED_BYTES, PLANES, LARGEST_CROP = 700_000_000, 4, 1 << 20
"""What the process takes without a picture; bytes for each pixel of the picture beside its values (masks); pixels of
the largest crop, from which on none gains by more."""
VIEWS = {"fast": 1, "default": 1, "best": 4}
"""How many mirrored views are averaged by methods that can. Each doubling of the time gains about 0.1 dB."""


@dataclass(frozen=True)
class Found:
    """A text that was found, and why it stays; an empty reason means that it is taken away."""

    box: TextBox
    stays: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        corners = [[round(float(v), 1) for v in corner] for corner in self.box.polygon]
        return {
            "words": self.box.words,
            "confidence": round(self.box.confidence, 3),
            "polygon": corners,
            "taken": not self.stays,
            "stays": self.stays,
        }


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
        return image_of(self.picture)

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


def apply(image: Any, rules: Rules, *, progress: Progress | None = None, iterates: bool = False) -> Cleaned:
    """Do to ``image`` what ``rules`` say; see :func:`clean`. ``iterates`` keeps those of an iterative method."""
    tell, start = progress or (lambda fraction, what: None), time.perf_counter()
    with ThreadPoolExecutor(1, "efface-load") as pool:
        loading = pool.submit(_trained, *rules.network) if rules.searches else None  # while text is looked for
        tell(0.0, "reading")
        picture, network = read_picture(image, max_pixels=rules.max_pixels), None
        found, mask = find(picture, rules, tell)
        rim = np.flatnonzero(masks.rim(mask))
        values = picture.pixels.reshape(mask.size, -1)
        before = values[rim].astype(np.float32)
        tell(0.3, "filling what is flat")
        kept = rules.kept(mask.shape)
        rest, stages = _fill(picture, mask, kept, rules.feather) if mask.any() else mask, [picture]
        if rest.any():
            tell(0.35, "loading the network")
            network = loading.result() if loading else _trained(*rules.network)
            stages = _stages(picture, network, rules) if iterates else stages
            _repair(stages, rest, kept, network, rules, tell)
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


def find(picture: Picture, rules: Rules, tell: Progress = lambda fraction, what: None) -> tuple[list[Found], Mask]:
    """Find what ``rules`` take out of ``picture``: the texts, and the mask (h, w) without the regions to keep."""
    size = picture.height, picture.width

    def outlined(polygons: Sequence[Any]) -> Mask:
        mask = masks.from_polygons(size, polygons)
        return masks.grow(mask, masks.default_grow(*size) if rules.grow is None else rules.grow)

    found: list[Found] = []
    if rules.searches:
        tell(0.05, "looking for text")
        found = [Found(text, rules.choose(text)) for text in find_text(eight_bits(picture.pixels))]
        unmet = [p for p in rules.patterns if not any(re.search(p, f.box.words) for f in found)]
        picture.notes += [f"no text that was found matches {pattern!r}, which is to stay" for pattern in unmet]
        mask = outlined([f.box.polygon for f in found if not f.stays])
    else:
        mask = masks.from_boxes(size, map(as_box, rules.boxes))
        if rules.mask is not None:
            mask |= read_mask(rules.mask, size)
        mask = masks.grow(mask, rules.grow or 0)
        if rules.polygons:
            mask |= outlined(rules.polygons)
    mask[rules.kept(size)] = False
    return found, mask


def preview(picture: Picture, found: Sequence[Found], mask: Mask) -> Image.Image:
    """Draw the outline of the mask and of each text: red goes, green stays."""
    import cv2
    from PIL import Image

    canvas = np.array(eight_bits(picture.pixels), order="C")
    width = max(1, round(min(mask.shape) / 300))
    outlines = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(canvas, outlines, -1, (220, 30, 30), width)
    for item in found:
        colour = (30, 160, 60) if item.stays else (220, 30, 30)
        cv2.polylines(canvas, [np.round(item.box.polygon).astype(np.int32)], True, colour, width, cv2.LINE_AA)
    return Image.fromarray(canvas)


def image_of(picture: Picture) -> Image.Image:
    """Return ``picture`` for Pillow, at 8 bits, with its alpha."""
    from PIL import Image

    levels = eight_bits(picture.pixels)[..., : picture.pixels.shape[2]]
    if picture.alpha is not None:
        levels = np.concatenate([levels, eight_bits(picture.alpha[..., None])[..., :1]], 2)
    return Image.fromarray(levels if levels.shape[2] > 1 else levels[..., 0])


def eight_bits(pixels: np.ndarray) -> NDArray[np.uint8]:
    """Return stored pixels as RGB (h, w, 3) levels, rounded; those that are such levels already are not copied."""
    import cv2

    if pixels.dtype != np.uint8:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / full_scale(pixels.dtype)).reshape(pixels.shape)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _why_nothing(rules: Rules) -> str:
    if rules.searches:
        return "no such text"
    return "the mask is empty" if rules.mask is None else "no pixel of the mask is at least half white and not kept"


@lru_cache(maxsize=2)
def _trained(method: str | None, weights: str | None, device: str) -> Trained:
    from efface.core.trained import load

    return load(method, weights=weights, device=device)


def _fill(picture: Picture, mask: Mask, kept: Mask, feather: int) -> Mask:
    """Fill what is flat, and return the mask of what is not."""
    from efface.parts.fill import flat_fill  # brings torch along, which is not needed until here

    return flat_fill(picture.rgb, picture.paste, mask, feather_px=feather, keep=kept)


def _stages(picture: Picture, network: Trained, rules: Rules) -> list[Picture]:
    """Return a picture for each iteration, the last one being ``picture`` itself."""
    count = _iterations(network, rules) or 1
    copies = [replace(picture, pixels=picture.pixels.copy(), notes=[*picture.notes]) for _ in range(count - 1)]
    return [*copies, picture]


def _iterations(network: Trained, rules: Rules) -> int | None:
    """Return how often ``network`` refines; None where it is not iterative, and then nobody may ask for iterations."""
    trained = network.method.params().get("iterations")
    if trained is None and rules.iterations is not None:
        raise UsageError(f"{network.card['method']} is not iterative", where="iterations", fix="Leave them out")
    return rules.iterations or trained


def _repair(stages: Sequence[Picture], mask: Mask, kept: Mask, network: Trained, rules: Rules, tell: Progress) -> None:
    """Repair the last of ``stages``, and the others as far as an iterative method comes in as many iterations."""
    from efface.parts import crops

    card, picture = network.method.card, stages[-1]
    taken = FIXED_BYTES + sum(stage.pixels.nbytes for stage in stages) + PLANES * mask.size
    room = min(LARGEST_CROP, crops.pixels_for(int(rules.memory), bytes_per_pixel=card.bytes_per_pixel, fixed=taken))
    context = max(card.radius, 16) + rules.feather
    boxes = crops.crops_around(
        mask, context=context, multiple=card.multiple, smallest=card.smallest, largest_pixels=room
    )
    count = _iterations(network, rules)
    given: dict[str, Any] = {} if count is None else {"iterations": count, "return_all": len(stages) > 1}
    if "views" in inspect.signature(network.method.run).parameters:
        given["views"] = VIEWS[rules.quality]

    def run(x: Tensor, mask: Tensor) -> Tensor:
        made = network.run(x, mask=mask, **given)
        return made.transpose(0, 1).flatten(1, 2) if len(stages) > 1 else made  # (b, iterations * 3, h, w)

    def paste(box: masks.Box, values: np.ndarray, weight: np.ndarray) -> None:
        for stage, part in zip(stages, np.split(values, len(stages)), strict=True):
            stage.paste(box, part, weight)

    crops.apply(
        run,
        picture.rgb,
        paste,
        mask,
        boxes,
        multiple=card.multiple,
        smallest=card.smallest,
        feather_px=rules.feather,
        keep=kept,
        batch_pixels=room,
        progress=lambda done, total: tell(0.4 + 0.6 * done / total, "repairing"),
    )


def read_mask(mask: Any, size: tuple[int, int]) -> Mask:
    """Read a mask for a picture of ``size`` (h, w), in any of the forms of a picture, or as bool values."""
    where = str(mask) if isinstance(mask, str | Path) else None
    if "bool" in str(getattr(mask, "dtype", "")):  # an array or a tensor
        mask = (mask.astype(np.uint8) if isinstance(mask, np.ndarray) else mask.byte()) * 255
    try:
        drawn = read_picture(mask, max_pixels=max(MAX_PIXELS, size[0] * size[1]))
    except PictureError as error:
        error.where = where or "mask"
        raise
    pixels = drawn.pixels if drawn.alpha is None else np.concatenate([drawn.pixels, drawn.alpha[..., None]], 2)
    if pixels.dtype != np.float32 and pixels.max() == 1:
        fix = f"Write {full_scale(pixels.dtype)} where something is to go"
        raise MaskError("the mask holds only 0 and 1, which is all black", where=where, fix=fix)
    try:
        return masks.from_picture(pixels, size)
    except MaskError as error:
        error.where = error.where or where
        raise
