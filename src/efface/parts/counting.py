"""Count what a network costs: parameters, FLOPs and bytes, dense and with weights taken out.

FLOPs are counted by torch's own formulas (``torch.utils.flop_counter``) on tensors without content, so nothing is
computed. Each product is booked on the weight that takes part in it, which is what a mask needs: a weight of density d
has d times its FLOPs left in theory. Whether a machine gains from it is another question; see ``efface bench``.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from efface.errors import UsageError
from efface.parts.nn.chain import WEIGHTED, chain
from efface.parts.nn.modes import mode

CONVENTION = "1 MAC = 2 FLOPs; matrix products and convolutions count, norms, activations, pooling and biases do not"
INDEX_BYTES = 4
"""Size of a column index or row pointer of the CSR form."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, each storage counted once."""

    total: int
    prunable: int
    """Those that the masks cover."""
    kept: int
    """All but those that a mask takes out."""


@dataclass(frozen=True)
class Flops:
    """FLOPs of one call, by :data:`CONVENTION`."""

    by_weight: dict[str, int]
    """Name of a parameter -> FLOPs of the products it takes part in."""
    other: int
    """FLOPs of products without a parameter: attention."""

    @property
    def total(self) -> int:
        """FLOPs of the dense network."""
        return self.other + sum(self.by_weight.values())

    def by_module(self) -> dict[str, int]:
        """Return the FLOPs by the name of the module that holds the weights."""
        found: Counter[str] = Counter()
        for name, count in self.by_weight.items():
            found[name.rpartition(".")[0]] += count
        return dict(found)

    def kept(self, densities: Mapping[str, float]) -> int:
        """Return the theoretical FLOPs where each named weight has its density in [0, 1], and others have 1."""
        return self.other + round(sum(count * densities.get(name, 1.0) for name, count in self.by_weight.items()))


def positional(example: object) -> tuple[Any, ...]:
    """Return the positional inputs ``example`` as a tuple; a tensor is the only one.

    Raises :class:`UsageError` if it is neither a tensor nor a tuple or list.
    """
    if isinstance(example, Tensor):
        return (example,)
    if not isinstance(example, tuple | list):
        what = f"inputs are given as {type(example).__name__}"
        raise UsageError(what, where="example", fix="Give a tensor, or a tuple of the positional inputs")
    return tuple(example)


def count_parameters(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> Parameters:
    """Count the parameters of ``model`` with ``masks`` (name of a parameter -> bool, True = kept)."""
    masks = masks or {}
    total = sum({_place(p): p.numel() for p in model.parameters()}.values())
    prunable = sum(mask.numel() for mask in masks.values())
    return Parameters(total, prunable, total - prunable + sum(int(mask.sum()) for mask in masks.values()))


def count_flops(model: nn.Module, *example: Any) -> Flops:
    """Count the FLOPs of ``model(*example)`` in evaluation, without computing it; the model stays as it is.

    Where the values decide the path (``.item()``, ``nonzero``), the call is really made.
    """
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, contextlib.suppress(*_PATH_DEPENDS):
        return _count(model, {name: fake.from_tensor(tensor) for name, tensor in state.items()}, example)
    return _count(model, state, example)


_PATH_DEPENDS = (DataDependentOutputException, DynamicOutputShapeException)


def dense_bytes(model: nn.Module) -> int:
    """Return the bytes of the tensors of ``model`` as they are saved, each storage once."""
    tensors = (value for value in model.state_dict().values() if isinstance(value, Tensor))
    return sum({_place(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def bitmask_bytes(total: int, kept: int, itemsize: int = 4) -> int:
    """Return the bytes of a weight stored as a bit for each entry and the values: ``total / 8 + itemsize * kept``."""
    return -(-total // 8) + itemsize * kept


def csr_bytes(shape: tuple[int, ...], kept: int, itemsize: int = 4) -> int:
    """Return the bytes of a weight stored as compressed rows: values, column indices and row pointers."""
    return (itemsize + INDEX_BYTES) * kept + INDEX_BYTES * (shape[0] + 1)


def effective_density(model: nn.Module, masks: Mapping[str, Tensor]) -> float | None:
    """Return the share of weights on a path of kept weights from input to output (arXiv:2107.02306), over all masks.

    A weight that is kept but whose input no kept weight feeds, or whose output none reads, does nothing that a bias
    could not do. Offered for a :func:`chain` of layers that share none; otherwise the answer is None.
    """
    names = [f"{name}.weight".lstrip(".") for name, layer in chain(model) or () if isinstance(layer, WEIGHTED)]
    weights = dict(model.named_parameters())
    if not masks or not set(masks) <= set(names) <= set(weights) or not all(weights[name].numel() for name in names):
        return None
    kept = [masks.get(name, torch.ones_like(weights[name], dtype=torch.bool)).cpu() for name in names]
    kept = [mask.reshape(*mask.shape[:2], -1) for mask in kept]  # (out, in, taps)
    links = [mask.any(2) for mask in kept]
    if any(after.shape[1] % before.shape[0] for before, after in pairwise(links)):
        return None
    fed = [torch.ones(links[0].shape[1], dtype=torch.bool)]  # inputs of each layer that a path reaches
    for link, after in pairwise(links):
        made = (link & fed[-1]).any(1)
        fed.append(made.repeat_interleave(after.shape[1] // len(made)))  # flattened maps: several inputs a channel
    read = torch.ones(links[-1].shape[0], dtype=torch.bool)  # outputs of a layer from which a path goes on
    alive = 0
    for name, mask, link, inputs in reversed(list(zip(names, kept, links, fed, strict=True))):
        alive += int((mask & read[:, None, None] & inputs[:, None]).sum()) if name in masks else 0
        before = links[names.index(name) - 1]
        read = (link & read[:, None]).any(0)
        read = read.view(len(before), -1).any(1) if name != names[0] else read
    return alive / sum(mask.numel() for mask in masks.values())


def path_notes(density: float, effective: float | None) -> list[str]:
    """Say it where the :func:`effective_density` is below that of the masks."""
    if effective is None or effective >= density:
        return []
    lost = f"{1 - effective / density:.1%} of the weights kept lie on no path of kept weights from input to output"
    return [f"Effective density {effective:.3%}: {lost}"]


class _Booking(TorchDispatchMode):
    """Book the FLOPs of each product on the weight that takes part in it, a view of it included."""

    def __init__(self, owners: Mapping[int, str]) -> None:
        super().__init__()
        self.owners, self.booked = owners, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            places = (arg.untyped_storage()._cdata for arg in args if isinstance(arg, Tensor))
            owner = next((self.owners[place] for place in places if place in self.owners), "")
            self.booked[owner] += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _count(model: nn.Module, state: dict[str, Tensor], example: tuple[Any, ...]) -> Flops:
    owners = {state[n].untyped_storage()._cdata: n for n, p in model.named_parameters() if p.ndim > 1}
    with torch.no_grad(), _unfused(), mode(model, training=False), _Booking(owners) as booking:
        torch.func.functional_call(model, state, example)
    return Flops({name: booking.booked[name] for name in owners.values() if booking.booked[name]}, booking.booked[""])


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """Keep torch from fused kernels that it has no formula for: encoder layers, attention, LSTM."""
    fast, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = mkldnn  # type: ignore[assignment]


def _place(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.numel()
