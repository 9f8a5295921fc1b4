"""Build, load and save the tiny text-to-image pipeline: the classes and module names of Stable Diffusion 1.x.

At about a thousandth of the size it follows prompts about the world, so that whatever edits the full-size models can be
measured on a small machine by the same code. Nothing here reaches the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from efface.errors import WeightsError
from efface.extras import need
from efface.io.weights import load_card, load_weights
from efface.parts.diffusion.latents import encode
from efface.parts.worlds.captions import words
from efface.parts.worlds.world import SIDE, render, scenes
from efface.seeds import numpy_generator

JOB = "the tiny text-to-image pipeline"
SHIPPED = Path(__file__).resolve().parents[2] / "weights" / "tiny-text-to-image"
SLOTS = 16
"""Tokens of a prompt, its start and end included; Stable Diffusion has 77."""
LATENTS = 8
"""Channels of a latent, which has a quarter of the picture's height and width."""
START, END = "<|startoftext|>", "<|endoftext|>"


def tokenizer(slots: int = SLOTS) -> Any:
    """Return CLIP's tokenizer with the bytes as alphabet and one token for each word of the world."""
    transformers = need("transformers", extra="diffusion", job=JOB)
    merges = _merges(words())
    symbols = _alphabet()
    tokens = [*symbols, *(f"{s}</w>" for s in symbols), *("".join(pair) for pair in merges), START, END]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=slots, **special)


def text_encoder(width: int = 96, layers: int = 2, slots: int = SLOTS, tokens: int | None = None) -> Any:
    """Return an untrained text encoder for :func:`tokenizer`."""
    transformers = need("transformers", extra="diffusion", job=JOB)
    count = len(tokenizer()) if tokens is None else tokens
    config = transformers.CLIPTextConfig(
        vocab_size=count, hidden_size=width, intermediate_size=4 * width, projection_dim=width,
        num_hidden_layers=layers, num_attention_heads=4, max_position_embeddings=slots,
        bos_token_id=count - 2, eos_token_id=count - 1, pad_token_id=count - 1,
    )  # fmt: skip
    return transformers.CLIPTextModel(config)


def unet(widths: tuple[int, ...] = (48, 96), text: int = 96) -> Any:
    """Return an untrained denoiser of two levels, with cross-attention to a text of width ``text`` at both."""
    diffusers = need("diffusers", extra="diffusion", job=JOB)
    net = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 4, in_channels=LATENTS, out_channels=LATENTS, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=tuple(widths), norm_num_groups=8, cross_attention_dim=text,
        attention_head_dim=4,  # the number of heads, under the name that diffusers gives it
    )  # fmt: skip
    _silence_branches(net)
    return net


def autoencoder(widths: tuple[int, ...] = (16, 32, 64)) -> Any:
    """Return an untrained autoencoder of pictures in [-1, 1]; its latents have a quarter of their height and width.

    Its convolutions begin orthogonal and without biases, its residual branches at zero, its latents with little noise:
    the usual first weights let biases drown the picture on the way, and a short training spends itself on finding it
    again.
    """
    diffusers = need("diffusers", extra="diffusion", job=JOB)
    vae = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENTS, sample_size=SIDE, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=tuple(widths), norm_num_groups=8, mid_block_add_attention=False,
    )  # fmt: skip
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    _silence_branches(vae)
    nn.init.zeros_(vae.quant_conv.weight[LATENTS:])
    nn.init.constant_(vae.quant_conv.bias[LATENTS:], -6.0)  # logarithm of the variance
    return vae


def scheduler() -> Any:
    """Return the noise schedule: its last step is almost pure noise, so that sampling begins where training ended."""
    diffusers = need("diffusers", extra="diffusion", job=JOB)
    return diffusers.DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type="v_prediction",
        timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True, steps_offset=1,
    )  # fmt: skip


def pipeline(unet: Any, text_encoder: Any, vae: Any, slots: int = SLOTS) -> Any:
    """Put the networks together as the ordinary pipeline, with our tokenizer and schedule."""
    diffusers = need("diffusers", extra="diffusion", job=JOB)
    return diffusers.StableDiffusionPipeline(
        unet=unet, text_encoder=text_encoder, vae=vae, tokenizer=tokenizer(slots), scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def load_pipeline(folder: str | Path = SHIPPED, **options: Any) -> Any:
    """Load the pipeline in a diffusers ``folder`` (default: the one that comes with the package), without a bar."""
    diffusers = need("diffusers", extra="diffusion", job=JOB)
    if not (Path(folder) / "model_index.json").is_file():
        fix = "Give a folder that holds model_index.json"
        raise WeightsError("holds no pipeline of diffusers", where=folder, fix=fix)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float32)


def load_autoencoder(folder: str | Path) -> Any:
    """Load the autoencoder that a training left in ``folder``, frozen, with latents scaled to unit variance."""
    vae = autoencoder(tuple(load_card(Path(folder))["params"]["widths"]))
    tensors, _ = load_weights(Path(folder), {k: tuple(v.shape) for k, v in vae.state_dict().items()})
    vae.load_state_dict(tensors)
    vae.eval().requires_grad_(False).register_to_config(scaling_factor=1.0)
    drawn = render(scenes(512, numpy_generator(0, "scaling"))).picture
    vae.register_to_config(scaling_factor=round(1 / float(encode(vae, torch.from_numpy(drawn)).std()), 4))
    return vae


def load_text_encoder(folder: str | Path) -> Any:
    """Load the text encoder that a training left in ``folder``, frozen and without its heads."""
    params = load_card(Path(folder))["params"]
    text = text_encoder(params["width"], params["layers"])
    tensors, _ = load_weights(Path(folder))
    text.load_state_dict({k.removeprefix("text_encoder."): v for k, v in tensors.items() if not k.startswith("heads.")})
    return text.eval().requires_grad_(False)


def assemble(autoencoder: str | Path, text: str | Path, denoiser: str | Path) -> Any:
    """Put the pipeline together from the weights that the three trainings left in their folders."""
    params = load_card(Path(denoiser))["params"]
    net = unet(tuple(params["widths"]), params["text_width"])
    tensors, _ = load_weights(Path(denoiser), {k: tuple(v.shape) for k, v in net.state_dict().items()})
    net.load_state_dict(tensors)
    net.eval().requires_grad_(False)
    return pipeline(net, load_text_encoder(text), load_autoencoder(autoencoder))


def _silence_branches(net: nn.Module) -> None:
    """Let every residual branch of ``net`` begin at zero."""
    for name, module in net.named_modules():
        if name.endswith((".conv2", ".proj_out")):
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def _alphabet() -> list[str]:
    """Return the 256 symbols by which byte-level BPE writes the bytes: printable ones stand for themselves."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, shown), *(chr(256 + number) for number in range(256 - len(shown)))]


def _merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return merges that make each of ``words`` one token.

    A merge has a lower rank than all before it, so a word that is whole already stays whole.
    """
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for pair in merges:
            pieces = _merged(pieces, pair)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _merged(pieces, merges[-1])
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
