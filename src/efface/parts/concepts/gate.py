"""Say how much an edit of a concept concerns a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from efface.parts.concepts.slots import encode, word_tokens

Mode = Literal["both", "cosine", "tokens"]


@torch.no_grad()
def facilitation(pipe: Any, prompts: Sequence[str], concepts: Sequence[str], *, mode: Mode = "both") -> Tensor:
    """Return (prompts, concepts) float32 in [0, 1]: 1 where a prompt names a concept, near 0 where it is about others.

    It is the larger of the cosine of the two embeddings, all slots at once, and the share of the concept's tokens that
    the prompt holds (Facilitated Transport of SPM, arXiv:2312.16145, section 3.4); ``mode`` takes one of them alone.
    """
    named = torch.tensor([[_shared(pipe, prompt, concept) for concept in concepts] for prompt in prompts])
    if mode == "tokens":
        return named
    one, other = (torch.nn.functional.normalize(encode(pipe, t).embeds.flatten(1), dim=1) for t in (prompts, concepts))
    cosine = (one @ other.T).clamp(0, 1).float().cpu()
    return cosine if mode == "cosine" else torch.maximum(cosine, named)


def _shared(pipe: Any, prompt: str, concept: str) -> float:
    wanted = set(word_tokens(pipe, concept))
    return len(wanted & set(word_tokens(pipe, prompt))) / len(wanted) if wanted else 0.0
