"""Say which share of each layer's weights stays when a network keeps a given share of all.

A rule gives every layer a ratio r; its density is min(1, c r), with c such that the network has the density D that is
asked for. Densities that another method finds are counted from its masks: see ``MaskSet.per_layer``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import accumulate

from efface.errors import UnknownNameError, UsageError

Shapes = Mapping[str, tuple[int, ...]]
LAST = 0.2
"""Density of the last linear layer under ``uniform+`` where the network's is less."""


def densities(
    rule: str, shapes: Shapes, density: float, *, fixed: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the density in (0, 1] of each layer, so that together they keep ``density`` (D) of all weights.

    ``uniform``: all the same. ``uniform+``: the first convolution dense, the last linear layer at least 0.2.
    ``er``: r = (in + out) / (in out), Erdős-Rényi (SET, arXiv:1707.04780). ``erk``: r = sum of the shape over its
    product, with the kernel (RigL, arXiv:1911.11134). ``erk+``: that, with the last linear layer dense (Random Pruning,
    arXiv:2202.02643). ``igq``: 1 / (1 + F n) for n weights, ideal gas quotas. ``balanced``: as many weights in all.

    ``shapes`` are in the network's order. Layers in ``fixed`` have the density that is given, whatever the rule, and
    the others make up for it.

    Raises
    ------
    UnknownNameError
        If there is no such rule, or no such layer.
    UsageError
        If a density is outside (0, 1], a layer has no weights, or ``fixed`` layers leave too little or too much.
    """
    if rule not in RULES:
        raise UnknownNameError("rule of densities", rule, RULES)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    held = _ends(rule, shapes, density) | dict(fixed or {})
    _check(sizes, density, held)
    free = {name: size for name, size in sizes.items() if name not in held}
    left = density * sum(sizes.values()) - sum(d * sizes[name] for name, d in held.items())
    if not free and abs(left) < 0.5:
        return {name: held[name] for name in shapes}
    if not 0 < left <= sum(free.values()) * (1 + 1e-12):
        total, kept = sum(sizes.values()), sum(d * sizes[name] for name, d in held.items())
        least, most = 1e4 * (kept + len(free)) / total, 1e4 * (kept + sum(free.values())) / total
        bound = f"least {math.ceil(least) / 100:.2f}" if left <= 0 else f"most {math.floor(most) / 100:.2f}"
        what = f"{', '.join(held)} keep {kept:.0f} weights, so {density * total:.0f} of all {total} cannot stay"
        raise UsageError(what, where=rule, fix=f"Keep at {bound} % of the weights, or choose another rule")
    share = min(1.0, left / sum(free.values()))
    found = RULES[rule]({name: shapes[name] for name in free}, free, share)
    return {name: held[name] if name in held else found[name] for name in shapes}


def water_fill(ratios: Mapping[str, float], sizes: Mapping[str, int], density: float) -> dict[str, float]:
    """Return min(1, c r) for each ratio r > 0, with c such that ``density`` of all ``sizes`` together stays."""
    names = sorted(ratios, key=lambda name: -ratios[name])
    rests = [*accumulate(ratios[name] * sizes[name] for name in reversed(names))][::-1]
    left, scale = density * sum(sizes[name] for name in names), 0.0
    for name, rest in zip(names, rests, strict=True):
        scale = left / rest
        if scale * ratios[name] <= 1:
            break
        left -= sizes[name]
    return {name: min(1.0, scale * ratio) for name, ratio in ratios.items()}


def exact_counts(densities: Mapping[str, float], sizes: Mapping[str, int], *, min_kept: int = 1) -> dict[str, int]:
    """Return how many weights of each layer stay: whole numbers that add up to the rounded sum of density times size.

    Each layer has at least ``min_kept``, or all it has; the others then share what is left by their densities. What
    rounding leaves over goes to the largest remainders.

    Raises
    ------
    UsageError
        If there are not enough weights for all minima.
    """
    quotas = {name: density * sizes[name] for name, density in densities.items()}
    floors = {name: min(min_kept, sizes[name]) for name in quotas}
    left = round(round(math.fsum(quotas.values()), 6))  # 2.4999999999 is 2.5
    if left < sum(floors.values()):
        what = f"{left} weights are too few to give each of {len(quotas)} layers {min_kept}"
        share = sum(floors.values()) / max(1, sum(sizes[name] for name in quotas))
        raise UsageError(what, fix=f"Ask for a density of at least {share:.3g}, or a smaller minimum")
    counts: dict[str, int] = {}
    while low := {name: floors[name] for name, quota in quotas.items() if quota < floors[name]}:
        counts |= low
        left -= sum(low.values())
        rest = math.fsum(quota for name, quota in quotas.items() if name not in low)
        quotas = {name: quota * left / rest for name, quota in quotas.items() if name not in low}
    whole = {name: math.floor(quota + 1e-9) for name, quota in quotas.items()}
    most_left = sorted(quotas, key=lambda name: whole[name] - quotas[name])
    for name in most_left[: left - sum(whole.values())]:
        whole[name] += 1
    counts |= whole
    return {name: counts[name] for name in densities}


def _uniform(shapes: Shapes, sizes: Mapping[str, int], density: float) -> dict[str, float]:
    return dict.fromkeys(shapes, density)


def _er(shapes: Shapes, sizes: Mapping[str, int], density: float) -> dict[str, float]:
    return water_fill({name: sum(s[:2]) / math.prod(s[:2]) for name, s in shapes.items()}, sizes, density)


def _erk(shapes: Shapes, sizes: Mapping[str, int], density: float) -> dict[str, float]:
    return water_fill({name: sum(s) / math.prod(s) for name, s in shapes.items()}, sizes, density)


def _balanced(shapes: Shapes, sizes: Mapping[str, int], density: float) -> dict[str, float]:
    return water_fill({name: 1 / size for name, size in sizes.items()}, sizes, density)


def _igq(shapes: Shapes, sizes: Mapping[str, int], density: float) -> dict[str, float]:
    """Find F by bisection: a layer keeps n / (1 + F n) < 1 / F weights, so F is less than layers over weights kept."""
    target = density * sum(sizes.values())
    low, high = 0.0, len(sizes) / target
    for _ in range(100):
        middle = (low + high) / 2
        kept = math.fsum(size / (1 + middle * size) for size in sizes.values())
        low, high = (middle, high) if kept > target else (low, middle)
    return {name: 1 / (1 + high * size) for name, size in sizes.items()}


RULES: dict[str, Callable[[Shapes, Mapping[str, int], float], dict[str, float]]] = {
    "uniform": _uniform,
    "uniform+": _uniform,
    "er": _er,
    "erk": _erk,
    "erk+": _erk,
    "igq": _igq,
    "balanced": _balanced,
}
"""Rules by name: what each makes of shapes, sizes and the density of layers that are not fixed."""


def _ends(rule: str, shapes: Shapes, density: float) -> dict[str, float]:
    """Return the densities at which a rule holds the first convolution and the last linear layer."""
    first = next((name for name, shape in shapes.items() if len(shape) > 2), None)
    last = next((name for name, shape in [*shapes.items()][::-1] if len(shape) == 2), None)
    held: dict[str, float] = {}
    if rule == "uniform+" and first is not None:
        held[first] = 1.0
    if rule == "uniform+" and last is not None and density < LAST:
        held[last] = LAST
    if rule == "erk+" and last is not None:
        held[last] = 1.0
    return held


def _check(sizes: Mapping[str, int], density: float, held: Mapping[str, float]) -> None:
    if not sizes:
        raise UsageError("there are no layers", fix="Name a network with weights to prune")
    for name, size in sizes.items():
        if size == 0:
            raise UsageError("the layer has no weights", where=name, fix="Exclude it")
    for where, value in (("density", density), *held.items()):
        if not 0 < value <= 1:
            raise UsageError(f"{value} is not a density", where=where, fix="Choose one above 0 and up to 1")
    for name in held:
        if name not in sizes:
            raise UnknownNameError("layer", name, sizes)
