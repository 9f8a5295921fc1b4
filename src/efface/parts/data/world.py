"""Make batches of the procedural world: labelled pictures, what a judge learns from, or latents with captions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from efface.parts.diffusion.latents import decode, encode
from efface.parts.worlds.captions import drawn_caption
from efface.parts.worlds.pipeline import load_autoencoder, load_text_encoder, tokenizer
from efface.parts.worlds.world import FACTORS, SIDE, Scene, render, scenes
from efface.seeds import numpy_generator

NONE = torch.tensor([len(values) for values in FACTORS.values()])
"""Label of each factor that has no value in a picture."""


@dataclass(frozen=True)
class World:
    """Scenes drawn anew for every batch."""

    def batch(self, seed: int, step: int, count: int) -> dict[str, Tensor]:
        """Return ``picture`` (b, 3, 32, 32) in [0, 1] and ``labels`` (b, number of factors), numbers of the values."""
        drawn = scenes(count, numpy_generator(seed, step, "world"))
        return {"picture": torch.from_numpy(render(drawn).picture), "labels": labels(drawn)}


@dataclass(frozen=True)
class Judged:
    """Scenes, their reconstructions by an autoencoder, and pictures in which factors have no value.

    ``kinds`` are the shares of: scenes, reconstructions, blends of two scenes (their common values stay), noise (no
    factor has a value) and empty backgrounds.
    """

    autoencoder: str | Path
    kinds: tuple[float, ...] = (0.4, 0.4, 0.08, 0.06, 0.06)

    @cached_property
    def _vae(self) -> Any:
        return load_autoencoder(self.autoencoder)

    def batch(self, seed: int, step: int, count: int) -> dict[str, Tensor]:
        """Return ``picture`` (b, 3, 32, 32) in [0, 1] and ``labels`` (b, number of factors)."""
        generator = numpy_generator(seed, step, "judged")
        kind = torch.from_numpy(generator.choice(len(self.kinds), count, p=self.kinds))
        drawn, others = scenes(count, generator), scenes(count, generator)
        picture, label = torch.from_numpy(render(drawn).picture), labels(drawn)
        if (kind == 1).any():
            picture[kind == 1] = decode(self._vae, encode(self._vae, picture[kind == 1]))
        for i in torch.nonzero(kind >= 2).flatten().tolist():
            if kind[i] == 2:
                picture[i] = (picture[i] + torch.from_numpy(render([others[i]]).picture[0])) / 2
                label[i] = torch.where(label[i] == labels([others[i]])[0], label[i], NONE)
            elif kind[i] == 3:
                picture[i], label[i] = _noise(generator), NONE
            else:
                picture[i] = picture[i, :, :1, :1] if drawn[i].style != "noisy" else picture[i].mean((1, 2), True)
                label[i] = torch.where(torch.tensor([f == "background" for f in FACTORS]), label[i], NONE)
        shake = torch.from_numpy(generator.normal(0, 0.02, picture.shape).astype(np.float32))
        return {"picture": (picture + shake).clamp(0, 1), "labels": label}


@dataclass(frozen=True)
class Captions:
    """Captions of scenes drawn anew for every batch, with what the scenes are."""

    def batch(self, seed: int, step: int, count: int) -> dict[str, Tensor]:
        """Return ``tokens`` (b, slots) and ``labels`` (b, number of factors) of the scenes, said or unsaid."""
        generator = numpy_generator(seed, step, "captions")
        drawn = scenes(count, generator)
        return {"tokens": tokens([drawn_caption(scene, generator) for scene in drawn]), "labels": labels(drawn)}


@dataclass(frozen=True)
class Captioned:
    """Latents of ``scenes`` scenes, encoded once, each under a new caption whenever it is drawn.

    One caption in ten is empty, which is what guidance starts from. ``autoencoder`` and ``text`` are the folders of
    the weights that encode the two.
    """

    autoencoder: str | Path
    text: str | Path
    scenes: int = 16384
    empty: float = 0.1

    @cached_property
    def _text(self) -> Any:
        return load_text_encoder(self.text)

    @cached_property
    def _cache(self) -> tuple[list[Scene], Tensor]:
        drawn, vae = scenes(self.scenes, numpy_generator(0, "captioned")), load_autoencoder(self.autoencoder)
        parts = [encode(vae, torch.from_numpy(render(drawn[i : i + 256]).picture)) for i in range(0, len(drawn), 256)]
        return drawn, torch.cat(parts)

    @torch.no_grad()
    def batch(self, seed: int, step: int, count: int) -> dict[str, Tensor]:
        """Return ``latent`` (b, 8, 8, 8) of unit variance and ``text`` (b, slots, width)."""
        drawn, latents = self._cache
        generator = numpy_generator(seed, step, "captioned")
        places = generator.integers(len(drawn), size=count)
        captions = [
            "" if generator.random() < self.empty else drawn_caption(drawn[place], generator) for place in places
        ]
        return {"latent": latents[torch.from_numpy(places)], "text": self._text(tokens(captions)).last_hidden_state}


def tokens(captions: list[str]) -> Tensor:
    """Return the tokens (b, slots) of captions."""
    padded = _tokenizer()(captions, padding="max_length", truncation=True, return_tensors="pt")
    return padded.input_ids


@cache
def _tokenizer() -> Any:
    return tokenizer()


def labels(drawn: list[Scene]) -> Tensor:
    """Return the labels (b, number of factors) of scenes."""
    return torch.tensor([list(scene.labels().values()) for scene in drawn])


def _noise(generator: Generator) -> Tensor:
    """Return noise (3, 32, 32) of a random grain, contrast and tint."""
    grain = 2 ** int(generator.integers(5))
    field = torch.from_numpy(generator.normal(0, generator.uniform(0.05, 0.5), (1, 3, SIDE // grain, SIDE // grain)))
    tint = torch.from_numpy(generator.uniform(0, 1, (1, 3, 1, 1)))
    mode = "bilinear" if generator.random() < 0.5 else "nearest"
    return (F.interpolate(field, SIDE, mode=mode) + tint)[0].clamp(0, 1).float()
