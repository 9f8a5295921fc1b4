"""Hang the tensors of a bare checkpoint in a tree of modules, so that weights can be named, chosen and edited.

A checkpoint knows names and shapes alone. That is enough for methods that look at nothing but weights: the tree cannot
be run, but its parameters have their names, and its ``state_dict`` has the keys of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def tree(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a module whose ``state_dict`` is ``tensors``: they themselves, not copies of them.

    What is floating is a parameter, but for running statistics of norms; these, and what is not, are buffers.
    """
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        layer = root
        # Into the dictionaries, for a layer may bear the name of a method of nn.Module, such as `type`.
        for part in path:
            layer = layer._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
        if tensor.is_floating_point() and not last.startswith("running_"):
            layer._parameters[last] = nn.Parameter(tensor, requires_grad=False)
        else:
            layer._buffers[last] = tensor
    return root.eval()
