"""Repair what is marked in a picture: what is flat exactly, and the rest with a network, crop by crop."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.errors import UsageError
from efface.io.images import Picture
from efface.parts import masks
from efface.verbs.marking import Mask, Progress
from efface.verbs.rules import Rules

if TYPE_CHECKING:
    from torch import Tensor

    from efface.core.trained import Trained

FIXED_BYTES, PLANES, LARGEST_CROP = 700_000_000, 4, 1 << 20
"""What the process takes without a picture; bytes for each pixel of the picture beside its values (masks); pixels of
the largest crop, from which on none gains by more."""
VIEWS = {"fast": 1, "default": 1, "best": 4}
"""How many mirrored views are averaged by methods that can. Each doubling of the time gains about 0.1 dB."""


@lru_cache(maxsize=2)
def load_network(method: str | None, weights: str | None, device: str) -> Trained:
    """Load a network with its weights, which stay loaded for the next picture."""
    from efface.core.trained import load

    return load(method, weights=weights, device=device)


def fill_flat(picture: Picture, mask: Mask, kept: Mask, feather: int) -> Mask:
    """Fill what is flat, and return the mask of what is not."""
    from efface.parts.fill import flat_fill  # brings torch along, which is not needed until here

    return flat_fill(picture.rgb, picture.paste, mask, feather_px=feather, keep=kept)


def stages_of(picture: Picture, network: Trained, rules: Rules) -> list[Picture]:
    """Return a picture for each iteration, the last one being ``picture`` itself."""
    count = _iterations(network, rules) or 1
    copies = [replace(picture, pixels=picture.pixels.copy(), notes=[*picture.notes]) for _ in range(count - 1)]
    return [*copies, picture]


def _iterations(network: Trained, rules: Rules) -> int | None:
    """Return how often ``network`` refines; None where it is not iterative, and then nobody may ask for iterations."""
    usual = network.method.params().get("iterations")
    if usual is None and rules.iterations is not None:
        raise UsageError(f"{network.card['method']} is not iterative", where="iterations", fix="Leave them out")
    return rules.iterations or usual


def repair(stages: Sequence[Picture], mask: Mask, kept: Mask, network: Trained, rules: Rules, tell: Progress) -> None:
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
