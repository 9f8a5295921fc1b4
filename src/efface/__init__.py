"""Take out what should not be there: text out of pictures, weights out of networks, concepts out of generators."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efface.core.contract import check_method
    from efface.core.plan import Plan
    from efface.errors import EffaceError
    from efface.verbs.batch import clean_files
    from efface.verbs.check import check
    from efface.verbs.clean import Cleaned, clean
    from efface.verbs.convert import convert
    from efface.verbs.find import describe, find, get
    from efface.verbs.fit import fit
    from efface.verbs.rules import Rules
    from efface.verbs.score import score
    from efface.verbs.shrink import Shrunk, shrink

    __version__: str

__all__ = [
    "Cleaned",
    "EffaceError",
    "Plan",
    "Rules",
    "Shrunk",
    "__version__",
    "check",
    "check_method",
    "clean",
    "clean_files",
    "convert",
    "describe",
    "find",
    "fit",
    "get",
    "score",
    "shrink",
]

# Where each public name lives. Modules are imported when a name is first used, so that `import efface` costs nothing.
HOMES = {
    "Cleaned": "efface.verbs.clean",
    "EffaceError": "efface.errors",
    "Plan": "efface.core.plan",
    "Rules": "efface.verbs.rules",
    "Shrunk": "efface.verbs.shrink",
    "check": "efface.verbs.check",
    "check_method": "efface.core.contract",
    "clean": "efface.verbs.clean",
    "clean_files": "efface.verbs.batch",
    "convert": "efface.verbs.convert",
    "describe": "efface.verbs.find",
    "find": "efface.verbs.find",
    "fit": "efface.verbs.fit",
    "get": "efface.verbs.find",
    "score": "efface.verbs.score",
    "shrink": "efface.verbs.shrink",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("efface")
    elif name in HOMES:
        value = getattr(importlib.import_module(HOMES[name]), name)
    else:
        raise AttributeError(f"module 'efface' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
