"""Put low-rank adapters beside the layers of a network, take them away without a trace, and exchange them as files.

An adapter adds scale * up(down(x)) to what its host gives. It hangs on a hook, so the network's own weights, names and
``forward`` are never touched. Files hold factors: ``up`` (out, r), ``down`` (r, in), with kernels behind for
convolutions, and the scale.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.errors import UsageError, WeightsError

Host = nn.Linear | nn.Conv2d
Factors = tuple[Tensor, Tensor, float]
"""``up``, ``down`` and the scale of an update scale * up @ down of a weight."""
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
"""Prefixes of the networks in files of the form that kohya-ss and SD-WebUI read."""


class Adapter(nn.Module):
    """A low-rank update of one linear layer or convolution; a new one does nothing."""

    def __init__(self, host: Host, rank: int, scale: float = 1.0) -> None:
        """Take the form of ``host``: a convolution's kernel, stride and padding go to ``down``."""
        super().__init__()
        self.scale = scale
        self.rest = (host.stride, host.padding, host.dilation) if isinstance(host, nn.Conv2d) else None
        kernel = host.weight.shape[2:]
        place: dict[str, Any] = {"device": host.weight.device, "dtype": host.weight.dtype}
        self.down = nn.Parameter(torch.empty(rank, host.weight.shape[1], *kernel, **place))
        self.up = nn.Parameter(torch.zeros(host.weight.shape[0], rank, *[1] * len(kernel), **place))

    def draw(self, generator: torch.Generator) -> None:
        """Draw the first values of ``down`` as linear layers do: uniform within 1 / sqrt(inputs)."""
        bound = math.sqrt(1 / self.down[0].numel())
        first = torch.empty(self.down.shape).uniform_(-bound, bound, generator=generator)
        self.down.data.copy_(first)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the host's output for its input ``x``."""
        if self.rest is None:
            return F.linear(F.linear(x, self.down), self.up) * self.scale
        stride, padding, dilation = self.rest
        return F.conv2d(F.conv2d(x, self.down, None, stride, padding, dilation), self.up) * self.scale

    def factors(self) -> Factors:
        """Return copies of ``up`` and ``down``, and the scale."""
        return self.up.detach().clone(), self.down.detach().clone(), self.scale


def hosts(net: nn.Module, *, inside: Sequence[str] = ("Transformer2DModel",), match: str = "") -> dict[str, Host]:
    """Return the linear layers and convolutions of ``net`` that lie in modules of the classes ``inside``, by name.

    ``match`` is a regular expression that a name must contain. Raises :class:`UsageError` if none is left.
    """
    modules, found = dict(net.named_modules()), dict[str, Host]()
    roots = [name for name, module in modules.items() if type(module).__name__ in inside]
    for name, module in modules.items():
        if not isinstance(module, nn.Linear | nn.Conv2d) or not re.search(match, name):
            continue
        if any(root == "" or name == root or name.startswith(f"{root}.") for root in roots):
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                continue  # a low rank of a grouped kernel is no low rank of its matrix
            found[name] = module
    if not found:
        what = f"has no layers of {', '.join(inside)}" + (f" whose names contain {match!r}" if match else "")
        raise UsageError(what, where=type(net).__name__, fix="Name the classes of modules to put adapters in")
    return found


def new_adapters(
    hosts: Mapping[str, Host], rank: int, generator: torch.Generator, *, alpha: float | None = None
) -> dict[str, Adapter]:
    """Return an adapter for each host; their scale is ``alpha`` / ``rank``, and 1 by default."""
    made = {}
    for name, host in hosts.items():
        made[name] = Adapter(host, rank, 1.0 if alpha is None else alpha / rank)
        made[name].draw(generator)
    return made


def adapters_of(net: nn.Module, factors: Mapping[str, Factors]) -> dict[str, Adapter]:
    """Return adapters of ``net`` with the given ``factors`` by name of the host.

    Raises :class:`WeightsError` if hosts are missing, which names them, or factors do not fit.
    """
    modules = dict(net.named_modules())
    if missing := [name for name in factors if not isinstance(modules.get(name), nn.Linear | nn.Conv2d)]:
        what = f"{len(missing)} layers are missing: {', '.join(missing[:3])}"
        raise WeightsError(what, where=type(net).__name__, fix="Take adapters of a model of the same architecture")
    made = {}
    for name, (up, down, scale) in factors.items():
        host = modules[name]
        assert isinstance(host, nn.Linear | nn.Conv2d)
        made[name] = Adapter(host, down.shape[0], scale)
        for own, given in ((made[name].up, up), (made[name].down, down)):
            if own.shape != given.shape:
                what = f"the adapter has the shape {tuple(given.shape)} and the layer asks for {tuple(own.shape)}"
                raise WeightsError(what, where=name, fix="Take adapters of a model of the same architecture")
            own.data.copy_(given)
    return made


