"""Get pictures that have captions: read from a folder, as trainers of diffusion models take it, or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from efface.errors import DataError
from efface.io.images import SUFFIXES, read_picture
from efface.parts.diffusion.inversion import encoded
from efface.parts.diffusion.pipelines import sample
from efface.parts.diffusion.samplers import dpmpp_2m
from efface.seeds import derive


def captioned(folder: str | Path, side: int) -> tuple[Tensor, list[str]]:
    """Return pictures (n, 3, side, side) in [0, 1], their middle squares, and the caption of each, by name of the file.

    The caption of ``a.png`` is what ``a.txt`` holds; several pictures may have the same.

    Raises
    ------
    DataError
        If there is no picture, or one has no caption.
    """
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError("holds no pictures", where=folder, fix="Give a folder of pictures, each with a .txt beside it")
    pictures, captions = [], []
    for path in paths:
        try:
            captions.append(path.with_suffix(".txt").read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            fix = f"Write what the picture shows into {path.stem}.txt"
            raise DataError("has no caption", where=path, fix=fix) from error
        pictures.append(_square(torch.from_numpy(read_picture(path).rgb()), side))
    return torch.stack(pictures), captions


def drawn(
    pipe: Any, captions: Sequence[str], seed: int, steps: int = 25, guidance: float = 6.0, *, batch: int = 16
) -> Tensor:
    """Return the latents (n, c, h, w) of a picture for each caption that ``pipe`` draws by DPM-Solver++.

    ``batch`` are drawn at a time, and only latents are held.
    """
    latents = []
    for first in range(0, len(captions), batch):
        some = captions[first : first + batch]
        seeds = [derive(seed, first + i) for i in range(len(some))]
        pictures = sample(pipe, some, seeds, steps=steps, guidance=guidance, sampler=dpmpp_2m)
        latents.append(encoded(pipe, pictures))
    return torch.cat(latents)


def _square(picture: Tensor, side: int) -> Tensor:
    height, width = picture.shape[1:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    middle = picture[None, :, top : top + short, left : left + short]
    return F.interpolate(middle, size=(side, side), mode="bilinear", antialias=True)[0].clamp(0, 1)
