"""What the checks of all kinds of methods share."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.core.catalogue import Entry
from efface.errors import EffaceError

if TYPE_CHECKING:
    from torch import nn

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


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return all that has to stay: weights, modes, what is frozen, gradients, hooks."""
    state: dict[str, Any] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)
        state[f"mode of {name}"], state[f"hooks of {name}"] = module.training, hooks
    for name, p in model.named_parameters():
        state[f"requires_grad of {name}"], state[f"gradient of {name}"] = p.requires_grad, copy.copy(p.grad)
    return state


def same(before: dict[str, Any], after: dict[str, Any], what: str) -> None:
    """Raise :class:`ContractError` unless both hold the same, bit by bit."""
    from efface.core.fingerprint import Imprint

    bits = [{k: Imprint.of(v) if hasattr(v, "dtype") else v for k, v in one.items()} for one in (before, after)]
    differs = [name for name in {**before, **after} if bits[0].get(name) != bits[1].get(name)]
    require(not differs, f"{what} {', '.join(differs[:3])}")


def chances() -> tuple[Any, ...]:
    """Return the states of the global random generators."""
    import numpy as np
    import torch

    return random.getstate(), torch.get_rng_state().tolist(), str(np.random.get_state())
