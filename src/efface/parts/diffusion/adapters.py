"""Speak with the models and schedulers of diffusers in the sigma convention, both ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import UsageError
from efface.parts.diffusion.schedules import sigmas_of

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}
"""What models predict, by the names of diffusers."""


@dataclass(frozen=True)
class Process:
    """How a model was trained: what it predicts, and the level of each of its time steps.

    ``eps``, ``v`` and ``x0`` are of variance-preserving processes, x = a * x0 + s * noise with a^2 + s^2 = 1; ``flow``
    has a = 1 - s and predicts noise - x0.
    """

    prediction: str
    sigmas: Tensor
    """(time steps,) float64, rising: level of each time step."""

    @classmethod
    def of(cls, scheduler: Any) -> Process:
        """Read the process from a scheduler of diffusers; one that is neither kind is a :class:`UsageError`."""
        if hasattr(scheduler, "alphas_cumprod"):
            kind = scheduler.config.get("prediction_type", "epsilon")
            if kind in PREDICTIONS:
                return cls(PREDICTIONS[kind], sigmas_of(scheduler.alphas_cumprod))
            fix = f"Known: {', '.join(PREDICTIONS)}"
            raise UsageError(f"predicts {kind!r}", where=type(scheduler).__name__, fix=fix)
        if type(scheduler).__name__.startswith("FlowMatch"):
            total = scheduler.config.num_train_timesteps
            s = torch.arange(1, total, dtype=torch.float64) / total  # time 1 itself has no finite level
            return cls("flow", s / (1 - s))
        raise UsageError("has a noise process that is not known", where=type(scheduler).__name__)

    def time(self, sigma: float) -> float:
        """Return the time step of the level ``sigma``: exact at a step, linear in log sigma between two."""
        if self.prediction == "flow":
            return sigma / (1 + sigma) * (len(self.sigmas) + 1)
        logs, wanted = self.sigmas.log(), torch.tensor(sigma, dtype=torch.float64).log()
        high = int(torch.searchsorted(logs, wanted).clamp(1, len(logs) - 1))
        share = (wanted - logs[high - 1]) / (logs[high] - logs[high - 1])
        return high - 1 + float(share.clamp(0, 1))

    def scales(self, sigma: float) -> tuple[float, float]:
        """Return (a, s) of the model's own state a * x0 + s * noise at the level ``sigma``."""
        a = 1 / (1 + sigma) if self.prediction == "flow" else (1 + sigma**2) ** -0.5
        return a, sigma * a

    def clean(self, x: Tensor, sigma: float, predicted: Tensor) -> Tensor:
        """Return x0 from what a model ``predicted`` for its state ``x``."""
        a, s = self.scales(sigma)
        match self.prediction:
            case "eps":
                return (x - s * predicted) / a
            case "v":
                return a * x - s * predicted
            case "flow":
                return x - s * predicted
            case _:
                return predicted

    def predicted(self, x: Tensor, sigma: float, clean: Tensor) -> Tensor:
        """Return what a model would have to predict for its state ``x`` to mean ``clean``: the inverse."""
        a, s = self.scales(sigma)
        noise = (x - a * clean) / s
        match self.prediction:
            case "eps":
                return noise
            case "v":
                return a * noise - s * clean
            case "flow":
                return noise - clean
            case _:
                return clean


def denoiser(model: nn.Module, process: Process, **given: Any) -> Callable[[Tensor, float, Tensor], Tensor]:
    """Return a UNet or transformer of diffusers as a function of (x, sigma, condition) to x0.

    ``given`` goes along to the model, such as SDXL's ``added_cond_kwargs``.
    """

    def clean(x: Tensor, sigma: float, condition: Tensor) -> Tensor:
        a, _ = process.scales(sigma)
        state = a * x
        time = torch.full((len(x),), process.time(sigma), dtype=x.dtype, device=x.device)
        found = model(state, time, condition, **given).sample
        return process.clean(state, sigma, found)

    return clean


def latent_shape(config: Any) -> tuple[int, int, int]:
    """Return the shape (c, h, w) of the latents that a denoiser of this configuration is made for."""
    size = config.sample_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return config.in_channels, height, width


def levels(scheduler: Any, steps: int, device: str = "cpu") -> Tensor:
    """Return the sigmas (steps + 1,) at which a scheduler of diffusers would stop in ``steps`` steps."""
    scheduler.set_timesteps(steps, device=device)
    if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) == steps + 1:
        return scheduler.sigmas.double()
    table = sigmas_of(scheduler.alphas_cumprod)
    end = getattr(scheduler, "final_alpha_cumprod", torch.ones(()))
    return torch.cat([table[scheduler.timesteps.cpu().long()], sigmas_of(end.view(1))])
