"""Tell which model a plan is for: names, shapes, number formats and the sha256 of every weight."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from efface.parts.sparsity.prunable import tied

_FORM = re.compile(r"(\w+)\[([\d,]*)\] ([0-9a-f]{64}|unknown)")
UNKNOWN = "unknown"
SHOWN = 3
"""Differences named in a message."""


class Imprint(NamedTuple):
    """One tensor: ``float32``, its shape, and the sha256 of its bytes (``unknown`` on the device ``meta``)."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @classmethod
    def of(cls, tensor: Tensor) -> Imprint:
        """Take the imprint of ``tensor``, the same on every device and in every memory format."""
        digest = UNKNOWN
        if not tensor.is_meta:
            flat = tensor.detach().cpu().contiguous().view(-1)
            digest = hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), digest)

    @classmethod
    def read(cls, text: str) -> Imprint:
        """Make an imprint of its text, ``float32[3,4] 0af3…``; raise ValueError for any other."""
        if (match := _FORM.fullmatch(text)) is None:
            raise ValueError(f"{text!r} does not describe a tensor")
        return cls(match[1], tuple(int(n) for n in match[2].split(",") if n), match[3])

    def __str__(self) -> str:
        return f"{self.form} {self.sha256}"

    @property
    def form(self) -> str:
        """Number format and shape."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    def same_weights(self, other: Imprint) -> bool:
        """Say whether the bytes are equal, as far as both are known."""
        return self.sha256 == other.sha256 or UNKNOWN in (self.sha256, other.sha256)


@dataclass(frozen=True)
class Fingerprint:
    """Parameters and saved buffers of a model; a tied parameter is under its first name, the others in ``tied``."""

    tensors: dict[str, Imprint]
    tied: dict[str, str]
    whole: bool = True
    """Whether all tensors of the model are here; otherwise it says nothing of the others."""

    def __repr__(self) -> str:
        return f"Fingerprint({len(self.tensors)} tensors, {self.sha256[:12]})"

    @classmethod
    def of(cls, model: nn.Module, within: Iterable[str] | None = None) -> Fingerprint:
        """Take the fingerprint of ``model``; large weights take about a second a gigabyte.

        ``within`` names tensors and modules, and then only theirs are looked at.
        """
        others = tied(model)
        if within is None:
            tensors = {name: Imprint.of(tensor) for name, tensor in saved_tensors(model) if name not in others}
            return cls(tensors, others)
        wanted = _first_names(model, others, tuple(within))
        tensors = {name: Imprint.of(tensor) for name, tensor in saved_tensors(model) if name in wanted}
        return cls(tensors, {name: first for name, first in others.items() if first in wanted}, whole=False)

    def again(self, model: nn.Module) -> Fingerprint:
        """Take the fingerprint of ``model`` as this one was taken: of all of it, or of the same tensors."""
        return Fingerprint.of(model, None if self.whole else self.tensors)

    def with_tensors(self, changed: Mapping[str, Imprint]) -> Fingerprint:
        """Return the fingerprint with some tensors as they are in ``changed``."""
        return Fingerprint(
            {name: changed.get(name, known) for name, known in self.tensors.items()}, self.tied, self.whole
        )

    @property
    def known(self) -> bool:
        """Whether the content of every tensor is known."""
        return all(imprint.sha256 != UNKNOWN for imprint in self.tensors.values())

    @property
    def sha256(self) -> str:
        """One figure for the whole model."""
        lines = [f"{name} {imprint}" for name, imprint in self.tensors.items()]
        lines += [f"{name} = {first}" for name, first in self.tied.items()]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

    def misfits(self, found: Fingerprint) -> list[str]:
        """Say in words where ``found`` is another model: names, shapes, number formats, tied parameters."""
        ours, theirs = self.tensors, found.tensors
        changed = [
            f"{n} {theirs[n].form} instead of {ours[n].form}"
            for n in ours
            if n in theirs and theirs[n].form != ours[n].form
        ]
        known, there = {**ours, **self.tied}, {**theirs, **found.tied}
        return [
            *_first("missing", [n for n in known if n not in there]),
            *_first("unexpected", [n for n in there if n not in known]),
            *_first("of another form", changed),
            *_first("tied in another way", [n for n in known if n in there and self.tied.get(n) != found.tied.get(n)]),
        ]

    def other_weights(self, found: Fingerprint) -> list[str]:
        """Say in words which tensors hold other weights in ``found``, a model of the same form."""
        other = [n for n, imprint in self.tensors.items() if not imprint.same_weights(found.tensors[n])]
        return _first("with other weights", other)

    def differences(self, found: Fingerprint) -> list[str]:
        """Say in words where ``found`` differs, in form or else in weights."""
        return self.misfits(found) or self.other_weights(found)

    def touched(self, after: Fingerprint) -> set[str]:
        """Return the names of what is not the same ``after`` an edit, all names of tied parameters included."""
        changed = {n for n in {**self.tensors, **after.tensors} if self.tensors.get(n) != after.tensors.get(n)}
        changed |= {n for n in {**self.tied, **after.tied} if self.tied.get(n) != after.tied.get(n)}
        return changed | {n for one in (self, after) for n, first in one.tied.items() if first in changed}

    def patched(self, before: Fingerprint, after: Fingerprint) -> Fingerprint:
        """Return the fingerprint with what differs between ``before`` and ``after`` as it is after."""
        tensors, tied = (
            _patched(self.tensors, before.tensors, after.tensors),
            _patched(self.tied, before.tied, after.tied),
        )
        return Fingerprint(tensors, tied, self.whole)

    def conflicts(self, other: Fingerprint) -> list[str]:
        """Return the names of the tensors that both know, and know differently."""
        return [name for name, imprint in self.tensors.items() if other.tensors.get(name, imprint) != imprint]

    def joined(self, other: Fingerprint) -> Fingerprint:
        """Return a fingerprint of all that either knows; ``other`` has the last word."""
        tensors, tied = {**self.tensors, **other.tensors}, {**self.tied, **other.tied}
        return Fingerprint(tensors, tied, self.whole or other.whole)

    def as_dict(self) -> dict[str, Any]:
        """Return the fingerprint as JSON-ready values."""
        tensors = {name: str(imprint) for name, imprint in self.tensors.items()}
        return {"sha256": self.sha256, "whole": self.whole, "tied": self.tied, "tensors": tensors}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make a fingerprint of JSON-ready values; raise ValueError, KeyError, TypeError or the like for others."""
        tensors = {name: Imprint.read(text) for name, text in values["tensors"].items()}
        tied = {str(name): str(first) for name, first in values["tied"].items()}
        return cls(tensors, tied, bool(values.get("whole", True)))


def saved_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every name and tensor of the parameters and of the buffers that are saved, tied ones several times."""
    yield from model.named_parameters(remove_duplicate=False)
    for path, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield (f"{path}.{name}" if path else name), buffer


def _first_names(model: nn.Module, others: dict[str, str], within: tuple[str, ...]) -> set[str]:
    """Return the first names of the tensors that are one of ``within`` or lie in it."""
    inside = {*within}, tuple(f"{name}." for name in within)
    names = (name for name, _ in saved_tensors(model))
    return {others.get(name, name) for name in names if name in inside[0] or name.startswith(inside[1])}


def _first(what: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {what}: {', '.join(names[:SHOWN])}"] if names else []


def _patched(start: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in start.items() if name in after or name not in before}
    return kept | {name: value for name, value in after.items() if before.get(name) != value}
