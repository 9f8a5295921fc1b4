"""Write a plan as ``plan.json`` and ``plan.safetensors``, and read it with suspicion."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from efface.core.fingerprint import Fingerprint
from efface.core.ops import OPS, Op
from efface.errors import PlanError, UsageError
from efface.io.weights import load_card, load_weights, save_weights

if TYPE_CHECKING:
    from efface.core.plan import Plan

FORMAT = 1
"""Version of the form; a reader refuses those above its own."""
PLAN = "plan"
"""Name of the folder of a plan within that of the model that it was made on."""
FILES = ("plan.safetensors", "plan.json")


def save(plan: Plan, folder: Path | str, *, overwrite: bool = False) -> None:
    """Write ``plan`` into ``folder``: the tensors, then ``plan.json``, whose presence means that all is there."""
    tensors = {f"{number}.{name}": t for number, op in enumerate(plan.ops) for name, t in op.tensors().items()}
    content = {
        "format": FORMAT,
        "made_by": plan.made_by,
        "ops": [{"op": op.kind, "target": op.target, **op.values()} for op in plan.ops],
        "base": plan.base.as_dict(),
        "after": plan.after.as_dict(),
    }
    try:
        content["sha256"] = _sha256(content)
    except (TypeError, ValueError) as error:
        fix = "Give JSON values to Plan.of"
        raise PlanError(f"what the plan says of itself is not JSON ({error})", where=plan.name, fix=fix) from error
    save_weights(folder, tensors, content, overwrite=overwrite, files=FILES)


def load(folder: Path | str) -> Plan:
    """Read the plan in ``folder``, or in the folder ``plan`` within it, which ``efface shrink`` writes."""
    from efface.core.plan import Plan

    folder = Path(folder)
    if not folder.exists():
        raise UsageError("there is no such folder", where=folder, fix="Give the folder of a plan")
    if folder.name == FILES[1]:
        folder = folder.parent
    elif (folder / PLAN / FILES[1]).is_file():
        folder = folder / PLAN
    where, content = folder / FILES[1], load_card(folder, FILES[1])
    form = content.get("format")
    if isinstance(form, int) and form > FORMAT:
        fix = "Install a newer version of efface"
        raise PlanError(f"the plan has form {form}, and this version reads up to {FORMAT}", where=where, fix=fix)
    tensors, content = load_weights(folder, files=FILES)
    content.pop("files")
    try:
        if content.pop("sha256") != _sha256(content):
            raise ValueError("its content is not what was saved")
        ops = _ops(content["ops"], tensors)
        base, after = (Fingerprint.from_dict(content[name]) for name in ("base", "after"))
        return Plan(ops, base, after, dict(content["made_by"]))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise PlanError(f"the plan is damaged ({error})", where=where, fix="Save or download it again") from error


def _ops(stored: list[dict[str, Any]], tensors: dict[str, Tensor]) -> tuple[Op, ...]:
    given: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        owner, _, name = key.partition(".")
        given[int(owner)][name] = tensor
    ops = []
    for number, values in enumerate(stored):
        if values["op"] not in OPS:
            raise ValueError(f"no edit is of the kind {values['op']!r}")
        ops.append(OPS[values["op"]].read(str(values["target"]), values, given.pop(number, {})))
    if given:
        raise ValueError("it holds tensors of edits that it does not list")
    return tuple(ops)


def _sha256(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
