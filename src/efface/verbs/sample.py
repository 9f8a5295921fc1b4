"""Draw pictures from prompts with a text-to-image pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

TINY = "tiny"
"""Name of the pipeline that comes with the package."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """Pictures and where they came from; ``pictures`` is (b, 3, h, w) in [0, 1]."""

    pictures: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


def sample(
    pipe: Any,
    prompt: str | Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    steps: int = 20,
    guidance: float = 4.0,
    negative: str = "",
    sampler: str = "ddim",
    device: str = "auto",
) -> Sampled:
    """Draw a picture of every prompt at every seed, prompt by prompt.

    ``pipe`` is a pipeline of the Stable Diffusion 1 or 2 kind, its diffusers folder, or ``tiny``, the one that comes
    with the package. The same seed gives every prompt the same first noise.
    """
    from efface.core.trained import pick_device
    from efface.parts.diffusion.pipelines import sample
    from efface.parts.diffusion.samplers import SAMPLERS
    from efface.parts.worlds.pipeline import SHIPPED, load_pipeline

    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if steps < 1 or not prompts or not seeds:
        raise UsageError("nothing would be drawn", where="sample", fix="Give a prompt, a seed, and 1 step or more")
    if sampler not in SAMPLERS:
        raise UnknownNameError("sampler", sampler, SAMPLERS)
    if isinstance(pipe, str | Path):
        pipe = load_pipeline(SHIPPED if str(pipe) == TINY else pipe).to(pick_device(device))
    each = [(text, seed) for text in prompts for seed in seeds]
    texts, numbers = [text for text, _ in each], [seed for _, seed in each]
    made = sample(
        pipe, texts, numbers, steps=steps, guidance=guidance, negative=negative, sampler=SAMPLERS[sampler]
    )  # fmt: skip
    return Sampled(made, tuple(texts), tuple(numbers))
