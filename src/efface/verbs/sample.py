"""Draw pictures from prompts with a text-to-image pipeline, as it is and under edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from efface.core.plan import Plan


@dataclass(frozen=True, eq=False)
class Sampled:
    """Pictures and where they came from; ``pictures`` is (b, 3, h, w) in [0, 1]."""

    pictures: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    before: Tensor | None = None
    """The same prompts and seeds without the edits, where that was asked for."""


def sample(
    pipe: Any,
    prompt: str | Sequence[str],
    *,
    edits: Sequence[Plan | str | Path] = (),
    strength: float = 1.0,
    sibling: bool = False,
    compare: bool = False,
    seeds: Sequence[int] = (0,),
    steps: int = 20,
    guidance: float | None = None,
    negative: str = "",
    sampler: str = "ddim",
    device: str = "auto",
) -> Sampled:
    """Draw a picture of every prompt at every seed, prompt by prompt.

    ``pipe`` is a pipeline of diffusers, its folder or name in the hub's cache, or ``tiny``, the one that comes with the
    package. Stable Diffusion 1, 2 and XL draw with our samplers; others, such as FLUX and PixArt, by their own call.
    The same seed gives every prompt the same first noise.

    Parameters
    ----------
    edits
        What :func:`efface.forget` made on this pipeline, or folders of it; they act together, ``strength`` times as
        much, and the pipeline is afterwards as it was. Gated ones act on each prompt by how much it is about what they
        erase. One that adds words, such as that of geom-erasing, also steers away from them.
    sibling
        Take edits that were made for another pipeline of the same architecture, such as one that was tuned further.
    compare
        Also draw without the edits.

    Raises
    ------
    UsageError
        If nothing would be drawn, a name is unknown, or the pipeline is of another kind.
    PlanError
        If an edit is for another pipeline, is there twice, or conflicts with another.
    """
    import torch

    from efface.core.eraser import acts, check_edits, editable, steered
    from efface.core.gating import acting
    from efface.core.hub import open_pipeline
    from efface.core.plan import Plan
    from efface.core.trained import pick_device
    from efface.parts.diffusion.pipelines import sample, usual_guidance
    from efface.parts.diffusion.samplers import SAMPLERS

    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if steps < 1 or not prompts or not seeds:
        raise UsageError("nothing would be drawn", where="sample", fix="Give a prompt, a seed, and 1 step or more")
    if sampler not in SAMPLERS:
        raise UnknownNameError("sampler", sampler, SAMPLERS)
    plans = [Plan.load(edit) if isinstance(edit, str | Path) else edit for edit in edits]
    if isinstance(pipe, str | Path):
        pipe = open_pipeline(pipe, pick_device(device))
    pull = usual_guidance(pipe) if guidance is None else guidance

    def draw(texts: Sequence[str], negative: str) -> Tensor:
        """Return the pictures of ``texts``, each at every seed."""
        each = [text for text in texts for _ in seeds]
        return sample(
            pipe, each, [*seeds] * len(texts), steps=steps, guidance=pull, negative=negative,
            sampler=SAMPLERS[sampler],
        )  # fmt: skip

    made: dict[str, Tensor] = {}
    check_edits(editable(pipe), plans, strict=not sibling)
    for active, texts in acting(pipe, prompts, [plan.scaled(strength) for plan in plans]):  # merged once for each group
        with acts(pipe, active):
            made |= zip(texts, draw(texts, steered(negative, active)).split(len(seeds)), strict=True)
    return Sampled(
        torch.cat([made[text] for text in prompts]),
        tuple(text for text in prompts for _ in seeds),
        tuple(seeds) * len(prompts),
        draw(prompts, negative) if compare else None,
    )
