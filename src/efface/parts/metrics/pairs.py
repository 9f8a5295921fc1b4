"""Find what belongs together: outputs and their truths, masks and inputs, by name or by order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efface.errors import InputError, UsageError
from efface.io.images import SUFFIXES
from efface.io.leftovers import is_left
from efface.parts.metrics.pixels import Pixels

Source = str | os.PathLike[str] | Sequence[Pixels]
"""A folder, a single file, or a list of arrays."""
Item = Path | Pixels
_LISTED = 20


@dataclass(frozen=True)
class Files:
    """An output and what belongs to it, not yet read."""

    name: str
    output: Item
    truth: Item | None
    mask: Item | None
    source: Item | None


def matched(outputs: Source, *, truth: Source | None, masks: Source | None, inputs: Source | None) -> list[Files]:
    """Find the truth, mask and input of each output, in the order of the outputs.

    Files match by their path in the folder without the ending, where ``photo_clean`` belongs to ``photo``; a single
    file belongs to a single file whatever they are called; arrays match by order. Raises :class:`InputError` with the
    names of all that has no partner, or more than one.
    """
    found, single = _gather(outputs, "outputs"), _is_file(outputs)
    others = {"truth": truth, "masks": masks, "inputs": inputs}
    columns = [_partners(list(found), single, source, role) for role, source in others.items()]
    return [Files(name, item, *belonging) for (name, item), *belonging in zip(found.items(), *columns, strict=True)]


def _gather(source: Source, role: str) -> dict[str, Item]:
    """Return the pictures of a source by name, in order, without what runs leave beside them."""
    if isinstance(source, np.ndarray):
        raise UsageError("a single array is not a list of pictures", where=role, fix="Give [array]")
    if not isinstance(source, str | os.PathLike):
        if not len(source):
            raise InputError("the list holds no picture", where=role)
        return {str(i): np.asarray(pixels) for i, pixels in enumerate(source)}
    path = Path(source)
    if path.is_file():
        return {path.stem: path}
    if not path.is_dir():
        raise InputError("there is no such file or folder", where=path, fix=f"Check the path of the {role}")
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES and not is_left(p))
    names = [p.relative_to(path).with_suffix("").as_posix() for p in files]
    if not files:
        raise InputError("the folder holds no picture", where=path, fix=f"Check the path of the {role}")
    if twice := _repeated(names):
        raise InputError(f"several files have one name: {_listed(twice)}", where=path, fix="Keep one of each")
    return dict(zip(names, files, strict=True))


def _partners(outputs: list[str], single: bool, source: Source | None, role: str) -> list[Item | None]:
    """Return what of ``source`` belongs to each output, or raise with the names that have no partner."""
    if source is None:
        return [None] * len(outputs)
    found = _gather(source, role)
    if single and _is_file(source):
        return list(found.values())
    partner = {name: name if name in found else name.removesuffix("_clean") for name in outputs}
    missing = [name for name, other in partner.items() if other not in found]
    unused = [] if single else [other for other in found if other not in partner.values()]
    problems = {
        f"outputs without {role}": missing,
        f"{role} without output": unused,
        f"{role} of several outputs": _repeated(partner.values()),
    }
    if any(problems.values()):
        what = "; ".join(f"{problem}: {_listed(names)}" for problem, names in problems.items() if names)
        raise InputError(what, where=role, fix="Give each output one partner of its name; a_clean belongs to a")
    return [found[other] for other in partner.values()]


def _is_file(source: Source) -> bool:
    return isinstance(source, str | os.PathLike) and Path(source).is_file()


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
