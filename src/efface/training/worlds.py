"""Train the networks of the procedural world: the autoencoder, the judge, the text encoder and the denoiser.

They are no methods of the catalogue, for they take nothing away, but they train as networks do: by a recipe, through
``efface fit recipes/world-judge.toml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.core.method import Network, Step, param


class World(Network):
    """A network of the world; its name in recipes is ``world-`` and the class's."""

    @property
    def name(self) -> str:
        """Name in recipes."""
        return f"world-{type(self).__name__.lower()}"


@dataclass(frozen=True, kw_only=True)
class Autoencoder(World):
    """Turn pictures into latents and back."""

    trains_on: ClassVar[str] = "world"

    widths: tuple[int, ...] = param((16, 32, 64), "channels at a whole, half and quarter resolution", low=8)
    edges: float = param(1.0, "weight of the squared error of differences between neighbouring pixels", low=0.0)
    kl: float = param(1e-5, "weight of the latents' divergence from a standard normal distribution", low=0.0)

    def build(self) -> nn.Module:
        """Build diffusers' AutoencoderKL."""
        from efface.parts.worlds.pipeline import autoencoder

        return autoencoder(self.widths)

    def loss(self, net: Any, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:
        """Return the squared errors of pixels and edges, and the divergence; ``batch`` holds ``picture`` in [0, 1]."""
        x = 2 * batch["picture"] - 1
        latents = net.encode(x).latent_dist
        error = net.decode(latents.sample(step.generator("latents"))).sample.float() - x
        mse, kl = error.square().mean(), latents.kl().mean() / latents.mean[0].numel()
        edges = error.diff(dim=2).square().mean() + error.diff(dim=3).square().mean()
        total = mse + self.edges * edges + self.kl * kl
        return {"total": total, "mse": mse, "edges": edges, "kl": kl, "psnr": -10 * (mse.detach() / 4).log10()}


@dataclass(frozen=True, kw_only=True)
class Judge(World):
    """Tell the factors of a scene."""

    trains_on: ClassVar[str] = "world-judged"

    widths: tuple[int, ...] = param((16, 32, 64, 96), "channels at each resolution, finest first", low=8)
    features: int = param(128, "features that the heads see", low=8)

    def build(self) -> nn.Module:
        """Build the judge."""
        from efface.parts.worlds.judge import Judge

        return Judge(self.widths, self.features)

    def loss(self, net: nn.Module, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:
        """Return the sum of the heads' cross-entropies, and the share of the pictures in which all heads are right."""
        logits = net(batch["picture"])
        pairs = list(zip(logits.values(), batch["labels"].unbind(1), strict=True))
        right = torch.stack([given.argmax(1) == label for given, label in pairs]).all(0)
        total = torch.stack([F.cross_entropy(given.float(), label) for given, label in pairs]).sum()
        return {"total": total, "right": right.float().mean()}


@dataclass(frozen=True, kw_only=True)
class TextEncoder(World):
    """Read captions: what they say of each factor can be read off the last tokens.

    The denoiser learns from a text encoder that knows its words already, as Stable Diffusion learns from CLIP's: one
    that learns beside it finds the words for shapes only after tens of thousands of pictures.
    """

    trains_on: ClassVar[str] = "world-captions"

    width: int = param(96, "width of the text encoder", low=8)
    layers: int = param(2, "layers of the text encoder", low=1)

    @property
    def name(self) -> str:
        """Name in recipes."""
        return "world-text"

    def build(self) -> nn.Module:
        """Build the text encoder, and a head for each factor that training alone needs."""
        from efface.parts.worlds.pipeline import text_encoder
        from efface.parts.worlds.world import FACTORS

        heads = {factor: nn.Linear(self.width, len(values)) for factor, values in FACTORS.items()}
        return nn.ModuleDict({"text_encoder": text_encoder(self.width, self.layers), "heads": nn.ModuleDict(heads)})

    def loss(self, net: Any, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:
        """Return the heads' mean cross-entropy; ``batch`` holds ``tokens`` and ``labels``."""
        tokens = batch["tokens"]
        last = (tokens == tokens[:, -1:]).float()[..., None]  # the end, and all that pads
        read = (net["text_encoder"](tokens).last_hidden_state * last).sum(1) / last.sum(1)
        pairs = zip(net["heads"].values(), batch["labels"].unbind(1), strict=True)
        return {"total": torch.stack([F.cross_entropy(head(read), label) for head, label in pairs]).mean()}


@dataclass(frozen=True, kw_only=True)
class Denoiser(World):
    """Draw latents from encoded captions.

    The denoiser predicts v = a * noise - s * x0 (Salimans and Ho, arXiv:2202.00512) of x = a * x0 + s * noise, for at
    the last steps of the schedule, where x is almost noise alone, an error in the noise says nothing about x0.
    """

    trains_on: ClassVar[str] = "world-captioned"

    widths: tuple[int, ...] = param((48, 96), "channels at each resolution, finest first", low=8)
    text_width: int = param(96, "width of the text encoder", low=8)
    most: float = param(5.0, "largest weight of the squared error of x0; steps of little noise have no more", low=1.0)
    late: float = param(0.5, "mean of the logit of the step's share: above 0, noisy states come more often", high=5.0)
    spread: float = param(1.0, "standard deviation of that logit (Esser et al., arXiv:2403.03206)", low=0.01)

    def build(self) -> nn.Module:
        """Build diffusers' UNet2DConditionModel."""
        from efface.parts.worlds.pipeline import unet

        return unet(self.widths, self.text_width)

    def loss(self, net: Any, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:
        """Return the squared error of v at random steps; ``batch`` holds ``latent`` and ``text``, as encoded.

        An error of v is one of x0 weighted by SNR + 1; that weight is held at ``most`` (after Min-SNR, Hang et al.,
        arXiv:2303.09556). Shapes and layouts are decided in much noise, so such steps are drawn more often.
        """
        latent, schedule = batch["latent"], self._schedule.to(batch["latent"].device)
        logit = self.late + self.spread * torch.randn(len(latent), generator=step.generator("t"))
        t = (logit.sigmoid() * len(schedule)).long().clamp(max=len(schedule) - 1).to(latent.device)
        noise = torch.randn(latent.shape, generator=step.generator("noise")).to(latent)
        a, s = (part[t].view(-1, 1, 1, 1) for part in (schedule.sqrt(), (1 - schedule).sqrt()))
        found = net(a * latent + s * noise, t, batch["text"]).sample.float()
        error = (found - (a * noise - s * latent)).square().mean((1, 2, 3))
        weight = (self.most * s.flatten() ** 2).clamp(max=1)  # SNR + 1 = 1 / s^2
        return {"total": (weight * error).mean(), "v": error.mean()}

    @cached_property
    def _schedule(self) -> Tensor:
        from efface.parts.worlds.pipeline import scheduler

        return scheduler().alphas_cumprod


NETWORKS: dict[str, type[World]] = {
    "world-autoencoder": Autoencoder,
    "world-judge": Judge,
    "world-text": TextEncoder,
    "world-denoiser": Denoiser,
}
"""The networks by the names that recipes give them."""
