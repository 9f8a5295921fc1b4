"""Hold which weights of a network stay, and keep the others at zero while it trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from efface.errors import EffaceError, PlanError, UsageError, WeightsError
from efface.io.atomic import atomic_write
from efface.io.weights import refuse_pickle
from efface.parts.sparsity.bits import pack, unpack
from efface.parts.sparsity.prunable import prunable, tied
from efface.seeds import torch_generator

BUFFERS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
"""What SGD and the Adam family remember of a weight; without masking it would bring pruned weights back."""
_FORM = "efface masks 1"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class LayerCollapse(EffaceError):  # noqa: N818
    """A layer kept so few weights that nothing passes through it."""


class MaskSet(Mapping[str, Tensor]):
    """Bool masks by parameter name, in order: true where a weight stays.

    A mask takes 1 byte a weight in memory and 1 bit on disk. Masks may be changed in place. A tied parameter has one
    mask under its first name; its other names are in ``aliases`` and find the same mask.
    """

    def __init__(self, masks: Mapping[str, Tensor], aliases: Mapping[str, str] | None = None) -> None:
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise UsageError(f"a mask holds {mask.dtype} instead of bool", where=name, fix="Compare it with 0")
        self._masks, self.aliases = dict(masks), dict(aliases or {})

    @classmethod
    def ones_like(cls, model: nn.Module, include: Iterable[str] = ("*",), exclude: Iterable[str] = ()) -> MaskSet:
        """Keep every weight that :func:`prunable` finds in ``model``, on the weight's device."""
        weights = prunable(model, include, exclude)
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        return cls(masks, {other: name for other, name in tied(model).items() if name in masks})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[self.aliases.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"MaskSet({len(self)} weights, {self.kept} of {self.total} kept)"

    @property
    def total(self) -> int:
        """Number of positions."""
        return sum(mask.numel() for mask in self.values())

    @property
    def kept(self) -> int:
        """Number of weights that stay."""
        return sum(kept for kept, _ in self.per_layer().values())

    @property
    def density(self) -> float:
        """Kept share of all weights, 1 for a set without any."""
        return self.kept / self.total if self.total else 1.0

    def per_layer(self) -> dict[str, tuple[int, int]]:
        """Return the kept and the total number of weights under each name."""
        return {name: (int(torch.count_nonzero(mask)), mask.numel()) for name, mask in self.items()}

    def check(self, min_kept: int = 1) -> None:
        """Raise :class:`LayerCollapse` naming the layers with fewer than ``min_kept`` weights (or than they have)."""
        thin = [name for name, (kept, total) in self.per_layer().items() if kept < min(min_kept, total)]
        if thin:
            what = f"{len(thin)} of {len(self)} layers keep fewer than {min_kept} weights"
            fix = "Lower the sparsity, or set a minimum per layer"
            raise LayerCollapse(what, where=", ".join(thin[:3]), fix=fix)

    def overlap(self, other: MaskSet) -> float:
        """Return how alike two sets are: weights kept by both over those kept by either (Jaccard), 1 if none is."""
        either = (self | other).kept
        return (self & other).kept / either if either else 1.0

    def shuffle(self, seed: int, scope: Literal["layer", "global"] = "layer") -> MaskSet:
        """Return the set with kept places drawn anew, each ``layer`` keeping its count, or only the whole (``global``).

        The draw is made on the CPU, so it is the same on every device.
        """
        groups = [[name] for name in self] if scope == "layer" else [list(self)]
        shuffled: dict[str, Tensor] = {}
        for names in groups:
            flat = torch.cat([self[name].flatten().cpu() for name in names])
            order = torch.randperm(len(flat), generator=torch_generator(seed, "shuffle", *names))
            parts = flat[order].split([self[name].numel() for name in names])
            for name, part in zip(names, parts, strict=True):
                shuffled[name] = part.view(self[name].shape).to(self[name].device)
        return MaskSet(shuffled, self.aliases)

    def random_like(self, seed: int) -> MaskSet:
        """Return random masks that keep as many weights of each layer as these."""
        return self.shuffle(seed, "layer")

    def __and__(self, other: MaskSet) -> MaskSet:
        self._check_fits(other)
        return MaskSet({name: mask & other[name].to(mask.device) for name, mask in self.items()}, self.aliases)

    def __or__(self, other: MaskSet) -> MaskSet:
        self._check_fits(other)
        return MaskSet({name: mask | other[name].to(mask.device) for name, mask in self.items()}, self.aliases)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MaskSet):
            return NotImplemented
        return self.keys() == other.keys() and all(torch.equal(m.cpu(), other[n].cpu()) for n, m in self.items())

    __hash__ = None  # type: ignore[assignment]  # masks change in place

    def digest(self) -> str:
        """Return the sha256 of names, shapes and bits, the same on every device and in every order of layers."""
        digest = hashlib.sha256()
        for name in sorted(self):
            digest.update(f"{name}{list(self[name].shape)}".encode())
            digest.update(pack(self[name]).numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write the set to ``path`` as safetensors, 1 bit a weight; raise :class:`OutputError` if that fails."""
        from safetensors.torch import save

        shapes = {name: list(mask.shape) for name, mask in self.items()}
        facts = {"form": _FORM, "shapes": json.dumps(shapes), "aliases": json.dumps(self.aliases)}
        with atomic_write(path, overwrite=overwrite) as temporary:
            temporary.write_bytes(save({name: pack(mask) for name, mask in self.items()}, facts))

    @classmethod
    def load(cls, path: Path | str) -> MaskSet:
        """Read what :meth:`save` wrote, onto the CPU; raise :class:`WeightsError` if the file is anything else."""
        from safetensors import SafetensorError, safe_open

        refuse_pickle(Path(path))
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                if facts.get("form") != _FORM:
                    raise ValueError("it says it is something else, or of a newer version")
                shapes, aliases = json.loads(facts["shapes"]), json.loads(facts["aliases"])
                if sorted(shapes) != sorted(file.keys()):
                    raise ValueError("its masks are not those it lists")
                return cls({name: unpack(file.get_tensor(name), shape) for name, shape in shapes.items()}, aliases)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            fix = "Name a file that MaskSet.save wrote"
            raise WeightsError(f"does not hold masks ({error})", where=path, fix=fix) from error

    def apply_(self, model: nn.Module) -> None:
        """Set the weights of ``model`` that do not stay to 0, in place.

        Raises
        ------
        PlanError
            If the model lacks one of the weights or has it in another shape; then nothing is changed.
        """
        weights = self._find(model)
        _zero([(weights[name], mask.to(weights[name].device)) for name, mask in self.items()])

    def attach(self, model: nn.Module, optimizer: Any, *, freeze_grad: bool = False) -> Attached:
        """Keep the pruned weights of ``model`` at 0 after every step of ``optimizer``, and what it remembers of them.

        The set moves to the devices of the weights; whoever changes its masks between steps is followed. Gradients stay
        dense, so that weights can grow back by them, unless ``freeze_grad`` zeroes those of pruned weights as soon as
        they are there (a norm to clip by must not count them). Undo with ``.remove()``.
        """
        weights = self._find(model)
        optimizer = unwrapped(optimizer)
        self._masks = {name: mask.to(weights[name].device) for name, mask in self.items()}

        def hold(*_: object) -> None:
            tensors = ((name, [weight, *_remembered(optimizer, weight)]) for name, weight in weights.items())
            _zero([(tensor, self._masks[name]) for name, group in tensors for tensor in group])

        def hold_grad(name: str) -> Callable[[Tensor], None]:
            return lambda weight: _zero([(weight.grad, self._masks[name])])  # type: ignore[list-item]

        hold()
        handles = [optimizer.register_step_post_hook(hold)]
        if freeze_grad:
            trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
            handles += [w.register_post_accumulate_grad_hook(hold_grad(name)) for name, w in trained.items()]
        return Attached(handles)

    def _find(self, model: nn.Module) -> dict[str, nn.Parameter]:
        weights, fix = dict(model.named_parameters(remove_duplicate=False)), "Take the model the masks were made for"
        for name, mask in self.items():
            if name not in weights:
                raise PlanError("the model has no such weight", where=name, fix=fix)
            if weights[name].shape != mask.shape:
                what = f"the weight is {tuple(weights[name].shape)}, its mask {tuple(mask.shape)}"
                raise PlanError(what, where=name, fix=fix)
        return {name: weights[name] for name in self}

    def _check_fits(self, other: MaskSet) -> None:
        ours, theirs = ({name: tuple(mask.shape) for name, mask in masks.items()} for masks in (self, other))
        if ours != theirs:
            name = next(n for n in [*ours, *theirs] if ours.get(n) != theirs.get(n))
            what = f"one set has {ours.get(name, 'no such mask')} where the other has {theirs.get(name, 'none')}"
            raise PlanError(what, where=name, fix="Combine masks of one architecture")


class Attached:
    """Hooks that go away together."""

    def __init__(self, handles: Sequence[Any]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Take the hooks off; the weights stay as they are."""
        for handle in self._handles:
            handle.remove()


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """Return torch's own optimiser, which has hooks, where accelerate has wrapped it."""
    return getattr(optimizer, "optimizer", optimizer)


def _remembered(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> list[Tensor]:
    state = optimizer.state.get(weight, {})
    return [state[name] for name in BUFFERS if isinstance(state.get(name), Tensor)]


@torch.no_grad()
def _zero(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Set each tensor to 0 where its mask is false.

    Multiplying the bit patterns as integers gives +0 (a float product would keep the sign, and NaN), and takes bools
    several times faster than the float product does.
    """
    bits = [tensor.detach().view(_INTEGERS[tensor.element_size()]) for tensor, _ in pairs]
    if bits:
        torch._foreach_mul_(bits, [mask for _, mask in pairs])