def parameters(adapters: Mapping[str, Adapter]) -> dict[str, nn.Parameter]:
    """Return the weights of ``adapters``: ``<host>.up`` and ``<host>.down``."""
    return {f"{name}.{part}": getattr(own, part) for name, own in adapters.items() for part in ("up", "down")}


@contextlib.contextmanager
def attached(net: nn.Module, adapters: Mapping[str, Adapter], strength: float = 1.0) -> Iterator[None]:
    """Let ``adapters`` act on ``net``, ``strength`` times as much, for the length of a block."""
    modules = dict(net.named_modules())
    with contextlib.ExitStack() as undo:
        for name, own in adapters.items():

            def add(host: nn.Module, given: tuple[Tensor, ...], made: Tensor, own: Adapter = own) -> Tensor:
                return torch.add(made, own(given[0]), alpha=strength)

            undo.callback(modules[name].register_forward_hook(add).remove)
        yield


def stacked(sets: Sequence[Mapping[str, Adapter]], strengths: Sequence[float]) -> dict[str, Adapter]:
    """Return one set of adapters that does what all ``sets`` do together, each ``strengths`` times as much.

    A host of several gets one adapter of their ranks' sum, so a stack costs two products for each host. It is a sum of
    products: no up of one meets the down of another.
    """
    parts: dict[str, list[tuple[Adapter, float]]] = {}
    for each, strength in zip(sets, strengths, strict=True):
        for name, own in each.items():
            parts.setdefault(name, []).append((own, strength))
    made = {}
    for name, given in parts.items():
        joined = Adapter.__new__(Adapter)
        nn.Module.__init__(joined)
        joined.scale, joined.rest = 1.0, given[0][0].rest
        joined.down = nn.Parameter(torch.cat([own.down.detach() for own, _ in given]), requires_grad=False)
        ups = [own.up.detach() * (own.scale * strength) for own, strength in given]
        joined.up = nn.Parameter(torch.cat(ups, dim=1), requires_grad=False)
        made[name] = joined
    return made


def to_kohya(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Return the tensors of a file in kohya's form, from ``factors`` by names such as ``unet.….to_k``."""
    tensors = {}
    for name, (up, down, scale) in factors.items():
        key = _kohya(name)
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
        tensors[f"{key}.alpha"] = torch.tensor(scale * down.shape[0])
    return tensors


def from_kohya(tensors: Mapping[str, Tensor], net: nn.Module) -> dict[str, Factors]:
    """Return the factors in a file of kohya's form, by the names of the layers of ``net`` (``unet.…``).

    Raises :class:`WeightsError` if a layer is not in ``net``, or tensors of a pair are missing.
    """
    known = {_kohya(name): name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    keys = dict.fromkeys(key.partition(".")[0] for key in tensors)
    if missing := [key for key in keys if key not in known]:
        what = f"{len(missing)} layers are missing: {', '.join(missing[:3])}"
        raise WeightsError(what, where=type(net).__name__, fix="Take adapters of a model of the same architecture")
    found = {}
    for key in keys:
        up, down = (tensors.get(f"{key}.lora_{part}.weight") for part in ("up", "down"))
        if up is None or down is None or up.shape[1] != down.shape[0]:
            raise WeightsError("is no pair of factors", where=key, fix="Take another copy of the file")
        alpha = tensors.get(f"{key}.alpha")
        found[known[key]] = up, down, 1.0 if alpha is None else float(alpha) / down.shape[0]
    return found


def to_peft(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Return the tensors that diffusers' ``load_lora_weights`` takes; ``lora_B`` holds the scale as well."""
    tensors = {}
    for name, (up, down, scale) in factors.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down, up * scale
    return tensors


def _kohya(name: str) -> str:
    net, _, layer = name.partition(".")
    return f"{KOHYA.get(net, f'lora_{net}')}_{layer.replace('.', '_')}"
