"""Erase concepts by changing nothing but the direction in which their prompts guide.

Classifier-free guidance is e(x) + s (e(x, c) - e(x)), with e the noise that the denoiser finds. The bracket is the
gradient of an implicit classifier of c, and all that an eraser has to change. For the concept it becomes that of the
alternative, g*(a) = e*(x, a) - e*(x), with e* the untouched denoiser; without one it turns around, -eta g*(c). Since a
difference can be met by moving both of its ends, e(x) is held to e*(x), lambda times as strongly; and so that this is
the only force on e(x), the difference lets no gradient through to it. Guidance of prompts to keep stays as it was.

States x_t come from whole samplings of the original, made once: half of them under the concept, and, since those are
no longer visited when the concept has gone, a quarter each under the alternative and the empty prompt.

:func:`purify` takes the concept out of a picture that exists: DDIM goes back to the noise that draws it, and the edited
model draws from there. The empty prompt still draws what it drew, so the layout comes back, and the concept does not.

Left out: a measure of whether the original can draw the alternative, which takes a judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.core.card import Card
from efface.core.eraser import Concepts, Eraser, check_concepts, edited
from efface.core.method import Step, Work, param
from efface.core.plan import Plan
from efface.errors import UsageError
from efface.parts.concepts.attention import backbone
from efface.parts.concepts.rollout import guidance_terms, predictions, trajectories
from efface.parts.concepts.slots import TEMPLATES, encode
from efface.parts.concepts.trainable import trainable
from efface.parts.diffusion.adapters import latent_shape
from efface.parts.diffusion.inversion import inverted, redrawn
from efface.training.baselines import deltas
from efface.training.descent import copies, descend, swapped
from efface.training.recipe import Train

States = tuple[Tensor, Tensor]
"""States (n, c, h, w) and the time step of each (n,)."""


@dataclass(frozen=True, kw_only=True)
class SurgicalErasing(Eraser):
    """Hyper-parameters of surgical concept erasing."""

    steps: int = param(300, "steps of training", low=1)
    lr: float = param(5e-5, "learning rate; 1e-5 suits the whole denoiser", low=0.0)
    batch: int = param(4, "states of a step", low=1)
    weights: str = param("cross", "weights that train: cross, cross-kv, full, or a pattern of their names")
    eta: float = param(1.0, "how far guidance turns around where there is no alternative; 0: no guidance", low=0.0)
    unconditional: float = param(1.0, "weight of the noise under the empty prompt (lambda)", low=0.0)
    anchor: str = param(
        "moving", "what guidance is measured from: the trained empty prompt, or the original's, as in ESD",
        choices=("moving", "fixed"),
    )  # fmt: skip
    through: bool = param(False, "let the guidance's loss reach the empty prompt as well")
    kept: float = param(1.0, "weight of the guidance of a prompt to keep", low=0.0)
    rollouts: int = param(20, "samplings of each concept that states are taken from", low=1)
    rollout_steps: int = param(50, "steps of these samplings", low=2)
    rollout_guidance: float = param(3.0, "guidance of these samplings", low=0.0)
    mix: tuple[float, ...] = param(
        (0.5, 0.25, 0.25), "shares of samplings under the concept, the alternative and the empty prompt", low=0.0
    )

    card = Card(
        title="All but One: Surgical Concept Erasing with Model Preservation in Text-to-Image Diffusion Models",
        paper="arXiv:2312.12807",
        year=2024,
        task="concepts from generators",
        inputs=("pipeline", "concepts"),
        good_at="You choose what is drawn in place of the concept, and pictures keep their layout. Also takes concepts "
        "out of pictures that exist.",
        left_out="a measure of whether the original can draw the alternative",
    )
    trains: ClassVar[bool] = True
    small: ClassVar[dict[str, Any]] = {"steps": 3, "lr": 1e-2, "batch": 2, "rollouts": 4, "rollout_steps": 3}

    def plan(self, pipe: Any, concepts: Concepts, work: Work) -> Plan:
        """Return new values of the weights that train. Facts: ``loss``, the terms in the mean of the last tenth.

        Raises
        ------
        UsageError
            If the pipeline cannot be told the concepts, its denoiser is no UNet without built-in guidance, no weights
            are chosen, or ``mix`` has not three shares.
        """
        check_concepts(pipe, concepts)
        if len(self.mix) != 3 or not sum(self.mix):
            raise UsageError(f"{list(self.mix)} are not three shares", where=f"{self.name}.mix")
        name, net = backbone(pipe)
        weights = trainable(net, self.weights)
        pools = [self._states(pipe, pair, work) for pair in concepts.pairs]
        loss = self._loss(pipe, concepts, pools, weights)
        train = Train(steps=self.steps, lr=self.lr, seed=work.seed, batch=self.batch)
        reached = descend(net, weights, loss, train, work, name=self.name)
        return self.planned(pipe, concepts, work, deltas(name, reached), loss=reached.ending())

    def _states(self, pipe: Any, pair: tuple[str, str], work: Work) -> States:
        """Return every state of some samplings of the original for one concept and its alternative."""
        shares = torch.tensor(self.mix).cumsum(0) / sum(self.mix)
        turns = torch.searchsorted(shares, (torch.arange(self.rollouts) + 0.5) / self.rollouts).tolist()
        texts = [(*pair, "")[turn] for turn in turns]
        prompts = [TEMPLATES[i % len(TEMPLATES)].replace("{}", text) if text else "" for i, text in enumerate(texts)]
        shape = latent_shape(backbone(pipe)[1].config)
        noise = torch.randn(len(prompts), *shape, generator=work.generator(f"noise of {pair}"))
        states, times = trajectories(
            pipe, encode(pipe, prompts), encode(pipe, [""]), noise.to(pipe.device),
            steps=self.rollout_steps, guidance=self.rollout_guidance,
        )  # fmt: skip
        return states.flatten(0, 1), times.repeat_interleave(len(prompts))

    def _loss(
        self, pipe: Any, concepts: Concepts, pools: Sequence[States], weights: dict[str, torch.nn.Parameter]
    ) -> Callable[[Step], dict[str, Tensor]]:
        original = copies(weights)

        def loss(step: Step) -> dict[str, Tensor]:
            generator = step.generator("states")
            turn = step.step % len(pools)
            (concept, other), (states, times) = concepts.pairs[turn], pools[turn]
            rows = torch.randint(len(states), (self.batch,), generator=generator)
            x, t = states[rows], times[rows]
            sentence = _one(TEMPLATES, generator)
            kept = [_one(concepts.keep, generator)] if concepts.keep else []
            aims = encode(pipe, ["", sentence.replace("{}", other or concept), *kept])
            with torch.no_grad(), swapped(weights, original):
                neutral, targets = guidance_terms(pipe, x, t, aims)
            if not other:
                targets[0] *= -self.eta
            texts = encode(pipe, ["", sentence.replace("{}", concept), *kept])
            found_neutral, *found = predictions(pipe, x, t, texts)
            trained = found_neutral if self.through else found_neutral.detach()
            start = trained if self.anchor == "moving" else neutral
            erase, *keep = (torch.stack(found) - start - targets).square().flatten(1).mean(1)
            unconditional = (found_neutral - neutral).square().mean()
            guard = keep[0] if keep else torch.zeros_like(erase)
            total = erase + self.unconditional * unconditional + self.kept * guard
            return {"total": total, "erase": erase, "unconditional": unconditional, "keep": guard}

        return loss


def purify(
    pipe: Any,
    pictures: Tensor,
    prompts: Sequence[str],
    edits: Sequence[Plan],
    *,
    invert_with: str = "original",
    steps: int = 50,
    guidance: float = 5.0,
    rounds: int = 1,
) -> Tensor:
    """Return ``pictures`` (b, 3, h, w) in [0, 1] as ``pipe`` with ``edits`` would have drawn them, on the CPU.

    Parameters
    ----------
    prompts
        What each picture shows, the concept included.
    invert_with
        What goes back to the noise: the ``original``, or the ``edited`` model.
    rounds
        Corrections of each step back, see :func:`~efface.parts.diffusion.inversion.ddim_inverse`.

    Raises
    ------
    PlanError
        If an edit is for another pipeline.
    UsageError
        If ``invert_with`` is neither, or there is not one prompt for each picture.
    """
    if invert_with not in ("original", "edited") or len(prompts) != len(pictures):
        what = f"{invert_with!r} inverts {len(pictures)} pictures under {len(prompts)} prompts"
        raise UsageError(what, where="purify", fix="Use original or edited, and a prompt for each picture")
    with edited(pipe, edits if invert_with == "edited" else ()):
        noisy = inverted(pipe, pictures, prompts, steps=steps, rounds=rounds)
    with edited(pipe, edits):
        return redrawn(pipe, noisy, prompts, steps=steps, guidance=guidance)


def _one(texts: Sequence[str], generator: torch.Generator) -> str:
    return texts[int(torch.randint(len(texts), (), generator=generator))]
