"""Sample from a text-to-image pipeline of diffusers with our own samplers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from efface.errors import UsageError
from efface.parts.diffusion.adapters import Process, denoiser, levels
from efface.parts.diffusion.guidance import Conditional, guided
from efface.parts.diffusion.samplers import Denoise, ddim
from efface.seeds import torch_generator


def encode_prompts(pipe: Any, prompts: Sequence[str] | Tensor) -> Tensor:
    """Return the text embeddings (b, slots, width) of ``prompts``; what is too long for the slots is cut off.

    Embeddings in their place are given back as they are.
    """
    if isinstance(prompts, Tensor):
        return prompts.to(pipe.unet.device, pipe.unet.dtype)
    tokens = pipe.tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=pipe.tokenizer.model_max_length,
        return_tensors="pt",
    )  # fmt: skip
    return pipe.text_encoder(tokens.input_ids.to(pipe.text_encoder.device))[0]


def model_of(pipe: Any) -> Conditional:
    """Return the denoiser of a pipeline of the Stable Diffusion 1 or 2 kind as (x, sigma, text) to x0."""
    missing = [part for part in ("unet", "text_encoder", "tokenizer", "vae") if getattr(pipe, part, None) is None]
    if missing or getattr(pipe, "text_encoder_2", None) is not None:
        what = f"has no {', '.join(missing)}" if missing else "has two text encoders"
        fix = "Give a pipeline of Stable Diffusion 1 or 2, or call this one itself"
        raise UsageError(what, where=type(pipe).__name__, fix=fix)
    return denoiser(pipe.unet, Process.of(pipe.scheduler))


def first_noise(pipe: Any, seeds: Sequence[int]) -> Tensor:
    """Return standard noise (b, c, h, w) for latents, of which each depends on its seed alone."""
    config = pipe.unet.config
    size = config.sample_size if isinstance(config.sample_size, (list, tuple)) else (config.sample_size,) * 2
    noise = [torch.randn(config.in_channels, *size, generator=torch_generator(seed, "latents")) for seed in seeds]
    return torch.stack(noise).to(pipe.unet.device, pipe.unet.dtype)


def prompted(pipe: Any, prompts: Sequence[str] | Tensor, guidance: float, negative: str = "") -> Denoise:
    """Return the denoiser of ``pipe`` under ``prompts``, one for each sample, guided away from ``negative``."""
    empty = encode_prompts(pipe, [negative]).expand(len(prompts), -1, -1)
    return guided(model_of(pipe), encode_prompts(pipe, prompts), empty, guidance)


@torch.no_grad()
def sample(
    pipe: Any,
    prompts: Sequence[str] | Tensor,
    seeds: Sequence[int],
    *,
    steps: int = 20,
    guidance: float = 5.0,
    negative: str = "",
    sampler: Any = ddim,
    batch: int = 64,
) -> Tensor:
    """Return a picture (b, 3, h, w) in [0, 1] for each prompt, or its embedding, and its seed, on the CPU.

    A picture depends on its own prompt and seed, up to rounding, not on those drawn with it, ``batch`` at a time.
    """
    sigmas = levels(pipe.scheduler, steps)
    made = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        denoise = prompted(pipe, prompts[part], guidance, negative)
        made.append(decode(pipe, sampler(denoise, first_noise(pipe, seeds[part]) * sigmas[0].item(), sigmas)).cpu())
    return torch.cat(made)


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Return the pictures (b, 3, h, w) in [0, 1] of ``latents``."""
    return (pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
