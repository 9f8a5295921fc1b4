"""Draw text embeddings near a concept, beyond it, or anywhere: what an edit should reach, and what it should spare.

In hundreds of dimensions two random directions are almost orthogonal, so a random step from a row decides angle and
distance at once. Here the cosine is drawn first and then a length that keeps the distance, so nothing is rejected. All
lengths and distances are shares of the length of a row; the slots of a sample share the draw.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from efface.errors import UsageError
from efface.parts.concepts.slots import word_tokens

CANDIDATES = 512
"""Words whose tokens are most alike, of which those within a cone may be taken."""


def sample_neighbours(
    e: Tensor, *, cos: tuple[float, float], max_dist: float | None = None, n: int, generator: torch.Generator
) -> Tensor:
    """Return ``n`` neighbours (n, slots, width) of the rows ``e`` (slots, width) (RealEra, arXiv:2410.09140).

    The cosine of every row with its own in ``e`` is in ``cos``, its distance at most ``max_dist``; with None rows keep
    their lengths. Raises :class:`UsageError` if no row can keep both limits.
    """
    low, high = cos
    if not 0 <= low <= high <= 1:
        raise UsageError(f"{low} to {high} is no range of cosines", where="cos", fix="Give two from 0 to 1, rising")
    if max_dist is None:
        rho = _uniform(n, low, high, generator)
        return _turned(e, rho, torch.ones_like(rho), generator)
    least = (1 - high**2) ** 0.5
    if max_dist < least:
        fix = f"Give {least:.3g} or more, or a higher cosine"
        raise UsageError(f"no row of cosine {high} lies within {max_dist}", where="max_dist", fix=fix)
    rho = _uniform(n, max(low, (1 - min(max_dist, 1.0) ** 2) ** 0.5), high, generator)
    half = (max_dist**2 - (1 - rho**2)).clamp(min=0).sqrt()
    shortest = (rho - half).clamp(min=0)
    return _turned(e, rho, shortest + (rho + half - shortest) * _uniform(n, 0, 1, generator), generator)


def sample_beyond(
    e: Tensor, *, dist: tuple[float, float], max_cos: float, n: int, generator: torch.Generator
) -> Tensor:
    """Return ``n`` samples (n, slots, width) whose rows lie ``dist`` from those of ``e``, at cosines below ``max_cos``.

    Raises :class:`UsageError` if no row can be both.
    """
    near, far = dist
    least = (1 - max_cos**2) ** 0.5
    if not (0 < near < far and 0 < max_cos < 1 and least < far):
        fix = f"Rising distances that end above {least:.3g}, the least at a cosine of {max_cos}"
        raise UsageError(f"no row lies {near} to {far} away at a cosine below {max_cos}", where="dist", fix=fix)
    away = _uniform(n, max(near, least), far, generator)
    low = (1 - away**2).clamp(min=0).sqrt()
    rho = low + (max_cos - low) * _uniform(n, 0, 1, generator)
    return _turned(e, rho, rho + (rho**2 + away**2 - 1).clamp(min=0).sqrt(), generator)


def anchors(e: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Return ``n`` anchors (n, slots, width) that are the less likely the nearer to ``e`` (SPM, arXiv:2312.16145).

    A standard normal sample is accepted with the chance 1 - |cosine|, taken over all slots at once, and given 0.8 to
    1.2 times the length of ``e``.
    """
    found: list[Tensor] = []
    while len(found) < n:
        z = torch.randn(e.shape, generator=generator).to(e)
        z = z / z.norm()
        accept, length = torch.rand(2, generator=generator).tolist()
        if accept < 1 - abs(float((z * e).sum() / e.norm())):
            found.append(z * e.norm() * (0.8 + 0.4 * length))
    return torch.stack(found)


def random_prompts(pipe: Any, n: int, generator: torch.Generator, words: int = 3) -> list[str]:
    """Return ``n`` prompts of one to ``words`` random tokens; unlike Gaussian rows they lie where text lies."""
    tokenizer = pipe.tokenizer
    special = {*tokenizer.all_special_ids}
    allowed = [number for number in range(len(tokenizer)) if number not in special]
    counts = torch.randint(1, words + 1, (n,), generator=generator).tolist()
    drawn = [torch.randint(len(allowed), (count,), generator=generator).tolist() for count in counts]
    return [" ".join(tokenizer.decode([allowed[i]]).strip() for i in numbers) for numbers in drawn]


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)


def _turned(e: Tensor, rho: Tensor, length: Tensor, generator: torch.Generator) -> Tensor:
    """Return the rows of ``e`` at the cosines ``rho`` (n,) and ``length`` (n,) times as long, in random directions."""
    rows = e.double()
    unit = rows / rows.norm(dim=-1, keepdim=True)
    z = torch.randn(len(rho), 1, e.shape[-1], generator=generator, dtype=torch.float64).to(rows)
    across = z - (z * unit).sum(-1, keepdim=True) * unit
    across = across / across.norm(dim=-1, keepdim=True)
    rho, length = (part.to(rows)[:, None, None] for part in (rho, length))
    return (length * rows.norm(dim=-1, keepdim=True) * (rho * unit + (1 - rho**2).sqrt() * across)).to(e.dtype)


def alike(pipe: Any, concept: str) -> list[str]:
    """Return the words of one token whose input embeddings are most like those of ``concept``, the nearest first."""
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    tokens = pipe.tokenizer(concept, add_special_tokens=False).input_ids
    cosine = torch.cosine_similarity(table, table[tokens].mean(0), dim=-1)
    found = []
    for token in cosine.topk(min(CANDIDATES, len(table))).indices.tolist():
        word = pipe.tokenizer.decode([token]).strip()
        if word.isalpha() and word_tokens(pipe, word) == (token,):  # else it is a piece of words
            found.append(word)
    return found
