"""Define what a method is: a frozen dataclass of hyper-parameters with a card, and nothing learned inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from efface.core.card import Card
from efface.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from efface.core.ops import Op
    from efface.core.plan import Plan


def param(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """Declare a hyper-parameter: its default, one line of help, and the bounds (inclusive) or choices it must keep.

    For a tuple, bounds and choices hold for each item.
    """
    return dataclasses.field(
        default=default,
        metadata={"help": help, "low": low, "high": high, "choices": None if choices is None else tuple(choices)},
    )


@dataclass(frozen=True, kw_only=True)
class Method:
    """A published method: keyword hyper-parameters, a ``card``, and no state."""

    card: ClassVar[Card]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_param(self.name, field.name, getattr(self, field.name), field.default, field.metadata)

    @property
    def name(self) -> str:
        """Name in the catalogue: the name of the file, with hyphens for underscores."""
        return _name(type(self))

    def params(self) -> dict[str, Any]:
        """Return the hyper-parameters as JSON-ready values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_params(cls, values: dict[str, Any]) -> Method:
        """Build the method from JSON or TOML values; unknown names are refused with a suggestion."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise UnknownNameError(f"hyper-parameter of {_name(cls)}", name, known)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _name(cls: type[Method]) -> str:
    return cls.__module__.rpartition(".")[2].replace("_", "-")


def check_param(method: str, name: str, value: Any, default: Any, rules: Any) -> None:
    """Raise :class:`UsageError` unless ``value`` has the type of ``default`` and keeps the ``rules`` of its field.

    The items of a tuple must have the type of the default's first one, and each of them keeps the rules.
    """
    where = f"{method}.{name}"
    several = isinstance(value, tuple)
    if default is not None:
        _check_type(where, value, type(default), rules)
        for item in value if several and default else ():
            _check_type(where, item, type(default[0]), rules)
    for item in value if several else (value,):
        if rules.get("choices") and item not in rules["choices"]:
            raise UsageError(f"{item!r} is not one of {', '.join(map(str, rules['choices']))}", where=where)
        if isinstance(item, int | float):
            low, high = rules.get("low"), rules.get("high")
            if item != item or (low is not None and item < low) or (high is not None and item > high):
                span = f"{'-inf' if low is None else low}, {'inf' if high is None else high}"
                raise UsageError(f"{item!r} is outside [{span}]", where=where, fix=rules.get("help"))


def _check_type(where: str, value: Any, kind: type, rules: Any) -> None:
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or isinstance(value, bool) != (kind is bool):
        fix = rules.get("help")
        if kind is tuple and isinstance(value, str | int | float):  # from a recipe or the command line
            fix = f"Write [{value!r}]: {fix}"
        raise UsageError(f"{value!r} is not {_a(kind)}", where=where, fix=fix)


def _a(kind: type) -> str:
    return {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}.get(
        kind.__name__, f"a {kind.__name__}"
    )


@dataclass(frozen=True)
class Step:
    """What a loss is told about where training stands. ``step`` counts from 0; ``seed`` is the run's."""

    step: int = 0
    total: int = 1
    seed: int = 0
    device: str = "cpu"

    def generator(self, name: str) -> torch.Generator:
        """Return the CPU generator of the draw ``name`` at this step."""
        from efface.seeds import torch_generator

        return torch_generator(self.seed, self.step, name)


Loss = Callable[["nn.Module", dict[str, Any], Step], "dict[str, Tensor]"]


@dataclass(frozen=True)
class Phase:
    """One optimiser of a training: which parameters it moves, by which loss, every how many steps.

    ``parameters`` and ``loss`` are given the network; ``loss`` returns named scalars, of which ``total`` is minimised
    and the rest is logged. ``options`` override the recipe's optimiser settings (``lr``, ``betas``, ...).
    """

    parameters: Callable[[nn.Module], Sequence[nn.Parameter]]
    loss: Loss
    every: int = 1
    updates: int = 1
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Network(Method):
    """A method that *is* a trained network: data in, data out."""

    trains_on: ClassVar[str] = "erase-text"
    """Name of the data source in :mod:`efface.parts.data` that makes its batches."""
    small: ClassVar[dict[str, Any]] = {}
    """Hyper-parameters of a network that trains a step in well under a second, for tests."""

    def build(self) -> nn.Module:
        """Build the untrained network. Initialisation draws from torch's current generator."""
        raise NotImplementedError

    def loss(self, net: nn.Module, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:
        """Return named scalar losses of one batch; ``total`` is what is minimised."""
        raise NotImplementedError

    def run(self, net: nn.Module, x: Tensor, **given: Any) -> Tensor:
        """Apply the trained network to ``x`` (b, 3, h, w) in [0, 1] and return the result in [0, 1]."""
        raise NotImplementedError

    def prepare(self, net: nn.Module, batch: dict[str, Any], step: Step) -> dict[str, Any]:
        """Change a batch just before the losses see it (adversarial data, policies). By default nothing."""
        return batch

    def phases(self) -> dict[str, Phase]:
        """Return the optimisers of the training, in the order in which they step."""
        return {"main": Phase(parameters=lambda net: list(net.parameters()), loss=self.loss)}

    def rename(self, key: str) -> str | None:
        """Map a key of an official checkpoint to this network's key; None drops it. Used by ``convert``."""
        return key


@dataclass(frozen=True)
class Work:
    """What an editor is told about the work at hand, beside the model and the data."""

    seed: int = 0
    device: str = "cpu"
    example: tuple[Any, ...] = ()
    """Positional inputs of the model's ``forward``, for what has to run it; empty where none are known."""
    progress: Callable[[str], None] = lambda line: None

    def generator(self, name: str) -> torch.Generator:
        """Return the CPU generator of the draw ``name``."""
        from efface.seeds import torch_generator

        return torch_generator(self.seed, name)


@dataclass(frozen=True, kw_only=True)
class Editor(Method):
    """A method that *changes* a given model."""

    needs: ClassVar[Literal["nothing", "task", "text"]] = "nothing"
    """``task``: it trains or scores on data, so ``data`` must be a task; ``text``: it runs a language model on text, so
    ``data`` must be a corpus; ``nothing``: weights are enough."""
    goes: ClassVar[str] = "sparsity"
    """Hyper-parameter that says which share goes, of what the method takes."""
    stays: ClassVar[str] = ""
    """The one that says which share stays, where a method has that instead."""
    small: ClassVar[dict[str, Any]] = {}
    """Hyper-parameters with which it edits a tiny model in a few seconds, for tests."""

    def plan(self, model: nn.Module, data: Any, work: Work) -> Plan:
        """Return the edits to make; the model itself stays untouched, bit by bit.

        ``data`` is a :class:`~efface.parts.data.tasks.Task`, a :class:`~efface.parts.data.language.Corpus`, or None.
        """
        raise NotImplementedError

    def made(self, model: nn.Module, ops: Iterable[Op], work: Work, **facts: Any) -> Plan:
        """Return the plan of ``ops`` on ``model``: it says by which method, hyper-parameters and seed it came about.

        ``facts`` are JSON values; those called ``notes`` are lines that users are shown.
        """
        from efface.core.plan import Plan

        return Plan.of(model, ops, method=self.name, params=self.params(), seed=work.seed, **facts)
