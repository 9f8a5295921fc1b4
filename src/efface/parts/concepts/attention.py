"""Find the linear layers through which a denoiser reads the text."""

from __future__ import annotations

from typing import Any

from torch import nn

from efface.errors import UsageError

SUPPORTED = "Give a pipeline of diffusers whose denoiser attends to text"


def backbone(pipe: Any) -> tuple[str, Any]:
    """Return the name of the denoiser in ``pipe``, ``unet`` or ``transformer``, and the denoiser."""
    for name in ("unet", "transformer"):
        if isinstance(net := getattr(pipe, name, None), nn.Module):
            return name, net
    raise UsageError("has no denoiser", where=type(pipe).__name__, fix=SUPPORTED)


def cross_attention(net: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers of a denoiser that are given the text embedding itself, by name.

    They are ``to_k`` and ``to_v`` of every cross-attention; where one layer projects the text for all of them, that
    layer: ``context_embedder`` (FLUX, Stable Diffusion 3), ``caption_projection.linear_1`` (PixArt), or
    ``encoder_hid_proj``. Edits come before a layer's bias, so biases stay as they are.

    Raises
    ------
    UsageError
        If there is none, or if keys and values are fused.
    """
    modules = dict(net.named_modules())
    for name in ("context_embedder", "caption_projection.linear_1", "encoder_hid_proj"):
        if isinstance(layer := modules.get(name), nn.Linear):
            return {name: layer}
    found = {}
    for name, module in modules.items():
        if not (name.endswith("attn2") and getattr(module, "is_cross_attention", False)):
            continue
        if getattr(module, "fused_projections", False):
            raise UsageError("keys and values are fused", where=name, fix="Call unfuse_qkv_projections() before")
        for part in ("to_k", "to_v"):
            if isinstance(layer := getattr(module, part, None), nn.Linear):
                found[f"{name}.{part}"] = layer
    if not found:
        raise UsageError("has no cross-attention to text", where=type(net).__name__, fix=SUPPORTED)
    return found
