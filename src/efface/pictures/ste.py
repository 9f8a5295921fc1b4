"""Learn to erase text from pictures of which no clean version exists, with text of a learned style.

STE (Jiang et al. 2022) writes new text on the text-free places of pictures that have text already: there the picture
itself is the truth. A policy, an LSTM over 18 decisions, chooses the style. It learns by REINFORCE, rewarded for text
that is twice as hard to erase as the average, and for text that a detector of real text, reading the eraser's features,
finds. The eraser is a coarse-to-fine network that also marks the text. It trains with L1 at three scales, features,
Gram matrices, a discriminator of two towers, Dice on the mark, and the triplet erasure loss, its positive the truth.

The mask is not read by the network: ``run`` composites in it, or in the network's own mark where there is none.

Left out: the policy conditioned on features of the picture, and rotation of the training pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.core.card import Card
from efface.core.method import Network, Phase, Step, param
from efface.errors import DataError
from efface.parts.losses import perceptual
from efface.parts.losses.dice import dice
from efface.parts.losses.triplet import triplet_erasure
from efface.parts.nn.discriminator import TwoTowers, hinge
from efface.parts.nn.erasenet import STRIDE, EraseNet, MaskDecoder
from efface.parts.nn.reinforce import Controller, reinforce
from efface.parts.text.fonts import find_fonts
from efface.parts.text.space import NAMES, Actions, StyleSpace
from efface.parts.text.synth import TextSynth
from efface.seeds import numpy_generator

MEMORY = 0.95
"""Decay of the running means that rewards are measured against."""


class SteNet(nn.Module):
    """Hold the eraser, its discriminator, the detector of real text, and the policy with its running means."""

    error_mean: Tensor
    miss_mean: Tensor
    updates: Tensor

    def __init__(self, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.eraser = EraseNet(width)
        self.discriminator = TwoTowers(width)
        self.detector = MaskDecoder(width, joined=False)
        self.policy = Controller(sizes, feature=None)
        self.register_buffer("error_mean", torch.zeros(()))
        self.register_buffer("miss_mean", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def real_text(self, feature: Tensor) -> Tensor:
        """Return where ``feature`` (b, 8w, h/16, w/16) shows real text, (b, 1, h, w) in [0, 1]; it gets no gradient."""
        return self.detector(feature.detach()).sigmoid().mean(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Ste(Network):
    """Hyper-parameters of STE."""

    width: int = param(32, "channels of the finest level", low=2, high=128)
    synthesis: str = param("policy", "how styles are chosen", choices=("policy", "random", "plain"))
    decisions: tuple[str, ...] = param(
        (), "decisions left to the policy, the others keep their defaults; none named: all"
    )
    scale: float = param(1.0, "pixels here per pixel of a 768 x 512 poster", low=0.05, high=16.0)
    fonts: str = param("", "folder of fonts to write with; empty: the system's; built-in: the face that comes along")
    features: str = param("", "safetensors file of VGG-16 for the feature losses; empty: seeded random features")
    perceptual: float = param(0.01, "weight of the difference of features; 0 leaves it out", low=0.0)
    style: float = param(120.0, "weight of the difference of Gram matrices; 0 leaves it out", low=0.0)
    adversarial: float = param(0.1, "weight of the adversarial loss; 0 trains no discriminator", low=0.0)
    use_triplet: bool = param(True, "train with the triplet erasure loss")
    difficulty: float = param(1.0, "weight of the reward for difficulty (lambda 1)", low=0.0)
    realism: float = param(5.0, "weight of the reward for realism (lambda 2)", low=0.0)
    policy_every: int = param(10, "eraser steps between two rounds of policy updates", low=1)
    policy_updates: int = param(3, "policy updates in a round", low=1)
    policies: int = param(3, "styles tried in a policy update (M)", low=1)
    pictures: int = param(2, "pictures on which each style is tried", low=1)
    policy_lr: float = param(5e-4, "learning rate of the policy", low=0.0)
    discriminator_lr: float = param(1e-5, "learning rate of the discriminator", low=0.0)

    card = Card(
        title="Self-Supervised Text Erasing with Controllable Image Synthesis",
        paper="arXiv:2204.12743",
        year=2022,
        task="text from pictures",
        inputs=("picture", "mask"),
        multiple=32,
        tiling="global",
        radius=64,
        smallest=32,
        bytes_per_pixel=560,
        dtypes=("float32", "bfloat16"),
        good_at="Trains on your own pictures with text, without clean versions; finds the text by itself if need be.",
        left_out="the policy conditioned on features of the picture; rotation of the training pictures",
    )
    trains_on: ClassVar[str] = "boxed-text"
    small: ClassVar[dict[str, Any]] = {"width": 4, "fonts": "built-in", "scale": 0.25, "policies": 2, "pictures": 1}

    def build(self) -> SteNet:
        """Build every network of the training; :meth:`run` uses the eraser alone."""
        return SteNet(self.width, self.space.sizes)

    def run(self, net: SteNet, x: Tensor, *, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return ``x`` (b, 3, h, w) without the text in ``mask`` (b, 1, h, w), or without the text it finds itself."""
        height, width = x.shape[-2:]
        out = net.eraser(F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="reflect"))
        if mask is None:
            mask = (out.mask[..., :height, :width].float().sigmoid().mean(1, keepdim=True) >= 0.5).float()
        return torch.lerp(x, out.refined[..., :height, :width].float(), mask).clamp(0, 1)

    @property
    def space(self) -> StyleSpace:
        """The looks that text may be given."""
        return StyleSpace(names=self.decisions or NAMES, scale=self.scale)

    def phases(self) -> dict[str, Phase]:
        """Return the optimisers: eraser, discriminator, detector of real text, policy."""
        adam = {"betas": (0.5, 0.9)}
        phases = {"eraser": _phase("eraser", self.loss, adam)}
        if self.adversarial:
            options = {"betas": (0.0, 0.9), "lr": self.discriminator_lr}
            phases["discriminator"] = _phase("discriminator", self.discriminator_loss, options)
        if self.synthesis == "policy":
            options = {"betas": (0.9, 0.999), "lr": self.policy_lr, "schedule": "constant", "warmup": 0.0}
            phases["detector"] = _phase("detector", self.detector_loss, adam)
            phases["policy"] = _phase("policy", self.policy_loss, options, self.policy_every, self.policy_updates)
        return phases

    def prepare(self, net: SteNet, batch: dict[str, Any], step: Step) -> dict[str, Any]:  # type: ignore[override]
        """Write new text of the chosen styles on a batch of pictures with ``boxes`` and ``mask`` of their real text.

        Returns ``picture``, what was written on as ``target``, the ``mask`` of the new text and the one of the ``real``
        text. Pictures on which no text could be written are left out; :class:`DataError` if none is left.
        """
        n = len(batch["picture"])
        if self.synthesis == "policy":
            with torch.no_grad():
                actions = net.policy(n, generator=step.generator("styles")).actions.cpu().numpy()
        elif self.synthesis == "random":
            actions = self.space.random(n, numpy_generator(step.seed, step.step, "styles"))
        else:
            actions = np.tile([d.default for d in self.space.decisions], (n, 1))
        batch = {"target": batch["picture"], "real": batch["mask"], "boxes": batch["boxes"]}
        return self._write(batch, actions, step, "text")

    def loss(self, net: SteNet, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the losses of the eraser: everything is compared where new text was written, and only there."""
        x, target, mask = batch["picture"], batch["target"], batch["mask"]
        out = net.eraser(x)
        result, coarse = _composite(out.refined, x, mask), _composite(out.coarse, x, mask)
        losses = {
            "hole": 10 * F.l1_loss(result, target),
            "coarse": 8 * _l1_inside(out.coarse, target, mask),
            "half": 6 * _l1_inside(out.half, target, mask),
            "quarter": 5 * _l1_inside(out.quarter, target, mask),
            "mark": dice(out.mask.sigmoid(), torch.maximum(mask, batch["real"]).expand_as(out.mask)).mean(),
        }
        if self.perceptual or self.style:
            see = perceptual.features(self.features, str(x.device))
            found, wanted = see(result), see(target)
            # twice: the paper takes output and composite, and its output is composited already
            losses["features"] = 2 * self.perceptual * perceptual.perceptual(found, wanted)
            losses["style"] = 2 * self.style * perceptual.style(found, wanted)
        if self.adversarial:
            losses["adversarial"] = -self.adversarial * net.discriminator(result, mask).mean()
        if self.use_triplet:
            losses["triplet"] = 0.01 * triplet_erasure(result, target, coarse)
        return {"total": torch.stack(list(losses.values())).sum(), **losses}

    def discriminator_loss(self, net: SteNet, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:
        """Return the hinge loss of telling erased pictures from those that were written on."""
        mask = batch["mask"]
        with torch.no_grad():
            erased = _composite(net.eraser(batch["picture"]).refined, batch["picture"], mask)
        return {"total": hinge(net.discriminator(batch["target"], mask), net.discriminator(erased, mask))}

    def detector_loss(self, net: SteNet, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:
        """Return the Dice loss of finding the real text, and not the new text, in the eraser's features."""
        with torch.no_grad():
            feature = net.eraser.encode(batch["picture"]).feature
        return {"total": dice(net.real_text(feature), batch["real"]).mean()}

    def policy_loss(self, net: SteNet, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:
        """Try new styles on some pictures of the batch, and return the REINFORCE loss of their rewards."""
        chosen = net.policy(self.policies, generator=step.generator("tried styles"))
        actions = chosen.actions.cpu().numpy()
        rows = torch.randperm(len(batch["target"]), generator=step.generator("tried pictures"))[: self.pictures]
        blank = {k: batch[k][rows].repeat_interleave(self.policies, 0) for k in ("target", "real", "boxes")}
        tried = self._write(blank, np.tile(actions, (len(rows), 1)), step, "tried text")
        error, miss = self.judge(net, tried)
        keep = MEMORY if net.updates else 0.0
        net.error_mean.lerp_(error.mean(), 1 - keep)
        net.miss_mean.lerp_(miss.mean(), 1 - keep)
        net.updates += 1
        rewards = self.rewards(net, error, miss)
        policy = tried["row"] % self.policies
        total = torch.zeros(self.policies, device=policy.device).index_add(0, policy, rewards["reward"])
        mean = total / torch.bincount(policy, minlength=self.policies).clamp_min(1)
        counts = torch.from_numpy(self.space.counts(actions)).to(policy.device)
        return {"total": reinforce(chosen, mean, counts), **{k: v.mean() for k, v in rewards.items()}}

    @torch.no_grad()
    def judge(self, net: SteNet, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return, for each picture (b,), the error of erasing the new text, and how far the detector misses it."""
        training = net.training
        out = net.eval().eraser(batch["picture"])
        seen = net.real_text(out.feature).float() * (1 - batch["real"])
        net.train(training)
        error = _composite(out.refined.float(), batch["picture"], batch["mask"]) - batch["target"]
        return error.abs().mean((1, 2, 3)), dice(seen, batch["mask"])

    def rewards(self, net: SteNet, error: Tensor, miss: Tensor) -> dict[str, Tensor]:
        """Return the reward (b,) of what :meth:`judge` found, and its two parts, against the running means."""
        hard, real = difficulty_reward(error, net.error_mean), -10 * (miss - net.miss_mean)
        return {"reward": self.difficulty * hard + self.realism * real, "difficulty": hard, "realism": real}

    def _fonts(self) -> list[Path]:
        return [] if self.fonts == "built-in" else find_fonts([Path(self.fonts)] if self.fonts else None)

    def _write(self, batch: dict[str, Any], actions: Actions, step: Step, name: str) -> dict[str, Any]:
        """Write on ``target`` of each row; keep the rows where that worked and say in ``row`` which they are."""
        synth = TextSynth(
            self.space, () if self.fonts == "built-in" else find_fonts([Path(self.fonts)] if self.fonts else None)
        )
        arrays = {k: batch[k].cpu().numpy() for k in ("target", "real", "boxes")}
        rows, pictures, masks = [], [], []
        for row, action in enumerate(actions):
            boxes = arrays["boxes"][row]
            written = synth.draw(
                np.ascontiguousarray(arrays["target"][row].transpose(1, 2, 0)),
                arrays["real"][row, 0] > 0,
                boxes[boxes[:, 0] >= 0],
                action,
                numpy_generator(step.seed, step.step, name, row),
            )
            if written is not None:
                rows.append(row)
                pictures.append(torch.from_numpy(written[0]).permute(2, 0, 1))
                masks.append(torch.from_numpy(written[1])[None].float())
        if not rows:
            raise DataError(
                f"none of {len(actions)} pictures has room for text that can be seen",
                where="boxed text",
                fix="Give pictures with more room around their text, or larger crops, or a lower scale",
            )
        kept = torch.tensor(rows, device=batch["target"].device)
        new = {"picture": torch.stack(pictures).to(kept.device), "mask": torch.stack(masks).to(kept.device)}
        return {**{k: v[kept] for k, v in batch.items()}, **new, "row": kept}


def difficulty_reward(loss: Tensor, mean: Tensor) -> Tensor:
    """Return the reward of erasing errors: 5 at twice the running ``mean``, less on both sides.

    The exponent is held at 3, so that a first, wild error costs no more than about 90.
    """
    return 5 * (1 - (1 - (20 * (loss - 2 * mean)).clamp_max(3).exp()).abs())


def _composite(inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    return torch.lerp(outside, inside, mask)


def _l1_inside(image: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Compare ``image`` with ``target`` inside ``mask``, both thinned to the size of ``image``."""
    by = mask.shape[-1] // image.shape[-1]
    mask = mask[..., ::by, ::by]
    return F.l1_loss(mask * image, mask * target[..., ::by, ::by])


def _phase(
    part: str, loss: Callable[..., dict[str, Tensor]], options: dict[str, Any], every: int = 1, updates: int = 1
) -> Phase:
    return Phase(lambda net: list(net.get_submodule(part).parameters()), loss, every, updates, options)
