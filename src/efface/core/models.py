"""Open a model in the form its user has it, and write it back in that form.

A model is an object, a function that builds it, a folder of transformers or diffusers, a weights folder of efface, or a
bare checkpoint. Nothing is ever unpickled and no code of a checkpoint is run; a factory is the user's own code.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.core.hub import config_of, open_diffusers, open_transformers
from efface.core.run import versions
from efface.core.trained import load
from efface.errors import UsageError, WeightsError
from efface.io.folders import atomic_folder
from efface.io.mapped import INDEX, copy_checkpoint, mapped, shards
from efface.io.weights import CARD, WEIGHTS, check_shapes, load_card, refuse_pickle, save_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from efface.core.plan import Plan

FORMS = (
    "Give a folder of transformers or diffusers, a weights folder, a .safetensors file or its .index.json, "
    "or module:factory"
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

Edit = Callable[["nn.Module"], object]
"""Changes a model in place."""


@dataclass(frozen=True)
class Opened:
    """A model that was opened, and how it is written back."""

    model: nn.Module
    """In evaluation mode. That of a bare checkpoint cannot be run: it is a tree of names, whose tensors are read from
    the file when they are touched."""
    name: str
    form: str
    """``module``, ``factory``, ``weights``, ``transformers``, ``diffusers`` or ``safetensors``."""
    write: Callable[[Path, Edit], None]
    """Writes the model as an edit leaves it into an existing empty folder. Only of a bare checkpoint is a copy edited,
    on the disk; of every other form it is ``model`` itself."""
    path: Path | None = None
    """File or folder that it was opened from."""
    example: tuple[Any, ...] = ()
    """Positional inputs of ``forward``, where they are known."""
    plans: tuple[Plan, ...] = ()
    """Plans by which it came to the form of its weights, in order."""

    def save(self, folder: Path | str, edit: Edit = lambda model: None, *, overwrite: bool = False) -> None:
        """Write the model, as ``edit`` leaves it, into the new ``folder``: all of it or nothing.

        Raises :class:`OutputError` if the folder is there already; with ``overwrite`` only one of something else is.
        """
        with atomic_folder(folder, overwrite=overwrite) as new:
            self.write(new, edit)


def open_model(spec: nn.Module | str | Path, weights: str | Path | None = None, *, seed: int = 0) -> Opened:
    """Open ``spec``: a module, ``"module:factory"``, a folder, or a safetensors file or the index of its shards.

    A factory is called without arguments, with torch's generator at ``seed``; ``weights`` are then loaded into what it
    returns: a safetensors file, an index of shards, or a weights folder. What was shrunk before gets the form that the
    plan beside its weights gives it. No other form takes ``weights``.

    Raises
    ------
    UsageError
        If ``spec`` names nothing that can be opened; the message says what was looked for.
    WeightsError
        If weights are missing, damaged, pickled, or of another network.
    """
    import torch

    if isinstance(spec, torch.nn.Module):
        _no_weights(spec, weights)
        card = {"class": f"{type(spec).__module__}.{type(spec).__qualname__}"}
        return Opened(spec, type(spec).__name__.lower(), "module", _weights_writer(spec, card))
    if not isinstance(spec, str | Path):
        what = f"the model is given as {type(spec).__name__}"
        raise UsageError(what, where="model", fix=f"{FORMS}; in Python, also an nn.Module")
    path = Path(spec)
    if path.is_dir() or path.is_file():
        _no_weights(spec, weights)
        return _open_folder(path) if path.is_dir() else _open_checkpoint(path)
    if ":" in str(spec) and not isinstance(spec, Path):
        return _open_factory(str(spec), weights, seed)
    raise UsageError("there is no such file or folder, nor is it module:factory", where=spec, fix=FORMS)


def _open_folder(folder: Path) -> Opened:
    if (folder / "model_index.json").is_file():
        parts = sorted(p.parent.name for p in folder.glob("*/config.json"))
        fix = "Name one of its networks: " + ", ".join(str(folder / part) for part in parts)
        raise UsageError("is a pipeline of several networks", where=folder, fix=fix)
    config = config_of(folder)
    if (folder / CARD).is_file() and not config.keys() & {"_class_name", "architectures"}:
        return _open_weights(folder)
    for key, form, opener in (
        ("_class_name", "diffusers", open_diffusers),
        ("architectures", "transformers", open_transformers),
    ):
        if config.get(key):
            model, example, write = opener(folder, config)
            return Opened(model, folder.resolve().name, form, write, folder, example)
    indices, files = (sorted(folder.glob(f"*{end}")) for end in (INDEX, ".safetensors"))
    found = indices or files
    if len(found) == 1:
        return _open_checkpoint(found[0])
    if found:
        names = ", ".join(file.name for file in found[:4])
        raise UsageError(f"holds {len(found)} checkpoints: {names}", where=folder, fix="Name one of them")
    for file in sorted(folder.iterdir()):
        refuse_pickle(file)
    raise UsageError("holds no model: no config.json, card.json or .safetensors file", where=folder, fix=FORMS)


def _open_checkpoint(path: Path) -> Opened:
    from efface.parts.bare import tree

    refuse_pickle(path)
    if not (path.name.endswith(INDEX) or path.suffix == ".safetensors"):
        fix = f"efface convert reads {' '.join(PICKLES)}" if path.suffix in PICKLES else FORMS
        raise WeightsError(f"has a form that is not read: {path.suffix or 'no suffix'}", where=path, fix=fix)

    def write(folder: Path, edit: Edit) -> None:
        copy = copy_checkpoint(path, folder)
        tensors = mapped(shards(copy), write=True)
        model = tree(tensors)
        edit(model)
        for name, changed in model.state_dict().items():  # an edit may have put a new tensor in place of the file's
            if changed.data_ptr() != tensors[name].data_ptr():
                tensors[name].copy_(changed)

    name = path.name.removesuffix(INDEX).removesuffix(".safetensors")
    return Opened(tree(mapped(shards(path))), name, "safetensors", write, path)


def _open_weights(folder: Path) -> Opened:
    card = load_card(folder)
    if "method" not in card:
        fix = f"Name that, with --weights {folder}" if "factory" in card else "Name it, with --weights FOLDER"
        raise UsageError(f"are weights alone, of {card.get('factory', 'a module:factory')}", where=folder, fix=fix)
    net = load(weights=folder, device="cpu").net
    return Opened(net, folder.resolve().name, "weights", _weights_writer(net, card), folder)


def _open_factory(spec: str, weights: str | Path | None, seed: int) -> Opened:
    import torch

    factory = _find(spec)
    with torch.random.fork_rng(devices=[]), _told(spec, "calling it failed"):
        torch.manual_seed(seed)
        model = factory if isinstance(factory, torch.nn.Module) else factory()
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"gives a {type(model).__name__}, not an nn.Module", where=spec, fix="Return the network")
    plans = () if weights is None else _load(model, Path(weights))
    write = _weights_writer(model, {"factory": spec})
    path = None if weights is None else Path(weights)
    return Opened(model.eval(), spec.rpartition(":")[2].rpartition(".")[2], "factory", write, path, (), plans)


def _find(spec: str) -> Any:
    """Return what ``module:name`` names, looking in the current directory first."""
    module, _, name = spec.partition(":")
    if not module or not name:
        raise UsageError("is not module:factory", where=spec, fix="Write it as nets.small:build")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        with _told(spec, f"importing {module} failed"):
            found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            what = f"{module} imports {error.name}, which is not installed"
            raise UsageError(what, where=spec, fix="Install it beside efface") from error
        what = f"no module is called {error.name!r}, in {here} or among the installed packages"
        raise UsageError(what, where=spec, fix="Go to the folder that holds it, or install it") from error
    for part in name.split("."):
        if not hasattr(found, part):
            known = sorted(n for n, value in vars(found).items() if callable(value) and not n.startswith("_"))
            fix = f"It has: {', '.join(known[:12])}" if known else None
            raise UsageError(f"{found.__name__} has no {part!r}", where=spec, fix=fix)
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"is a {type(found).__name__}, not a function", where=spec, fix="Name what builds the network")
    return found


@contextlib.contextmanager
def _told(where: str, what: str) -> Iterator[None]:
    """Turn what the user's own code raises into a :class:`UsageError`, and let a missing module through."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        told = f"{what} with {type(error).__name__}: {error}"
        raise UsageError(told, where=where, fix="Try it in Python first") from error


