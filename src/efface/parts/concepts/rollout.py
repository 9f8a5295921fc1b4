"""Run a sampler a part of its way, and ask a denoiser about the states on it.

States ``x`` are those that the model itself takes, a * x0 + s * noise, and ``t`` its time steps. Whatever the model
predicts, noise or v, the answers here are noise: the convention in which erasers state their losses.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from efface.errors import UsageError
from efface.parts.concepts.attention import backbone
from efface.parts.concepts.slots import Encoded
from efface.parts.diffusion.adapters import Process, levels
from efface.parts.diffusion.guidance import guided
from efface.parts.diffusion.samplers import ddim


def noise_prediction(pipe: Any, x: Tensor, t: Tensor | float, embeds: Tensor, pooled: Tensor | None = None) -> Tensor:
    """Return the noise that the UNet of ``pipe`` finds in the states ``x`` (b, c, h, w) at the time steps ``t``.

    ``t`` is one for all or (b,); ``embeds`` is (b, slots, width), or (1, slots, width) for all; ``pooled`` (b, width)
    is what SDXL is given beside it. Gradients flow.

    Raises
    ------
    UsageError
        If the denoiser is no UNet, or has guidance built in, so that it knows no prediction without it.
    """
    name, net = backbone(pipe)
    config = net.config
    if name != "unet" or config.get("time_cond_proj_dim") is not None:
        what = "has guidance built in" if name == "unet" else "is no UNet"
        raise UsageError(what, where=type(net).__name__, fix="Use a method that solves for its edit, such as rece")
    process = Process.of(pipe.scheduler)
    t = torch.as_tensor(t, dtype=torch.float64).cpu().expand(len(x))
    given: dict[str, Any] = {}
    if config.get("addition_embed_type") == "text_time":
        if pooled is None:
            raise UsageError("needs the pooled embeddings as well", where=type(net).__name__, fix="Give them as pooled")
        side = [8 * size for size in x.shape[-2:]]
        sizes = torch.tensor([[*side, 0, 0, *side]], dtype=x.dtype, device=x.device).expand(len(x), -1)
        given["added_cond_kwargs"] = {"text_embeds": pooled.expand(len(x), -1), "time_ids": sizes}
    found = net(x, t.to(x.device, torch.float32), embeds.expand(len(x), -1, -1), **given).sample
    return _noise(process, x, _sigmas(process, t).view(-1, 1, 1, 1).to(x), found)


def predictions(pipe: Any, x: Tensor, t: Tensor | float, text: Encoded) -> Tensor:
    """Return the noise (n, b, c, h, w) found in the states ``x`` under each of the n prompts, in one batch."""
    count, each = len(text.embeds), len(x)
    times = torch.as_tensor(t).expand(each).repeat(count)
    pooled = None if text.pooled is None else text.pooled.repeat_interleave(each, 0)
    found = noise_prediction(pipe, x.repeat(count, 1, 1, 1), times, text.embeds.repeat_interleave(each, 0), pooled)
    return found.view(count, *x.shape)


def guidance_terms(pipe: Any, x: Tensor, t: Tensor | float, text: Encoded) -> tuple[Tensor, Tensor]:
    """Return the noise (b, c, h, w) under the first prompt, and what each other adds to it: (n - 1, b, c, h, w).

    With the empty prompt as the first they are the terms of classifier-free guidance, g = e(x, c) - e(x, "").
    """
    empty, *others = predictions(pipe, x, t, text)
    return empty, torch.stack(others) - empty


@torch.no_grad()
def trajectories(
    pipe: Any,
    text: Encoded,
    empty: Encoded,
    noise: Tensor,
    *,
    steps: int,
    guidance: float,
    keep: Collection[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample by DDIM and return the states (k, b, c, h, w) before each step, with their time steps (k,).

    ``text`` has a prompt for each sample of ``noise`` (b, c, h, w), ``empty`` one for all. ``keep`` names the steps,
    from 0, whose states are returned; later ones are not taken. The last state of all, the sample, is not among them.
    """
    wanted = range(steps) if keep is None else sorted(set(keep))
    if not wanted or wanted[0] < 0 or wanted[-1] >= steps:
        raise UsageError(f"{list(wanted)} are not among {steps} steps", where="keep")
    process, sigmas = Process.of(pipe.scheduler), levels(pipe.scheduler, steps)
    states: list[Tensor] = []

    def clean(x: Tensor, sigma: float, rows: Tensor) -> Tensor:
        a, s = process.scales(sigma)
        pooled = None if own is None else own[rows[:, 0, 0].long()]
        found = noise_prediction(pipe, a * x, process.time(sigma), embeds[rows[:, 0, 0].long()], pooled)
        return x - (s / a) * found

    embeds = torch.cat([empty.embeds, text.embeds])
    own = None if text.pooled is None or empty.pooled is None else torch.cat([empty.pooled, text.pooled])
    rows = torch.arange(1, 1 + len(noise)).view(-1, 1, 1)  # conditions by number, so that both parts follow
    denoise = guided(clean, rows, torch.zeros_like(rows), guidance)

    def watched(x: Tensor, sigma: float) -> Tensor:
        states.append(process.scales(sigma)[0] * x)
        return denoise(x, sigma)

    last = wanted[-1]
    x = ddim(watched, noise * sigmas[0].item(), sigmas[: last + 1])
    states.append(process.scales(sigmas[last].item())[0] * x)
    times = torch.tensor([process.time(sigma) for sigma in sigmas[:-1].tolist()])
    return torch.stack([states[i] for i in wanted]), times[list(wanted)]


