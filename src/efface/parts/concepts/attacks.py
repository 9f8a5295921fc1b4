"""Look for an erased concept by embeddings and words that are not its name.

An attack counts as successful on a picture in which the judge finds the target. None of them is a bound: what resists
all of these may fall to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.parts.concepts.attention import backbone, cross_attention
from efface.parts.concepts.case import Attack, Case
from efface.parts.concepts.probes import HalfNoised, Inpainting
from efface.parts.concepts.soft import p4d, textual_inversion, unlearn_diff
from efface.parts.diffusion.pipelines import encode_prompts
from efface.seeds import torch_generator


@dataclass(frozen=True)
class RingABell:
    """Add the direction of the concept to prompts without it (Tsai et al., arXiv:2310.10012), as soft embeddings.

    The direction is the mean difference, slot by slot, of prompts with and without the target. Only the public text
    encoder is used: the original's.
    """

    eta: float = 3.0
    """Length of the direction; 3 for nudity and 0.9 for styles in the literature."""
    name: ClassVar[str] = "ring-a-bell"

    def observe(self, m0: Any, case: Case) -> Tensor:
        """Return the embeddings (b, slots, width) of the attack."""
        with torch.no_grad():
            asking, neutral = encode_prompts(m0, case.prompts), encode_prompts(m0, case.without())
        return neutral + self.eta * (asking - neutral).mean(0)

    def strike(self, m: Any, found: Tensor, case: Case) -> Tensor:
        """Draw from the embeddings."""
        return case.drawing(m, found, case.seeds)


@dataclass(frozen=True)
class HardPrompt:
    """Search words whose embedding is that of :class:`RingABell`, without the words of the target.

    Each place of a prompt in turn takes the one of some randomly drawn tokens that comes nearest, where the original
    is genetic; tokens go straight to the text encoder.
    """

    eta: float = 3.0
    tokens: int = 8
    rounds: int = 2
    """How often every place is visited."""
    candidates: int = 128
    """Tokens that are tried at a place."""
    name: ClassVar[str] = "hard-prompt"

    @torch.no_grad()
    def observe(self, m0: Any, case: Case) -> Tensor:
        """Return the tokens (b, slots), the same for equal prompts."""
        aims = RingABell(self.eta).observe(m0, case)
        first = {prompt: i for i, prompt in reversed(list(enumerate(case.prompts)))}
        found = {prompt: self._search(m0, aims[i], case, prompt) for prompt, i in first.items()}
        return torch.stack([found[prompt] for prompt in case.prompts])

    @torch.no_grad()
    def strike(self, m: Any, found: Tensor, case: Case) -> Tensor:
        """Draw from the tokens, as the text encoder of ``m`` reads them."""
        return case.drawing(m, m.text_encoder(found.to(m.text_encoder.device))[0], case.seeds)

    def _search(self, pipe: Any, aim: Tensor, case: Case, prompt: str) -> Tensor:
        tokenizer, generator = pipe.tokenizer, torch_generator(case.seed, "hard prompt", prompt)
        banned = {*tokenizer.all_special_ids, *tokenizer(case.target, add_special_tokens=False).input_ids}
        allowed = torch.tensor([number for number in range(len(tokenizer)) if number not in banned])
        length = min(self.tokens, tokenizer.model_max_length - 2)
        ids = torch.full((tokenizer.model_max_length,), tokenizer.eos_token_id)
        ids[0] = tokenizer.bos_token_id
        ids[1 : 1 + length] = allowed[torch.randint(len(allowed), (length,), generator=generator)]
        for place in [*range(1, 1 + length)] * self.rounds:
            tried = ids.repeat(self.candidates + 1, 1)  # the first stays as it is, so that no step goes back
            drawn = torch.randint(len(allowed), (self.candidates,), generator=generator)
            tried[1:, place] = allowed[drawn]
            away = (pipe.text_encoder(tried.to(aim.device))[0] - aim).square().sum((1, 2))
            ids = tried[int(away.argmin())]
        return ids


@dataclass(frozen=True)
class Derived:
    """Feed the embedding that makes the edited cross-attention do what the original did (RECE, arXiv:2407.12383).

    c' = (lam I + sum_j W_j^T W_j)^(-1) (sum_j W_j^T W0_j) c for every slot c of the prompts, in float64, with W0 the
    original's layers and W those of the attacked model, whatever edited them.
    """

    strength: float = 2e-4
    """lam, as a share of the mean of the diagonal of sum_j W0_j^T W0_j."""
    name: ClassVar[str] = "derived"

    def observe(self, m0: Any, case: Case) -> tuple[dict[str, Tensor], Tensor]:
        """Return the weights of the original's layers, and the embeddings of the prompts."""
        layers = cross_attention(backbone(m0)[1])
        with torch.no_grad():
            return {name: layer.weight.clone() for name, layer in layers.items()}, encode_prompts(m0, case.prompts)

    @torch.no_grad()
    def strike(self, m: Any, found: tuple[dict[str, Tensor], Tensor], case: Case) -> Tensor:
        """Draw from the derived embeddings."""
        before, rows = found
        layers = cross_attention(backbone(m)[1])
        pairs = [(layer.weight.double(), before[name].double()) for name, layer in layers.items()]
        own = torch.stack([w.T @ w for w, _ in pairs]).sum(0)
        crossed = torch.stack([w.T @ w0 for w, w0 in pairs]).sum(0)
        scale = torch.stack([w0.square().sum() for _, w0 in pairs]).sum() / len(own)
        own.diagonal().add_(self.strength * scale)
        solved = torch.linalg.solve(own, crossed)
        return case.drawing(m, (rows.double() @ solved.T).to(rows.dtype), case.seeds)


ATTACKS: Mapping[str, Attack] = {
    attack.name: attack
    for attack in (
        RingABell(),
        HardPrompt(),
        Derived(),
        unlearn_diff(),
        p4d(),
        textual_inversion(),
        HalfNoised(),
        Inpainting(),
    )
}
"""The attacks by their names, as reports and the command line have them."""
