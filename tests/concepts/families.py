"""Pipelines of other families with random weights: real classes, small configurations."""

import warnings
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from efface.parts.worlds.pipeline import LATENTS, autoencoder, text_encoder, tokenizer, unet
from efface.seeds import seeded

WIDTH = 32


def tiny_xl(slots: int = 16) -> Any:
    """Return a pipeline of the SDXL kind: two encoders side by side, pooled embeddings and sizes."""
    with seeded(0, "xl"):
        net = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=LATENTS, out_channels=LATENTS, layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), block_out_channels=(8, 16), norm_num_groups=8,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=2 * WIDTH,
            attention_head_dim=(2, 4), addition_embed_type="text_time", addition_time_embed_dim=4,
            use_linear_projection=True, projection_class_embeddings_input_dim=6 * 4 + WIDTH,
        )  # fmt: skip
        second = transformers.CLIPTextModelWithProjection(text_encoder(WIDTH, 2, slots).config)
        parts = {
            "unet": net, "vae": autoencoder((8, 8, 8)), "text_encoder": text_encoder(WIDTH, 2, slots),
            "text_encoder_2": second,
        }  # fmt: skip
    for part in parts.values():
        part.eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return diffusers.StableDiffusionXLPipeline(
            **parts, tokenizer=tokenizer(slots), tokenizer_2=tokenizer(slots), add_watermarker=False,
            scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"),
        )  # fmt: skip


def tiny_flux() -> Any:
    """Return a pipeline of the FLUX kind: one layer projects the text for all others."""
    with seeded(0, "flux"):
        net = diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=4 * LATENTS, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8),
        )  # fmt: skip
        config = transformers.T5Config(
            vocab_size=len(tokenizer()), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2
        )
        second = transformers.T5EncoderModel(config)
        parts = {
            "transformer": net, "vae": autoencoder((8, 8, 8)), "text_encoder": text_encoder(WIDTH, 1),
            "text_encoder_2": second,
        }  # fmt: skip
    parts["vae"].register_to_config(shift_factor=0.0)
    for part in parts.values():
        part.eval().requires_grad_(False)
    return diffusers.FluxPipeline(
        **parts, tokenizer=tokenizer(), tokenizer_2=tokenizer(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler()
    )


def tiny_pixart() -> Any:
    """Return a pipeline of the PixArt kind: a T5 encoder, whose text one layer projects for all cross-attention."""
    with seeded(0, "pixart"):
        net = diffusers.PixArtTransformer2DModel(
            sample_size=32, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2,
            in_channels=LATENTS, out_channels=2 * LATENTS, cross_attention_dim=16, caption_channels=WIDTH,
        )  # fmt: skip
        config = transformers.T5Config(
            vocab_size=len(tokenizer()), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2
        )
        parts = {"transformer": net, "vae": autoencoder((8, 8, 8)), "text_encoder": transformers.T5EncoderModel(config)}
    for part in parts.values():
        part.eval().requires_grad_(False)
    scheduler = diffusers.DPMSolverMultistepScheduler()
    return diffusers.PixArtAlphaPipeline(**parts, tokenizer=tokenizer(), scheduler=scheduler)


def long_prompts() -> Any:
    """Return a pipeline whose prompts have 77 slots, as those of Stable Diffusion have."""
    from efface.parts.worlds.pipeline import pipeline

    with seeded(0, "long"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipe = pipeline(unet((8, 16), WIDTH), text_encoder(WIDTH, 1, 77), autoencoder((8, 8, 8)), 77)
        for weight in pipe.unet.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    for part in ("unet", "text_encoder", "vae"):
        getattr(pipe, part).eval().requires_grad_(False)
    return pipe


def fixed_noise(count: int = 2) -> torch.Tensor:
    """Return latents to start from."""
    return torch.randn(count, LATENTS, 8, 8, generator=torch.Generator().manual_seed(0))
