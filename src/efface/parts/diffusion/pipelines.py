"""Sample from a text-to-image pipeline of diffusers with our own samplers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from efface.errors import UsageError
from efface.parts.concepts.slots import encode
from efface.parts.diffusion.adapters import Process, denoiser, latent_shape, levels
from efface.parts.diffusion.guidance import Condition, Conditional, guided
from efface.parts.diffusion.latents import decode
from efface.parts.diffusion.samplers import Denoise, ddim
from efface.seeds import torch_generator


def usual_guidance(pipe: Any) -> float:
    """Return how hard prompts usually pull: as the pipeline's own call has it, and 2 for tiny pictures that say all."""
    side = pipe.vae.config.get("sample_size") if getattr(pipe, "vae", None) is not None else None
    if side is not None and side <= 32:
        return 2.0
    own = inspect.signature(type(pipe).__call__).parameters.get("guidance_scale")
    return 7.5 if own is None else float(own.default)


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


def conditions(pipe: Any, prompts: Sequence[str] | Tensor) -> Condition:
    """Return what the denoiser is told of each of ``prompts``: embeddings, and in a tuple for SDXL pooled ones too."""
    if not _tells_sizes(pipe):
        return encode_prompts(pipe, prompts)
    if isinstance(prompts, Tensor):
        fix = "Give the prompts themselves"
        raise UsageError("is told more of a prompt than embeddings", where=type(pipe).__name__, fix=fix)
    found = encode(pipe, prompts)
    assert found.pooled is not None
    return found.embeds.to(pipe.unet.dtype), found.pooled.to(pipe.unet.dtype)


def model_of(pipe: Any) -> Conditional:
    """Return the denoiser of a pipeline of the Stable Diffusion 1, 2 or XL kind as (x, sigma, condition) to x0."""
    missing = [part for part in ("unet", "text_encoder", "tokenizer", "vae") if getattr(pipe, part, None) is None]
    if missing or (getattr(pipe, "text_encoder_2", None) is not None) != _tells_sizes(pipe):
        what = f"has no {', '.join(missing)}" if missing else "has two text encoders, and no use for the second"
        fix = "Give a pipeline of Stable Diffusion 1, 2 or XL, or call this one itself"
        raise UsageError(what, where=type(pipe).__name__, fix=fix)
    process = Process.of(pipe.scheduler)
    if not _tells_sizes(pipe):
        return denoiser(pipe.unet, process)

    def clean(x: Tensor, sigma: float, condition: Condition) -> Tensor:
        embeds, pooled = condition
        side = [pipe.vae_scale_factor * size for size in x.shape[-2:]]
        sizes = x.new_tensor([[*side, 0, 0, *side]]).expand(len(x), -1)  # as made, cut off, and wanted
        added = {"text_embeds": pooled, "time_ids": sizes}
        return denoiser(pipe.unet, process, added_cond_kwargs=added)(x, sigma, embeds)

    return clean


def first_noise(pipe: Any, seeds: Sequence[int]) -> Tensor:
    """Return standard noise (b, c, h, w) for latents, of which each depends on its seed alone."""
    shape = latent_shape(pipe.unet.config)
    noise = [torch.randn(shape, generator=torch_generator(seed, "latents")) for seed in seeds]
    return torch.stack(noise).to(pipe.unet.device, pipe.unet.dtype)


def prompted(pipe: Any, prompts: Sequence[str] | Tensor, guidance: float, negative: str = "") -> Denoise:
    """Return the denoiser of ``pipe`` under ``prompts``, one for each sample, guided away from ``negative``."""
    model = model_of(pipe)
    condition, empty = conditions(pipe, prompts), conditions(pipe, [negative])
    if isinstance(empty, tuple):
        silent = not negative and pipe.config.force_zeros_for_empty_prompt
        empty = tuple((0 * part if silent else part).expand(len(prompts), *part.shape[1:]) for part in empty)
    else:
        empty = empty.expand(len(prompts), -1, -1)
    return guided(model, condition, empty, guidance)


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
    Pipelines with a transformer, such as FLUX, Stable Diffusion 3 and PixArt, draw by their own call and schedule; a
    ``sampler`` or an embedding for one of them is a :class:`UsageError`.
    """
    if getattr(pipe, "unet", None) is None and getattr(pipe, "transformer", None) is not None:
        return _by_own_call(pipe, prompts, seeds, steps, guidance, negative, sampler)
    made = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        denoise, sigmas = prompted(pipe, prompts[part], guidance, negative), levels(pipe.scheduler, steps)
        made.append(decode(pipe.vae, sampler(denoise, first_noise(pipe, seeds[part]) * sigmas[0].item(), sigmas)).cpu())
    return torch.cat(made)


def _by_own_call(
    pipe: Any,
    prompts: Sequence[str] | Tensor,
    seeds: Sequence[int],
    steps: int,
    pull: float,
    negative: str,
    sampler: Any,
) -> Tensor:
    if isinstance(prompts, Tensor) or sampler is not ddim:
        what = f"cannot draw {'from embeddings' if isinstance(prompts, Tensor) else 'with another sampler'}"
        raise UsageError(
            what, where=type(pipe).__name__, fix="Give prompts, and no sampler: it draws by its own schedule"
        )
    takes = inspect.signature(type(pipe).__call__).parameters
    own: dict[str, Any] = {"clean_caption": False, "guidance_scale": pull}  # cleaning wants further packages
    if negative:
        own |= {"negative_prompt": negative, "true_cfg_scale": pull}  # the second where guidance is distilled
    given = {name: value for name, value in own.items() if name in takes}
    if negative and "negative_prompt" not in given:
        raise UsageError("takes no negative prompt", where=type(pipe).__name__, fix="Draw without one")
    drawn = [
        pipe(prompt, num_inference_steps=steps, generator=torch_generator(seed, "latents"), output_type="pt", **given)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    return torch.cat([pictures.images.float().cpu() for pictures in drawn]).clamp(0, 1)


def _tells_sizes(pipe: Any) -> bool:
    """Say whether the denoiser is told a pooled embedding and sizes beside the embeddings, as that of SDXL is."""
    return bool(pipe.unet.config.get("addition_embed_type") == "text_time")
