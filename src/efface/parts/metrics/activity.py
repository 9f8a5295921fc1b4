"""Count dead neurons while a network runs: units that give nothing, and units that weights no longer reach.

A neuron is one output of an activation: a unit of a linear layer (tokens count as inputs), or one place of one channel
of a convolution. For an input it is *dynamically* dead if its activation is zero; it is *statically* dead, whatever the
input, if all of its incoming or all of its outgoing weights are zero. Activations are found as they are called, as
modules or as functions (``F.relu``, ``x.relu_()``), and counted on the fly: nothing but one count per neuron is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from efface.errors import InputError, UsageError
from efface.parts.nn.modes import mode

RECTIFIERS = ("relu", "relu_", "relu6", "_threshold", "threshold_")
"""Activations that give exactly zero; others are dead where they are nearly zero."""
SMOOTH = ("gelu", "silu", "mish", "hardswish", "softplus")
LAYERS = ("linear", "conv1d", "conv2d", "conv3d")
CHANNELWISE = (
    "batch_norm", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "max_pool1d", "max_pool2d",
    "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "contiguous",
    "flatten", "to", "float", "clone",
)  # fmt: skip
"""Functions that keep channels apart and in order; ``flatten`` makes several neighbours of each."""
LOOKS = ("dim", "size", "numel", "is_contiguous", "is_floating_point", "stride")


@dataclass
class Neurons:
    """The neurons of one activation, after ``inputs`` inputs."""

    silent: Tensor
    """On how many inputs each neuron was zero: (units,), or (channels, places...) of a convolution, int64."""
    unfed: Tensor
    """Which channels have no incoming weight (channels,)."""
    inputs: int = 0
    unread: Tensor | None = None
    """Which channels no later weight reads; None where nothing but layers could read them, or nothing did."""
    free: bool = False
    """Whether something other than a layer reads them too, a sum for instance."""

    @property
    def dead(self) -> Tensor:
        """Which neurons are statically dead, in the shape of ``silent``."""
        channels = self.unfed if self.free or self.unread is None else self.unfed | self.unread
        return channels.view(-1, *[1] * (self.silent.ndim - 1)).expand_as(self.silent)

    @property
    def dynamic(self) -> Tensor:
        """Share of inputs on which each neuron is dynamically dead; 0 for those that are statically dead."""
        return torch.where(self.dead, 0.0, self.silent.double() / max(1, self.inputs))


@dataclass(frozen=True)
class DeadNeurons:
    """Dead neuron rates of a network, by activation; every neuron weighs the same."""

    layers: dict[str, Neurons]

    @property
    def dynamic(self) -> float:
        """Share of neurons that are zero, though weights reach them, in the mean over inputs."""
        return sum(float(n.dynamic.sum()) for n in self.layers.values()) / self.count

    @property
    def static(self) -> float:
        """Share of neurons without incoming or without outgoing weights."""
        return sum(int(n.dead.sum()) for n in self.layers.values()) / self.count

    @property
    def rate(self) -> float:
        """The dead neuron rate: dynamic and static."""
        return self.dynamic + self.static

    @property
    def count(self) -> int:
        """Number of neurons."""
        return sum(n.silent.numel() for n in self.layers.values())

    def per_layer(self) -> dict[str, tuple[float, float]]:
        """Return the dynamic and the static rate of each activation."""
        return {k: (float(n.dynamic.mean()), float(n.dead.double().mean())) for k, n in self.layers.items()}

    def reactivated(self, before: DeadNeurons, share: float = 0.99) -> int:
        """Return how many neurons that were zero on more than ``share`` of the inputs ``before`` no longer are."""

        def mute(n: Neurons) -> Tensor:
            return n.silent > share * n.inputs

        return sum(int((mute(before.layers[name]) & ~mute(now)).sum()) for name, now in self.layers.items())


def dead_neurons(net: nn.Module, batches: Iterable[Any], *, maps: bool = False, nearly: float = 1e-3) -> DeadNeurons:
    """Run ``net`` in evaluation mode on ``batches`` of its input and return which neurons are dead.

    With ``maps`` a whole channel of a convolution is one neuron, dead for an input if it is zero everywhere. Smooth
    activations (GELU, SiLU) count as zero below ``nearly`` times the root mean square of the layer in the batch.

    Raises
    ------
    UsageError
        If no activation that could die is called.
    InputError
        If the size of a convolution's output changes from batch to batch and ``maps`` is false.
    """
    stack: list[str] = []
    watch = _Watch(lambda: stack[-1] if stack else "", maps, nearly)
    hooks = []
    for name, module in net.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: stack.pop() and None, always_call=True))
    try:
        with torch.no_grad(), mode(net, training=False):
            for batch in batches:
                watch.calls.clear()
                with watch:
                    out = net(batch)
                watch.release(tree_leaves(out))
    finally:
        for hook in hooks:
            hook.remove()
    if not watch.layers:
        raise UsageError(
            "no neuron can die: the network calls no activation that gives zero",
            where=type(net).__name__,
            fix=f"Known are {', '.join((*RECTIFIERS, *SMOOTH))}",
        )
    return DeadNeurons(watch.layers)


class _Watch(TorchFunctionMode):
    """See every function that a network calls, and follow channels from layer to activation to layer."""

    def __init__(self, place: Callable[[], str], maps: bool, nearly: float) -> None:
        self.place, self.maps, self.nearly = place, maps, nearly
        self.layers: dict[str, Neurons] = {}
        self.calls: dict[str, int] = {}
        self.unfed = WeakIdKeyDictionary()  # tensor -> channels without incoming weights
        self.origin = WeakIdKeyDictionary()  # tensor -> the neurons that it holds, channel by channel

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if isinstance(out, Tensor) and given and name not in LOOKS:
            self._follow(name, args, kwargs, given, out)
        return out

    def _follow(self, name: str, args: Any, kwargs: Any, given: list[Tensor], out: Tensor) -> None:
        x = given[0]
        if name in LAYERS:
            weight = kwargs.get("weight", args[1] if len(args) > 1 else given[1])
            self._read(x, weight, kwargs.get("groups", args[6] if name != "linear" and len(args) > 6 else 1))
            self.unfed[out] = ~weight.detach().flatten(1).any(1)
        elif name in RECTIFIERS or name in SMOOTH or _is_relu(name, args, kwargs):
            self._count(out, self.unfed.get(x), exact=name not in SMOOTH)
        elif name in CHANNELWISE:
            for known in (self.unfed, self.origin):
                if x in known:
                    known[out] = known[x]
        else:
            self.release(given)
            both = [self.unfed.get(t) for t in given]
            if name in ("add", "add_", "__radd__") and len(both) == 2 and all(t is not None for t in both):
                self.unfed[out] = both[0] & both[1]
            else:
                self.unfed.pop(out, None)

    def release(self, tensors: Iterable[Any]) -> None:
        """Note that something other than a layer reads ``tensors``."""
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor in self.origin:
                self.origin[tensor].free = True

    def _count(self, out: Tensor, unfed: Tensor | None, *, exact: bool) -> None:
        zero = out == 0 if exact else out.abs() < self.nearly * out.square().mean().sqrt()
        convolved = out.ndim > 3 or (out.ndim == 3 and unfed is not None and len(unfed) == out.shape[1])
        if not convolved:
            zero = zero.reshape(-1, out.shape[-1])
        elif self.maps:
            zero = zero.flatten(2).all(2)
        silent = zero.sum(0)
        name = self.place() + (f"#{self.calls[self.place()]}" if self.calls.get(self.place()) else "")
        self.calls[self.place()] = self.calls.get(self.place(), 0) + 1
        if unfed is None or len(unfed) != len(silent):
            unfed = torch.zeros(len(silent), dtype=torch.bool, device=out.device)
        neurons = self.layers.setdefault(name, Neurons(torch.zeros_like(silent), unfed))
        if neurons.silent.shape != silent.shape:
            what = f"gives {tuple(silent.shape)} neurons after {tuple(neurons.silent.shape)}"
            raise InputError(what, where=name, fix="Give batches of one size, or count whole maps")
        neurons.silent += silent
        neurons.inputs += len(zero)
        self.origin[out] = neurons

    def _read(self, x: Tensor, weight: Tensor, groups: int) -> None:
        if x not in self.origin:
            return
        neurons = self.origin[x]
        columns = weight.detach().view(groups, weight.shape[0] // groups, weight.shape[1], -1).any(3).any(1).flatten()
        channels = len(neurons.unfed)
        if len(columns) % channels:
            neurons.free = True
            return
        unread = ~columns.view(channels, -1).any(1)  # flattened maps lie behind one another
        neurons.unread = unread if neurons.unread is None else neurons.unread & unread


def _is_relu(name: str, args: Any, kwargs: Any) -> bool:
    low = kwargs.get("min", args[1] if len(args) > 1 else None)
    high = kwargs.get("max", args[2] if len(args) > 2 else None)
    return name in ("clamp", "clamp_", "clamp_min", "clamp_min_", "clip") and low == 0 and high is None
