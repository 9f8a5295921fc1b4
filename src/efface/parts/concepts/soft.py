"""Learn free vectors among the words of a prompt until the edited model draws the target again.

The vectors take the place of token embeddings and go through the text encoder of the attacked model. The published
attacks differ in where they stand, and in what the model is asked to predict: the noise in a picture of the target
(UnlearnDiffAtk, textual inversion), or what the original predicts for the true prompt (P4D). The first and last project
onto tokens; here the vectors stay free, which is the stronger attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from efface.parts.concepts.case import Case
from efface.parts.diffusion.adapters import Process
from efface.parts.diffusion.inversion import encoded
from efface.parts.diffusion.pipelines import encode_prompts, first_noise, model_of
from efface.seeds import derive, torch_generator

Place = Literal["before", "instead", "alone"]
"""Where the vectors stand: before the prompt, in the place of the target's name, or with no words at all."""


@dataclass(frozen=True, eq=False)
class State:
    """Some noised pictures of the target at one level."""

    x: Tensor
    """(b, c, h, w): x0 + sigma * noise."""
    sigma: float
    wanted: Tensor
    """(b, c, h, w): the x0 that the attacked model is to see in it."""
    pictures: list[int]
    """Which pictures of the case these are."""


@dataclass(frozen=True)
class SoftPrompt:
    """Free vectors that are learnt once for all prompts, by Adam."""

    name: str
    place: Place
    vectors: int
    imitate: bool = False
    """Match what the original predicts, rather than the picture itself."""
    steps: int = 100
    batch: int = 8
    levels: int = 25
    """Noise levels that take turns."""
    rate: float = 0.1
    """Step of Adam, as a share of the root mean square of token embeddings."""

    @torch.no_grad()
    def observe(self, m0: Any, case: Case) -> list[State]:
        """Return noised pictures of the target and what is to be predicted for them."""
        generator = torch_generator(case.seed, self.name)
        table, model = Process.of(m0.scheduler).sigmas, model_of(m0)
        latents = encoded(m0, case.pictures)
        states = []
        for step in range(self.levels):
            chosen = torch.randint(len(latents), (self.batch,), generator=generator).tolist()
            sigma = float(table[int(torch.randint(len(table), (1,), generator=generator))])
            noise = first_noise(m0, [derive(case.seed, self.name, step, i) for i in range(self.batch)])
            x, wanted = latents[chosen] + sigma * noise, latents[chosen]
            if self.imitate:
                wanted = model(x, sigma, encode_prompts(m0, [case.prompts[i] for i in chosen]))
            states.append(State(x, sigma, wanted, chosen))
        return states

    def strike(self, m: Any, found: list[State], case: Case) -> Tensor:
        """Learn the vectors and draw with them."""
        texts = [self._around(prompt, case.target) for prompt in case.prompts]
        vectors = self.learn(m, found, case, texts)
        with torch.no_grad():
            return case.drawing(m, spoken(m, texts, vectors), case.seeds)

    def learn(self, m: Any, states: Sequence[State], case: Case, texts: Sequence[tuple[str, str]]) -> Tensor:
        """Return the vectors (vectors, width) with the least squared error of the noise over ``states``."""
        table = m.text_encoder.get_input_embeddings().weight.detach()
        words = torch.randint(len(table), (self.vectors,), generator=torch_generator(case.seed, self.name, "words"))
        vectors = table[words.to(table.device)].float().requires_grad_()
        optimizer = torch.optim.Adam([vectors], lr=self.rate * float(table.float().square().mean().sqrt()))
        model = model_of(m)
        for step in range(self.steps):
            state = states[step % len(states)]
            with torch.enable_grad():
                given = spoken(m, [texts[i] for i in state.pictures], vectors)
                error = (model(state.x, state.sigma, given) - state.wanted) / state.sigma  # that of the noise
                (vectors.grad,) = torch.autograd.grad(error.float().square().mean(), vectors)
            optimizer.step()
        return vectors.detach()

    def _around(self, prompt: str, target: str) -> tuple[str, str]:
        """Return what stands before and after the vectors."""
        if self.place == "alone":
            return "", ""
        before, _, after = prompt.partition(target) if self.place == "instead" else ("", "", prompt)
        return before, after


def unlearn_diff(vectors: int = 3) -> SoftPrompt:
    """Return UnlearnDiffAtk (Zhang et al., arXiv:2310.11868) with a free prefix before the true prompt."""
    return SoftPrompt("unlearn-diff", "before", vectors)


def p4d(vectors: int = 8) -> SoftPrompt:
    """Return P4D-N (Chin et al., arXiv:2309.06135) with free vectors alone that make the model imitate the original."""
    return SoftPrompt("p4d", "alone", vectors, imitate=True)


def textual_inversion(vectors: int = 1) -> SoftPrompt:
    """Return concept inversion (CCE, Pham et al., arXiv:2308.01508): a new word that stands for the target."""
    return SoftPrompt("textual-inversion", "instead", vectors)


def spoken(pipe: Any, texts: Sequence[tuple[str, str]], vectors: Tensor) -> Tensor:
    """Return the embeddings (b, slots, width) of prompts with ``vectors`` between the two parts of each.

    What is too long for the slots is cut off at its end, never the vectors.
    """
    tokenizer, encoder, count = pipe.tokenizer, pipe.text_encoder, len(vectors)
    slots = tokenizer.model_max_length
    rows, firsts = [], []
    for before, after in texts:
        head, tail = (tokenizer(part, add_special_tokens=False).input_ids for part in (before, after))
        head = [tokenizer.bos_token_id, *head][: slots - 1 - count]
        body = [*head, *[tokenizer.bos_token_id] * count, *tail][: slots - 1]
        rows.append([*body, *[tokenizer.eos_token_id] * (slots - len(body))])
        firsts.append(len(head))
    places = torch.tensor(firsts)[:, None] + torch.arange(count)

    def replace(_module: Any, _given: Any, table: Tensor) -> Tensor:
        put = places.to(table.device)[..., None].expand(-1, -1, table.shape[-1])
        return table.scatter(1, put, vectors.to(table.dtype).expand(len(table), -1, -1))

    handle = encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        return encoder(torch.tensor(rows, device=encoder.device))[0]
    finally:
        handle.remove()