def partial_denoise(
    pipe: Any, text: Encoded, empty: Encoded, noise: Tensor, *, steps: int, stop: int, guidance: float
) -> tuple[Tensor, Tensor]:
    """Return the states (b, c, h, w) after ``stop`` of ``steps`` steps of DDIM, and their time step."""
    states, times = trajectories(pipe, text, empty, noise, steps=steps, guidance=guidance, keep=(stop,))
    return states[0], times[0]


def scales(pipe: Any, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (a, s), each (b, 1, 1, 1), of the states a * x0 + s * noise at the time steps ``t`` (b,), as ``x`` is."""
    process = Process.of(pipe.scheduler)
    a, s = process.scales(_sigmas(process, t.cpu().double()))  # type: ignore[arg-type]
    return torch.as_tensor(a).view(-1, 1, 1, 1).to(x), torch.as_tensor(s).view(-1, 1, 1, 1).to(x)


def noised(pipe: Any, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return the states (b, c, h, w) of samples ``x0`` under ``noise`` at the time steps ``t`` (b,)."""
    a, s = scales(pipe, t, x0)
    return a * x0 + s * noise


def predict_x0(pipe: Any, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return the samples x0 that the ``noise`` found in the states ``x`` at the time steps ``t`` (b,) stands for.

    At the last steps of most schedules a is nearly 0, and any error in the noise is many times as large in x0.
    """
    a, s = scales(pipe, t, x)
    return (x - s * noise) / a


def _sigmas(process: Process, t: Tensor) -> Tensor:
    """Return the levels of time steps, between two of them linear in log sigma: the inverse of ``process.time``."""
    if process.prediction == "flow":
        s = t / (len(process.sigmas) + 1)
        return s / (1 - s)
    low = t.floor().long().clamp(0, len(process.sigmas) - 1)
    high = (low + 1).clamp(max=len(process.sigmas) - 1)
    return process.sigmas[low] * (process.sigmas[high] / process.sigmas[low]) ** (t - low)


def _noise(process: Process, x: Tensor, sigma: Tensor, predicted: Tensor) -> Tensor:
    a, s = process.scales(sigma)  # type: ignore[arg-type]
    match process.prediction:
        case "eps":
            return predicted
        case "v":
            return s * x + a * predicted
        case "flow":
            return x + a * predicted
        case _:
            return (x - a * predicted) / s
