"""Read a recipe: everything that decides what a training does, in one TOML file.

A recipe names a ``method`` and holds three tables: ``[params]``, the method's hyper-parameters; ``[data]``, the source
of batches and its options; ``[train]``, the fields of :class:`Train`. It inherits from nothing, interpolates nothing.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface.core.method import check_param, param
from efface.errors import UnknownNameError, UsageError

OPTIMISER = ("optimizer", "lr", "betas", "nesterov", "weight_decay", "schedule", "warmup", "drops", "clip")
"""Fields of :class:`Train` that one phase of a training may override."""
FREE = ("workers", "checkpoint_minutes", "sample_every", "log_every", "compile", "store")
"""Fields of :class:`Train` that may change when a run is resumed: they do not touch what is learned."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """The ``[train]`` table: how a network is optimised, and what is written meanwhile."""

    steps: int = param(1000, "optimiser steps of the whole training", low=1)
    batch: int = param(8, "samples per batch, on each device", low=1)
    accumulate: int = param(1, "batches whose gradients are averaged into one step", low=1)
    seed: int = param(0, "seed of every random draw", low=0)
    dtype: str = param("float32", "number format of the arithmetic", choices=("float32", "bfloat16"))
    optimizer: str = param("adamw", "rule that moves the weights", choices=("adamw", "muon", "sgd"))
    lr: float = param(1e-3, "highest learning rate", low=0.0)
    betas: tuple[float, ...] = param(
        (0.9, 0.999), "decay rates of AdamW's averages; sgd takes the first, muon both for vectors", low=0.0, high=1.0
    )
    nesterov: bool = param(False, "let sgd look ahead along its momentum")
    weight_decay: float = param(0.0, "decay of matrices and kernels, decoupled in AdamW", low=0.0)
    schedule: str = param(
        "constant", "course of the learning rate", choices=("constant", "cosine", "onecycle", "steps")
    )
    warmup: float = param(0.0, "share of the steps over which the learning rate rises", low=0.0, high=1.0)
    drops: tuple[float, ...] = param(
        (0.5, 0.75), "shares of the steps after which the rate of schedule steps is a tenth", low=0.0, high=1.0
    )
    clip: float = param(0.0, "largest norm of the gradient; 0 leaves it as it is", low=0.0)
    ema: float = param(0.0, "decay of the running average of the weights; 0 keeps none", low=0.0, high=0.999999)
    compile: bool = param(False, "compile the network")
    init: str = param("", "weights folder to start from")
    workers: int = param(0, "processes that make batches; 0 makes them in the training process", low=0)
    checkpoint_minutes: float = param(10.0, "minutes between two states that can be resumed", low=0.0)
    sample_every: int = param(0, "steps between two sample sheets; 0 draws none", low=0)
    log_every: int = param(50, "steps between two lines of the log", low=1)
    store: str = param("float32", "number format of the final weights", choices=("float32", "float16", "bfloat16"))

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            check_param("train", f.name, getattr(self, f.name), f.default, f.metadata)
        if len(self.betas) != 2 or not all(isinstance(beta, int | float) for beta in self.betas):
            raise UsageError(f"{list(self.betas)} are not two numbers", where="train.betas")
        if self.nesterov and not (self.optimizer == "sgd" and self.betas[0] > 0):
            raise UsageError("needs sgd with momentum", where="train.nesterov", fix="Set optimizer and betas")

    def override(self, options: dict[str, Any]) -> Train:
        """Return these settings with a phase's ``options`` in place; only the optimiser's may differ."""
        return _replace(self, options, "optimiser option", OPTIMISER)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training, as data. ``data`` holds the source's name under ``source`` and its options beside it."""

    method: str
    params: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    train: Train = field(default_factory=Train)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: object = "recipe") -> Recipe:
        """Build a recipe from TOML or JSON values; wrong keys and types raise :class:`UsageError` with a suggestion."""
        for name in values:
            if name not in (known := [f.name for f in dataclasses.fields(cls)]):
                raise _at(where, UnknownNameError("part of a recipe", name, known))
        if not isinstance(values.get("method"), str):
            raise UsageError("names no method", where=where, fix='Begin it with: method = "deeperaser"')
        for table in ("params", "data", "train"):
            if not isinstance(values.get(table, {}), dict):
                raise UsageError(f"`{table}` is not a table", where=where, fix=f"Write [{table}] and its keys below")
        try:
            train = _replace(
                Train(), values.get("train", {}), "key of [train]", [f.name for f in dataclasses.fields(Train)]
            )
        except UsageError as error:
            raise _at(where, error) from None
        return cls(method=values["method"], params=values.get("params", {}), data=values.get("data", {}), train=train)

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-ready values; :meth:`from_dict` reads them back."""
        train = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self.train).items()}
        return {"method": self.method, "params": self.params, "data": self.data, "train": train}

    def portable(self) -> Recipe:
        """Return the recipe as it may be shown to others: the data's folder by its name alone."""
        folder = self.data.get("folder")
        return self if folder is None else dataclasses.replace(self, data=self.data | {"folder": Path(folder).name})

    def differences(self, other: Recipe) -> list[str]:
        """Return the dotted names of what ``other`` would learn differently from."""
        mine, theirs = _flat(self.portable().as_dict()), _flat(other.portable().as_dict())
        free = {f"train.{name}" for name in FREE}
        return sorted(k for k in {*mine, *theirs} - free if mine.get(k) != theirs.get(k))


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read the TOML recipe at ``path``, with ``changes`` such as ``"train.lr=3e-4"`` made to it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        close = Path("recipes", f"{path}.toml")
        fix = f"Did you mean {close}?" if close.is_file() else "Give the path of a TOML file"
        raise UsageError(f"this recipe cannot be read: {reason}", where=path, fix=fix) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not TOML: {error}", where=path) from error
    for change in changes:
        _set(values, change)
    return Recipe.from_dict(values, where=path)


def _set(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{change!r} sets nothing", where="--set", fix="Write it as train.lr=3e-4")
    *tables, name = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise UsageError(f"{table!r} is not a table", where=f"--set {change}")
    try:
        values[name] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[name] = text.strip()  # a word needs no quotes on the command line


def _replace(train: Train, values: dict[str, Any], kind: str, known: Sequence[str]) -> Train:
    for name in values:
        if name not in known:
            raise UnknownNameError(kind, name, known)
    typed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return dataclasses.replace(train, **typed)


def _at(where: object, error: UsageError) -> UsageError:
    place = f"{where}: {error.where}" if error.where else where
    return UsageError(error.what, where=place, fix=error.fix)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
