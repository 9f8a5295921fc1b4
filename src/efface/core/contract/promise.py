"""What the checks of all kinds of methods share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from efface.core.catalogue import Entry
from efface.errors import EffaceError

SEED = 0


class ContractError(EffaceError):
    """A method breaks a promise; the message names the method, the check and what was found."""


def require(kept: bool, what: str, fix: str | None = None) -> None:
    """Raise :class:`ContractError` saying ``what`` was found unless the promise is kept."""
    if not kept:
        raise ContractError(what, fix=fix)


def small(found: Entry) -> Any:
    """Return the method with the hyper-parameters that its class names for tests."""
    cls = found.load()
    return cls(**cls.small)


def in_a_fresh_process(script: str, folder: Path) -> None:
    """Run a Python ``script`` in a new process, which finds ``folder`` and the number of threads in ``sys.argv``."""
    import torch

    child = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(torch.get_num_threads())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    require(child.returncode == 0, f"the fresh process failed: {child.stderr.strip()[-500:]}")
