"""Count what a model costs before and after a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from efface.core.ops import TensorOp
from efface.core.plan import Plan
from efface.core.trial import trial
from efface.parts.counting import CONVENTION, bitmask_bytes, count_flops, count_parameters, dense_bytes

if TYPE_CHECKING:
    from rich.table import Table

THEORY = "FLOPs after are theoretical: a weight of density d counts d times; zeros in a dense tensor save no time"
BYTES = "sparse: where smaller, one bit a weight and the values kept"


@dataclass(frozen=True)
class Cost:
    """What a model costs before and after a plan. FLOPs are None where no example was given."""

    parameters: int
    kept: int
    """Parameters that are there afterwards and not held at zero."""
    flops: int | None
    flops_after: int | None
    dense: int
    """Bytes of the weights before, as they are saved."""
    dense_after: int
    """Bytes afterwards, zeros stored like other values."""
    sparse_after: int
    """Bytes afterwards, each masked tensor as one bit a weight and the values kept, where that is smaller."""
    convention: str = f"{CONVENTION}. {THEORY}. {BYTES}"

    def table(self) -> Table:
        """Return the figures as a table for the terminal, with the convention below."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=self.convention, caption_justify="left")
        for number, head in enumerate(("", "before", "after", "left")):
            table.add_column(head, justify="right" if number else "left")
        rows = [
            ("parameters", self.parameters, self.kept),
            ("FLOPs", self.flops, self.flops_after),
            ("bytes, dense", self.dense, self.dense_after),
            ("bytes, sparse", self.dense, self.sparse_after),
        ]
        for name, before, after in rows:
            if before is not None and after is not None:
                table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before:.1%}" if before else "")
        return table


def cost(plan: Plan, model: nn.Module, example: tuple[Any, ...] = ()) -> Cost:
    """Count ``model`` before and after ``plan``; it is edited for a moment, if at all, and then as it was."""
    parameters, dense = count_parameters(model).total, dense_bytes(model)
    flops = count_flops(model, *example) if example else None
    with trial([op for op in plan.ops if not isinstance(op, TensorOp)], model):  # values have no part in the counts
        weights = dict(model.named_parameters())
        masks = {name: mask for name, mask in plan.masks().items() if name in weights}
        dense_after = dense_bytes(model)
        kept = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
        saved = sum(
            max(0, weights[n].nbytes - bitmask_bytes(mask.numel(), kept[n], weights[n].element_size()))
            for n, mask in masks.items()
        )
        densities = {name: kept[name] / max(1, mask.numel()) for name, mask in masks.items()}
        return Cost(
            parameters=parameters,
            kept=count_parameters(model, masks).kept,
            flops=None if flops is None else flops.total,
            flops_after=count_flops(model, *example).kept(densities) if example else None,
            dense=dense,
            dense_after=dense_after,
            sparse_after=dense_after - saved,
        )
