"""Find methods, and read their cards and hyper-parameters from the syntax tree without importing them."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from efface.core.card import Card
from efface.errors import UnknownNameError, UsageError

SUBJECTS = ("pictures", "networks", "concepts", "generators", "judges", "retrieval")
KINDS = ("Network", "Editor", "Eraser")
"""Base classes by which a method is known: what it does."""
ENTRY_POINTS = "efface.methods"
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Param:
    """A hyper-parameter as the source states it."""

    name: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Entry:
    """One method of the catalogue, known without having been imported."""

    name: str
    """Name of its file, with hyphens for underscores."""
    subject: str
    module: str
    kind: str
    """``Network``, ``Editor`` or ``Eraser``."""
    class_name: str
    doc: str
    card: Card
    params: tuple[Param, ...]

    @property
    def stem(self) -> str:
        """Name of its file."""
        return self.module.rpartition(".")[2]

    def load(self) -> type[Any]:
        """Import the method's module and return its class."""
        return getattr(importlib.import_module(self.module), self.class_name)


@cache
def entries() -> dict[str, Entry]:
    """Return every method by name, in alphabetical order, those of other packages included."""
    found = {}
    for subject in SUBJECTS:
        for path in sorted((_ROOT / subject).glob("[!_]*.py")):
            entry = _read(path, subject, f"efface.{subject}.{path.stem}")
            found[entry.name] = entry
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        spec = importlib.util.find_spec(point.module)
        if spec is None or spec.origin is None:
            raise UsageError(f"entry point {point.name!r} names a module that is not there", where=point.module)
        entry = _read(Path(spec.origin), point.name, point.module)
        if entry.name in found:
            raise UsageError(
                f"two methods are called {entry.name!r}", where=f"{found[entry.name].module}, {point.module}"
            )
        found[entry.name] = entry
    return dict(sorted(found.items()))


def entry(name: str, among: dict[str, Entry] | None = None, *, what: str = "method") -> Entry:
    """Return the method called ``name``, of all or of those ``among`` which it must be, called ``what`` in errors.

    A misspelt or other one raises :class:`UnknownNameError` with suggestions.
    """
    known = entries() if among is None else among
    if found := known.get(name.replace("_", "-")):
        return found
    raise UnknownNameError(what, name, known)


def get(name: str) -> type[Any]:
    """Import the method called ``name``, and nothing else, and return its class."""
    return entry(name).load()


def _read(path: Path, subject: str, module: str) -> Entry:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        what, where = f"is not Python: {error.msg}", f"{path}:{error.lineno}"
        raise UsageError(what, where=where, fix="Correct the file") from error
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        kind = next((b.id for b in node.bases if isinstance(b, ast.Name) and b.id in KINDS), None)
        card = next((_assigned(s, "card") for s in node.body if _assigned(s, "card") is not None), None)
        if kind is None or card is None:
            continue
        return Entry(
            name=path.stem.replace("_", "-"),
            subject=subject,
            module=module,
            kind=kind,
            class_name=node.name,
            doc=ast.get_docstring(tree) or "",
            card=Card(**{k: _literal(v, path) for k, v in _keywords(card)}),
            params=tuple(p for s in node.body if (p := _param(s, path)) is not None),
        )
    raise UsageError("holds no class with a `card` that is a Network, an Editor or an Eraser", where=path)


def _assigned(statement: ast.stmt, name: str) -> ast.Call | None:
    if isinstance(statement, ast.Assign):
        targets, value = statement.targets, statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets, value = [statement.target], statement.value
    else:
        return None
    named = any(isinstance(t, ast.Name) and t.id == name for t in targets)
    return value if named and isinstance(value, ast.Call) else None


def _keywords(call: ast.Call) -> list[tuple[str, ast.expr]]:
    return [(k.arg, k.value) for k in call.keywords if k.arg is not None]


def _literal(node: ast.expr, path: Path) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise UsageError("a card and hyper-parameters hold literals only", where=f"{path}:{node.lineno}") from error


def _param(statement: ast.stmt, path: Path) -> Param | None:
    if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Call)):
        return None
    call, target = statement.value, statement.target
    if not (isinstance(target, ast.Name) and isinstance(call.func, ast.Name) and call.func.id == "param"):
        return None
    default, text = (_literal(a, path) for a in call.args)
    rules = {k: _literal(v, path) for k, v in _keywords(call)}
    if rules.get("choices") is not None:
        rules["choices"] = tuple(rules["choices"])
    return Param(name=target.id, default=default, help=text, **rules)
