"""Make several masks of one density to choose from, and name the blocks in which a network is worked on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from efface.errors import UnknownNameError
from efface.parts.sparsity.budget import best
from efface.parts.sparsity.densities import exact_counts, water_fill
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.scores import magnitude
from efface.seeds import numpy_generator


def noisy_masks(net: nn.Module, every: MaskSet, density: float, count: int, noise: float, seed: int) -> list[MaskSet]:
    """Return ``count`` masks that share ``density`` out over layers differently: the first one equally.

    In the others the density of each layer is multiplied by the exponential of a normal draw of deviation ``noise``,
    and all are scaled to keep the same number of weights. Inside a layer the largest weights stay, one at least. Raises
    :class:`UsageError` if there are fewer weights to keep than layers.
    """
    sizes = {name: mask.numel() for name, mask in every.items()}
    scores = magnitude({name: net.get_parameter(name) for name in every})
    found = []
    for i in range(count):
        draw = numpy_generator(seed, "candidate", i).standard_normal(len(sizes)) * (noise if i else 0.0)
        ratios = {name: math.exp(x) for name, x in zip(sizes, draw, strict=True)}
        found.append(best(scores, every, exact_counts(water_fill(ratios, sizes, density), sizes)))
    return found


def blocks_of(weights: Iterable[str], granularity: str, globs: Sequence[str] = ()) -> list[list[str]]:
    """Return the names of the weights in each block, in the order of the network.

    ``layer``: each by itself; ``all``: one block; ``block``: by child of the network, or by ``globs``, one a block. A
    glob that matches nothing raises :class:`UnknownNameError`.
    """
    names = list(weights)
    if granularity != "block":
        return [names] if granularity == "all" else [[name] for name in names]
    if globs:
        blocks = [[name for name in names if fnmatchcase(name, glob)] for glob in globs]
        for glob, block in zip(globs, blocks, strict=True):
            if not block:
                raise UnknownNameError("weight in a block", glob, names)
        return blocks
    children: dict[str, list[str]] = {}
    for name in names:
        children.setdefault(name.partition(".")[0], []).append(name)
    return list(children.values())
