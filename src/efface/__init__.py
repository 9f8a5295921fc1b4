"""Take out what should not be there: text out of pictures, weights out of networks, concepts out of generators."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efface.core.contract import check_method
    from efface.core.plan import Plan
    from efface.errors import EffaceError
    from efface.verbs.batch import clean_files
    from efface.verbs.bench import Bench, bench
    from efface.verbs.blocks import Exported, export_blocks
    from efface.verbs.check import check
    from efface.verbs.clean import Cleaned, clean
    from efface.verbs.convert import convert
    from efface.verbs.export import export
    from efface.verbs.find import describe, find, get
    from efface.verbs.fit import fit
    from efface.verbs.forget import Forgotten, forget
    from efface.verbs.inspect import Inspection, inspect
    from efface.verbs.rules import Rules
    from efface.verbs.sample import sample
    from efface.verbs.score import score
    from efface.verbs.score_erasure import score_erasure
    from efface.verbs.sensitivity import Sensitivity, sensitivity
    from efface.verbs.shrink import Shrunk, shrink

    __version__: str

__all__ = [
    "Bench",
    "Cleaned",
    "EffaceError",
    "Exported",
    "Forgotten",
    "Inspection",
    "Plan",
    "Rules",
    "Sensitivity",
    "Shrunk",
    "__version__",
    "bench",
    "check",
    "check_method",
    "clean",
    "clean_files",
    "convert",
    "describe",
    "export",
    "export_blocks",
    "find",
    "fit",
    "forget",
    "get",
    "inspect",
    "sample",
    "score",
    "score_erasure",
    "sensitivity",
    "shrink",
]

# Where each public name lives. Modules are imported when a name is first used, so that `import efface` costs nothing.
HOMES = {
    "Bench": "efface.verbs.bench",
    "Cleaned": "efface.verbs.clean",
    "EffaceError": "efface.errors",
    "Exported": "efface.verbs.blocks",
    "Forgotten": "efface.verbs.forget",
    "Inspection": "efface.verbs.inspect",
    "Plan": "efface.core.plan",
    "Rules": "efface.verbs.rules",
    "Sensitivity": "efface.verbs.sensitivity",
    "Shrunk": "efface.verbs.shrink",
    "bench": "efface.verbs.bench",
    "check": "efface.verbs.check",
    "check_method": "efface.core.contract",
    "clean": "efface.verbs.clean",
    "clean_files": "efface.verbs.batch",
    "convert": "efface.verbs.convert",
    "describe": "efface.verbs.find",
    "export": "efface.verbs.export",
    "export_blocks": "efface.verbs.blocks",
    "find": "efface.verbs.find",
    "fit": "efface.verbs.fit",
    "forget": "efface.verbs.forget",
    "get": "efface.verbs.find",
    "inspect": "efface.verbs.inspect",
    "sample": "efface.verbs.sample",
    "score": "efface.verbs.score",
    "score_erasure": "efface.verbs.score_erasure",
    "sensitivity": "efface.verbs.sensitivity",
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
    return sorted(__all__)
