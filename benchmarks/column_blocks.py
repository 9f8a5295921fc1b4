"""Time layers in column blocks beside the dense ones: ``python benchmarks/column_blocks.py [--threads 2] [-o FILE]``.

Weights and patterns are random; a layer and its forms take turns, and the form that ``choose`` would keep is reported,
the dense layer (1.00) included. In turns, each finds its weights out of the nearest caches, as in a network; after the
slash stand the same two called over and over, each alone in bursts that alternate, as layers are often timed.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from statistics import median

import torch
from torch import nn

from efface.io.atomic import write_json
from efface.parts.sparsity.blocks import choose
from efface.parts.sparsity.project import BLOCK, columns_near, project
from efface.parts.timing import interleave

SPARSITIES = (0.5, 0.75, 0.9)
LINEAR = ((1024, 1024, 1), (1024, 1024, 64), (1024, 4096, 64), (2048, 2048, 256))
"""Inputs, outputs, batch."""
PRINTED = ("", ", alone", ", form")
CONV = (
    (256, 1024, 1, 14),
    (1024, 256, 1, 14),
    (512, 2048, 1, 7),
    (128, 128, 3, 28),
    (256, 256, 3, 14),
    (512, 512, 3, 7),
)
"""Inputs, outputs, kernel and side of the map: layers of ResNet-50, at batch 1."""


def cases(dtype: torch.dtype) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    made: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    for inputs, outputs, batch in LINEAR:
        made[f"linear {inputs} to {outputs}, batch {batch}"] = nn.Linear(inputs, outputs), torch.randn(batch, inputs)
    for inputs, outputs, kernel, side in CONV:
        layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        for layout in (torch.contiguous_format, torch.channels_last):
            name = f"conv {kernel}x{kernel} {inputs} to {outputs} at {side}, {str(layout).removeprefix('torch.')}"
            x = torch.randn(1, inputs, side, side).contiguous(memory_format=layout)
            made[name] = layer.to(memory_format=layout), x  # type: ignore[call-overload]
    return {name: (layer.to(dtype).eval(), x.to(dtype)) for name, (layer, x) in made.items()}


def alone(layer: nn.Module, module: nn.Module, x: torch.Tensor, rounds: int = 9) -> float:
    """Return how many times as quick ``module`` is, each called over and over, in bursts: median of ``rounds``."""
    calls = [lambda one=one: one(x) for one in (layer, module)]
    with torch.inference_mode():
        bursts = [[interleave({"": call}, seconds=0.05)[""].low for call in calls] for _ in range(rounds)]
    return median(dense / own for dense, own in bursts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each layer and sparsity")
    parser.add_argument("--block", type=int, default=BLOCK, help="most rows of a block")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows = figures[str(dtype).removeprefix("torch.")] = {}
        print(f"{dtype}, {given.threads} threads, speed-up at sparsity {', '.join(map(str, SPARSITIES))}")
        for name, (layer, x) in cases(dtype).items():
            rows[name] = {}
            for sparsity in SPARSITIES:
                scores = layer.weight.detach().float().square()  # type: ignore[operator, union-attr]
                kept = columns_near(scores.shape[1], 1 - sparsity)
                choice = choose(layer, x, project(scores, kept, given.block), seconds=given.seconds)
                rows[name] |= {f"{sparsity}": choice.speedup, "dense, ms": 1e3 * choice.timings["dense"].low}
                rows[name][f"{sparsity}, form"] = choice.form  # type: ignore[assignment]
                rows[name][f"{sparsity}, alone"] = alone(layer, choice.module or layer, x)
            told = "  ".join(
                "{:5.2f}/{:.2f} {:7}".format(*(rows[name][f"{s}{of}"] for of in PRINTED)) for s in SPARSITIES
            )
            print(f"  {name:50} {rows[name]['dense, ms']:8.2f} ms  {told}", flush=True)
    if given.out:
        facts = {"threads": given.threads, "block": given.block, "torch": torch.__version__, "cpu": platform.machine()}
        write_json(given.out, {**facts, "speed-ups": figures}, overwrite=True)


if __name__ == "__main__":
    main()
