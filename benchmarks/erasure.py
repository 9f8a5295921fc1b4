"""Measure what erasing costs on the exact shapes of Stable Diffusion 1.5, with random weights that are built here.

    python benchmarks/erasure.py [--threads 1] [--keep 1000] [--size 32] [-o FILE]

RECE edits all cross-attention in one map; beside it stands a straightforward implementation, which solves every layer
for every row, prompt by prompt, as the equations are written. It is timed on a few layers and prompts and counted up,
and both are compared in float64. Then twenty SPM-sized adapters are stacked on the denoiser and a step is timed with
and without. Times are of the processor. Ends with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from torch import Tensor

from efface.io.atomic import write_json
from efface.parts.concepts.attention import cross_attention
from efface.parts.concepts.lora import attached, hosts, new_adapters, stacked, to_kohya
from efface.parts.concepts.maps import CrossAttnEdit, derive, factor, gram

WIDTH, SLOTS, ROUNDS = 768, 77, 3
LAM, RIDGE = 2e-4, 1e-2
LAYERS, PROMPTS = 4, 8  # of the straightforward implementation, counted up to all
BOUNDS: dict[str, tuple[str, float]] = {
    "RECE, s": ("at most", 3.0),
    "RECE, times less than layer by layer": ("at least", 20.0),
    "shared map and layers differ by at most": ("at most", 1e-8),
    "SPM file, MB": ("at most", 1.8),
    "20 adapters, share of a step": ("at most", 0.10),
    "untouched layers that changed": ("at most", 0),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=int, default=1000, help="prompts to keep")
    parser.add_argument("--size", type=int, default=32, help="height and width of the latents that a step is timed on")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(cross_attention_dim=WIDTH).eval().requires_grad_(False)
    figures: dict[str, float] = {"threads": given.threads, "keep": given.keep, "size": given.size}
    for job in (closed_form, agreement, adapters):
        for name, value in job(net, given).items():
            bound = " ".join(map(str, BOUNDS.get(name, ())))
            print(f"{name:45s} {value:12.4g}  {bound}", flush=True)
            figures[name] = value
    if given.out:
        write_json(given.out, figures, overwrite=True)
    missed = [
        figures[name] > value if word == "at most" else figures[name] < value for name, (word, value) in BOUNDS.items()
    ]
    return int(any(missed))


def encoded(prompts: int, seed: int) -> Tensor:
    """Return (prompts, slots, width) that look like CLIP's: one start for all, ends that are alike, unit variance."""
    generator = torch.Generator().manual_seed(seed)
    start, common = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    rows = common + 0.5 * torch.randn(prompts, SLOTS, WIDTH, generator=generator)
    rows[:, 0] = 28 * start / start.norm()
    return rows


def rece(weights: list[Tensor], concept: Tensor, guide: Tensor, keep: Tensor) -> Tensor:
    """Return the map of ``ROUNDS`` rounds."""
    gram0, width = gram(weights), keep.shape[-1]
    kept = gram([keep.flatten(0, -2)])
    edit = torch.eye(width, dtype=torch.float64)
    rows = concept
    for _ in range(ROUNDS + 1):
        step = CrossAttnEdit(width).replace(rows, guide.to(rows.dtype))
        step.gram += kept / keep[..., 0].numel()
        edit = edit @ step.solve(RIDGE)
        rows = derive(gram0, edit, concept, LAM)
    return edit