def _load(model: nn.Module, path: Path) -> tuple[Plan, ...]:
    """Load a checkpoint or weights folder into ``model``; the other names of tied tensors may be missing in it.

    Returns the plans in the folder, by which the network was given the form of its weights.
    """
    plans: tuple[Plan, ...] = ()
    if path.is_dir():
        load_card(path)
        plans = _form(model, path)
        path = path / WEIGHTS
    tensors, state = mapped(shards(path)), model.state_dict(keep_vars=True)
    stored = {id(value): name for name, value in state.items() if name in tensors}
    tied = {name: stored[id(value)] for name, value in state.items() if name not in tensors and id(value) in stored}
    tensors |= {name: tensors[other] for name, other in tied.items()}
    check_shapes(tensors, {name: tuple(value.shape) for name, value in state.items()}, where=path)
    model.load_state_dict(tensors)
    return plans


def _form(model: nn.Module, folder: Path) -> tuple[Plan, ...]:
    """Give ``model`` the form of the weights in ``folder``, by the plans that lie there; return these."""
    from efface.core.ops import TensorOp
    from efface.core.plan import Plan
    from efface.core.planfile import FILES, PLAN
    from efface.core.trial import perform

    found = [*sorted(folder.glob(f"{PLAN}-*")), folder / PLAN]
    plans = tuple(Plan.load(place) for place in found if (place / FILES[1]).is_file())
    for plan in plans:
        perform([op for op in plan.ops if not isinstance(op, TensorOp)], model)  # values come with the weights
    return plans


def _weights_writer(model: nn.Module, card: Mapping[str, Any]) -> Callable[[Path, Edit], None]:
    """Return what writes ``model`` as a weights folder with ``card``."""

    def write(folder: Path, edit: Edit) -> None:
        edit(model)
        state: dict[str, Tensor] = model.state_dict()
        save_weights(folder, state, {**card, "versions": versions()})

    return write


def _no_weights(spec: object, weights: str | Path | None) -> None:
    if weights is not None:
        where = type(spec).__name__ if not isinstance(spec, str | Path) else spec
        raise UsageError("has weights of its own", where=where, fix="Give --weights with module:factory alone")
