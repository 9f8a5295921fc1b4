"""Kinds of edits that a plan is made of: one file each, and one table."""

from __future__ import annotations

from efface.core.ops.bypass import Bypass
from efface.core.ops.delta import Delta
from efface.core.ops.drop import Drop
from efface.core.ops.grow import Grow
from efface.core.ops.map import Map
from efface.core.ops.mask import Mask
from efface.core.ops.op import Op, Row, TensorOp, Undo, norm, tensor_at
from efface.core.ops.replace import Replace
from efface.core.ops.silence import Silence

__all__ = [
    "OPS",
    "Bypass",
    "Delta",
    "Drop",
    "Grow",
    "Map",
    "Mask",
    "Op",
    "Replace",
    "Row",
    "Silence",
    "TensorOp",
    "Undo",
    "norm",
    "tensor_at",
]

OPS: dict[str, type[Op]] = {op.kind: op for op in (Mask, Delta, Map, Grow, Drop, Bypass, Silence, Replace)}
"""Every kind of edit, by the name that it has in ``plan.json``."""
