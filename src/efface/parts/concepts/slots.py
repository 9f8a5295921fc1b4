"""Encode prompts, and know what each slot of an embedding is: the start, a word, the first end, or padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from efface.errors import UsageError

TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}")
"""Sentences around a concept that edits are made with; score with others."""
Rows = Literal["tail", "content", "all"]
"""Slots of a concept: from its last word on, all but the start, or all."""
LONGEST = 512
"""Slots of a tokenizer that names no limit."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Prompts as a denoiser sees them. The four masks (b, slots) are bool, disjoint, and cover every slot."""

    ids: Tensor
    """(b, slots) tokens, of the first tokenizer where there are two."""
    embeds: Tensor
    """(b, slots, width)"""
    start: Tensor
    words: Tensor
    first_end: Tensor
    pad: Tensor
    """Everything after the first end, whether the padding token is the end token (Stable Diffusion 1) or another."""
    pooled: Tensor | None = None
    """(b, width of the second encoder) summary of each prompt that SDXL is given beside the slots."""

    @property
    def content(self) -> Tensor:
        """Every slot but the start, which all prompts share."""
        return ~self.start

    def picked(self, rows: Sequence[int] | Tensor) -> Encoded:
        """Return some of the prompts, in this order, as often as they are named."""
        rows = rows if isinstance(rows, Tensor) else list(rows)
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: part[rows] for name, part in parts.items() if part is not None})


@torch.no_grad()
def encode(pipe: Any, prompts: Sequence[str], *, batch: int = 64) -> Encoded:
    """Return the embeddings of ``prompts`` that the attention of ``pipe`` reads, and what each slot is.

    One text encoder (Stable Diffusion 1 and 2, PixArt) gives its last layer; two of CLIP's kind (SDXL) their last but
    one, side by side; of FLUX's two the second is read. What is too long for the slots is cut off.

    Raises
    ------
    UsageError
        If the pipeline has no text encoder, or three of them (Stable Diffusion 3).
    """
    encoders, last = _encoders(pipe)
    ids = [_tokens(tokenizer, prompts) for tokenizer, _ in encoders]
    embeds, pooled = [], None
    for own, (_, encoder) in zip(ids, encoders, strict=True):
        made = [encoder(part.to(encoder.device), output_hidden_states=not last) for part in own.split(batch)]
        embeds.append(torch.cat([found[0] if last else found.hidden_states[-2] for found in made]))
        pooled = None if last else torch.cat([found[0] for found in made])
    return Encoded(ids[0], torch.cat(embeds, dim=-1), **kinds(encoders[0][0], ids[0]), pooled=pooled)


def kinds(tokenizer: Any, ids: Tensor) -> dict[str, Tensor]:
    """Return the masks ``start``, ``words``, ``first_end`` and ``pad`` (b, slots) of tokens ``ids`` (b, slots).

    The first end is found by its token, so a word may have any number of tokens.
    """
    ends = (ids == tokenizer.eos_token_id).cumsum(1)
    first_end = (ends == 1) & (ids == tokenizer.eos_token_id)
    start = torch.zeros_like(first_end)
    start[:, 0] = ids[:, 0] == tokenizer.bos_token_id  # None where there is no start token
    return {
        "start": start,
        "words": (ends == 0) & ~start,
        "first_end": first_end,
        "pad": (ends > 0) & ~first_end,
    }


def word_tokens(pipe: Any, text: str) -> tuple[int, ...]:
    """Return the tokens of ``text`` alone, with no start, end or padding, and with no limit to their number."""
    tokenizer = _encoders(pipe)[0][0][0]
    return tuple(tokenizer(text, add_special_tokens=False, truncation=False).input_ids)


def slots(pipe: Any) -> int:
    """Return how many slots a prompt has, special ones included."""
    return _limit(_encoders(pipe)[0][0][0])


def aligned(
    pipe: Any, concept: str, guide: str, templates: Sequence[str] = ("{}",), *, rows: Rows = "tail"
) -> tuple[Tensor, Tensor]:
    """Return rows (n, width) of ``concept`` and the rows of ``guide`` that are to take their places.

    In each template last words meet, and so do all slots behind them; where one has fewer, its last slot serves again.
    ``tail`` begins at the last word, as the first code of UCE does; ``content`` takes the words before it as well, and
    ``all`` also the start. They meet from the start on, and a longer concept's meet the last word of the guide. For an
    empty guide the slot behind the words before it stands.
    """
    texts = [template.replace("{}", text) for template in templates for text in (concept, guide)]
    before = [template.partition("{}")[0] + text for template in templates for text in (concept, guide)]
    places = [
        last + (not text)
        for last, text in zip(last_words(pipe, before), [concept, guide] * len(templates), strict=True)
    ]
    given, old, new = encode(pipe, texts), [], []
    for number in range(0, len(texts), 2):
        own, other = places[number : number + 2]
        begin = own if rows == "tail" else int(given.start[number, 0]) if rows == "content" else 0
        slot = torch.arange(begin, given.ids.shape[1])
        meets = torch.where(slot < own, slot.clamp(max=other), slot - own + other).clamp(max=given.ids.shape[1] - 1)
        old.append(given.embeds[number, begin:])
        new.append(given.embeds[number + 1, meets])
    return torch.cat(old), torch.cat(new)


def last_words(pipe: Any, texts: Sequence[str]) -> list[int]:
    """Return the slot of the last word of each of ``texts``; of the start where there is no word."""
    tokenizer = _encoders(pipe)[0][0][0]
    found = kinds(tokenizer, _tokens(tokenizer, texts))
    return [max(0, count - 1) for count in (found["start"] | found["words"]).sum(1).tolist()]


def _encoders(pipe: Any) -> tuple[list[tuple[Any, Any]], bool]:
    """Return tokenizers and encoders whose embeddings lie side by side, and whether their last layer is read."""
    pairs = [(getattr(pipe, f"tokenizer{n}", None), getattr(pipe, f"text_encoder{n}", None)) for n in ("", "_2", "_3")]
    given = [(tokenizer, encoder) for tokenizer, encoder in pairs if tokenizer is not None and encoder is not None]
    if not given or len(given) == 3:
        what = f"has {len(given) or 'no'} text encoders"
        raise UsageError(what, where=type(pipe).__name__, fix="Give a pipeline of Stable Diffusion 1, 2, XL or FLUX")
    if getattr(pipe, "transformer", None) is not None:
        return given[-1:], True
    return given, pairs[1][1] is None


def _tokens(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    given = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=_limit(tokenizer), return_tensors="pt"
    )
    return given.input_ids


def _limit(tokenizer: Any) -> int:
    return min(int(tokenizer.model_max_length), LONGEST)
