"""Recognise networks that are a chain of layers, in which every channel has one maker and one reader."""

from __future__ import annotations

from torch import nn

ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Dropout)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def chain(model: nn.Module, name: str = "") -> list[tuple[str, nn.Module]] | None:
    """Return the layers of ``model`` by name, from input to output, or None where it is no chain.

    A chain is a ``nn.Sequential``, nested or not, of linear layers and ungrouped convolutions, with elementwise layers,
    batch norms, pools and flattening between them.
    """
    if isinstance(model, (*WEIGHTED, *ELEMENTWISE, *POOLS, *NORMS, nn.Flatten)):
        return [(name, model)] if getattr(model, "groups", 1) == 1 else None
    if type(model) is not nn.Sequential:
        return None
    parts = [chain(child, f"{name}.{key}" if name else key) for key, child in model.named_children()]
    return None if any(part is None for part in parts) else [layer for part in parts if part for layer in part]
