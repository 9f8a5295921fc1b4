"""Say what a picture of the world shows: one small network, with a head for each factor.

Every head has one class more than its factor has values, "none", which it learns on noise, on blends of two scenes and
on empty backgrounds: a judge that must always name a value would call rubbish a circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from efface.io.weights import load_card, load_weights
from efface.parts.worlds.world import FACTORS, SIDE, Scene

SHIPPED = Path(__file__).resolve().parents[2] / "weights" / "world-judge"
CLASSES = {factor: (*values, "none") for factor, values in FACTORS.items()}
"""What the head of each factor tells apart."""


class Judge(nn.Module):
    """Convolutions from 32 to 4 pixels, a layer of features, and the heads."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96), features: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1), nn.SiLU()]
        for before, width in pairwise(widths):
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
        side = SIDE // 2 ** (len(widths) - 1)
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side**2, features), nn.SiLU())
        self.heads = nn.ModuleDict({factor: nn.Linear(features, len(names)) for factor, names in CLASSES.items()})

    def features(self, picture: Tensor) -> Tensor:
        """Return what the heads see of ``picture`` (b, 3, 32, 32) in [0, 1]: (b, features)."""
        return self.trunk(2 * picture - 1)

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        """Return the logits (b, classes) of each factor."""
        features = self.features(picture)
        return {factor: head(features) for factor, head in self.heads.items()}

    @torch.no_grad()
    def names(self, picture: Tensor) -> dict[str, list[str]]:
        """Return the name that each factor most likely has in each picture; ``none`` where it has no value."""
        return {f: [CLASSES[f][i] for i in logits.argmax(1).tolist()] for f, logits in self(picture).items()}


def load_judge(folder: str | Path = SHIPPED) -> Judge:
    """Load the judge in ``folder`` (default: the one that comes with the package), frozen and in evaluation mode."""
    params = load_card(Path(folder))["params"]
    judge = Judge(tuple(params["widths"]), params["features"])
    tensors, _ = load_weights(Path(folder), {k: tuple(v.shape) for k, v in judge.state_dict().items()})
    judge.load_state_dict(tensors)
    return judge.eval().requires_grad_(False)


def agreement(judge: Judge, pictures: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Return the share of ``pictures`` in which ``judge`` sees each factor as in ``scenes``, and ``all`` of them."""
    seen = judge.names(pictures)
    right = {
        factor: [name == getattr(s, factor) for name, s in zip(seen[factor], scenes, strict=True)] for factor in seen
    }
    shares = {factor: sum(hits) / len(scenes) for factor, hits in right.items()}
    return shares | {"all": sum(map(all, zip(*right.values(), strict=True))) / len(scenes)}