def first_solve(weight: Tensor, concept: Tensor, guide: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sides of one layer's normal equations, summed prompt by prompt, as they are written."""
    left, right = torch.zeros_like(weight), torch.zeros(weight.shape[1], weight.shape[1], dtype=weight.dtype)
    groups = [(concept[None], guide[None]), (keep, keep)]
    for old, new in groups:
        for c, g in zip(old, new, strict=True):
            values = g @ weight.T
            left += values.T @ c / old[..., 0].numel()
            right += c.T @ c / old[..., 0].numel()
    return left, right


def plain_rece(weights: list[Tensor], concept: Tensor, guide: Tensor, keep: Tensor) -> list[Tensor]:
    """Return the layers after as many rounds, each solved by itself for every row of every prompt."""
    width, edited = keep.shape[-1], weights
    eye = torch.eye(width, dtype=weights[0].dtype)
    rows = concept
    for _ in range(ROUNDS + 1):
        after = []
        for weight in edited:
            left, right = first_solve(weight, rows, guide, keep)
            pull = RIDGE * right.trace() / width
            after.append((left + pull * weight) @ torch.linalg.inv(right + pull * eye))
        edited = after
        own = sum(w.T @ w for w in edited)
        lam = LAM * sum(w.square().sum() for w in weights) / width
        crossed = sum(w.T @ w0 for w, w0 in zip(edited, weights, strict=True))
        rows = concept @ torch.linalg.solve(own + lam * eye, crossed).T
    return edited


def closed_form(net: Any, given: argparse.Namespace) -> dict[str, float]:
    """Time both on the shapes of Stable Diffusion 1.5; the plain one on a part, which is counted up linearly."""
    layers = cross_attention(net)
    weights = [layer.weight for layer in layers.values()]
    concept, guide = encoded(2, 1)
    keep = encoded(given.keep, 2)
    ours = seconds(lambda: factor(rece(weights, concept, guide, keep)), given.repeat)
    some, few = weights[:LAYERS], keep[:PROMPTS]

    def solve(prompts: Tensor) -> float:
        return seconds(lambda: [first_solve(w, concept, guide, prompts) for w in some], given.repeat)

    each = (solve(few) - solve(few[:1])) / (len(some) * (len(few) - 1))  # of one prompt in one layer
    counted = each * given.keep * sum(w.shape[0] + WIDTH for w in weights) / (some[0].shape[0] + WIDTH) * (ROUNDS + 1)
    return {
        "layers": len(layers),
        "RECE, s": ours,
        "layer by layer, s (counted up)": counted,
        "RECE, times less than layer by layer": counted / ours,
    }


def agreement(net: Any, given: argparse.Namespace) -> dict[str, float]:
    """Compare both in float64, on some of the layers and prompts."""
    weights = [layer.weight.double() for layer in list(cross_attention(net).values())[:LAYERS]]
    concept, guide = encoded(2, 1).double()
    keep = encoded(PROMPTS, 2).double()
    edit = rece(weights, concept, guide, keep)
    plain = plain_rece(weights, concept, guide, keep)
    away = max(float((w @ edit - own).abs().max()) for w, own in zip(weights, plain, strict=True))
    return {"shared map and layers differ by at most": away}


def adapters(net: Any, given: argparse.Namespace) -> dict[str, float]:
    """Weigh a file of rank 1 for every layer of the transformers, and time a step with twenty of them."""
    found = hosts(net)
    sets = [new_adapters(found, 1, torch.Generator().manual_seed(i)) for i in range(20)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "spm.safetensors")
        save_file(to_kohya({f"unet.{name}": own.factors() for name, own in sets[0].items()}), path)
        size = path.stat().st_size / 1e6
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stack = stacked(sets, [0.7] * len(sets))
    x, text = torch.randn(2, 4, given.size, given.size), encoded(2, 3)
    times: dict[str, list[float]] = {"plain": [], "stacked": []}
    with torch.no_grad():
        net(x, 500, text)
        for _ in range(given.repeat):
            times["plain"].append(seconds(lambda: net(x, 500, text), 1))
            with attached(net, stack):
                times["stacked"].append(seconds(lambda: net(x, 500, text), 1))
    plain, loaded = (min(each) for each in times.values())
    changed = sum(not torch.equal(value, before[name]) for name, value in net.state_dict().items())
    return {
        "SPM file, MB": size,
        "a step, s": plain,
        "20 adapters, share of a step": loaded / plain - 1,
        "untouched layers that changed": changed,
    }


def seconds(work: Callable[[], Any], repeat: int) -> float:
    """Return the median time of the processor that ``work`` takes."""
    taken = []
    for _ in range(repeat):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    sys.exit(main())
