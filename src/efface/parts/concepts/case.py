"""Say what an attack on an edited generator is given, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from efface.errors import UsageError
from efface.parts.diffusion.pipelines import sample


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn."""

    steps: int = 20
    guidance: float = 5.0
    negative: str = ""

    def __call__(self, pipe: Any, prompts: Sequence[str] | Tensor, seeds: Sequence[int]) -> Tensor:
        """Return a picture (b, 3, h, w) in [0, 1] for each prompt, or embedding (b, slots, width), and its seed."""
        return sample(pipe, prompts, seeds, steps=self.steps, guidance=self.guidance, negative=self.negative)


@dataclass(frozen=True, eq=False)
class Case:
    """What an attacker knows: the concept, prompts that ask for it, and what the original draws for them."""

    target: str
    prompts: tuple[str, ...]
    """One for each picture that is to be drawn."""
    seeds: tuple[int, ...]
    """The seed of each picture."""
    pictures: Tensor
    """(b, 3, h, w): the original's pictures of these prompts and seeds."""
    neutral: str
    """What stands for the target in a prompt that does not ask for it."""
    drawing: Drawing
    seed: int = 0

    def without(self) -> tuple[str, ...]:
        """Return the prompts with the target replaced by what is neutral.

        Raises :class:`UsageError` if a prompt does not name the target.
        """
        if others := [prompt for prompt in self.prompts if self.target not in prompt]:
            what = f"{others[0]!r} does not name {self.target!r}"
            raise UsageError(what, where="prompts", fix="Ask for the target by its name in each of its prompts")
        return tuple(" ".join(prompt.replace(self.target, self.neutral).split()) for prompt in self.prompts)


class Attack(Protocol):
    """A way to bring the target back: it looks at the original once, and then strikes each model."""

    @property
    def name(self) -> str:
        """Name in reports."""

    def observe(self, m0: Any, case: Case) -> Any:
        """Return what the attack takes from the original pipeline."""

    def strike(self, m: Any, found: Any, case: Case) -> Tensor:
        """Return the pictures (b, 3, h, w) that ``m`` draws under attack, one for each seed of the case."""
