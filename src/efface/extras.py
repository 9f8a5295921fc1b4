"""Import optional libraries where they are used, and name the extra that installs a missing one."""

from __future__ import annotations

import importlib
from types import ModuleType

from efface.errors import MissingExtraError


def need(module: str, *, extra: str, job: str) -> ModuleType:
    """Import ``module``, or say which ``extra`` of efface installs it and which ``job`` asked for it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{job} needs {package}, which is not installed", fix=f"Install it with: pip install 'efface[{extra}]'"
        ) from error
