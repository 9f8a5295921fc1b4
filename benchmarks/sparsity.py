"""Measure what masks cost: in a training step, on disk, and to find by a global threshold.

    python benchmarks/sparsity.py [--threads 2] [--weights 1e8] [-o FILE]

Masking is timed beside a step of ResNet-20 at batch 128; the global top-k beside one ``torch.topk`` on a tenth of the
weights, and beside ``torch.nn.utils.prune.global_unstructured`` on ResNet-50. Memory is the peak of a process of its
own, above what it held before, and leaves out the masks that are the result (Linux). Ends with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured

from efface.io.atomic import write_json
from efface.parts.nn.resnets import resnet50, resnet_cifar
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.prunable import prunable
from efface.parts.sparsity.topk import keep_global
from efface.parts.timing import interleave

DENSITY = 0.1
LAYERS = 20
BOUNDS = {
    "masking SGD, share of a step": 0.03,
    "masking AdamW, share of a step": 0.03,
    "bits on disk for each weight": 1.01,
    "top-k, times torch.topk on a tenth": 2.5,
    "top-k, extra memory, share of the weights": 0.05,
    "ResNet-50, time, share of global_unstructured": 0.5,
    "ResNet-50, memory, share of global_unstructured": 0.5,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", type=float, default=1e8, help="weights of the large top-k")
    parser.add_argument("--seconds", type=float, default=10, help="time for the steps of each optimiser")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    figures: dict[str, float] = {"threads": given.threads, "weights": given.weights}
    for job in (masking, on_disk, large, against_torch):
        # A process for each, so that none profits from memory that another left.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found = process.submit(run, job, given).result()
        for name, value in found.items():
            bound = f"at most {BOUNDS[name]:g}" if name in BOUNDS else ""
            print(f"{name:50s} {value:12.4g}  {bound}", flush=True)
        figures |= found
    if given.out:
        write_json(given.out, figures, overwrite=True)
    return int(any(figures[name] > bound for name, bound in BOUNDS.items()))


def run(job: Callable[[argparse.Namespace], dict[str, float]], given: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    return job(given)


def masking(given: argparse.Namespace) -> dict[str, float]:
    """Time whole steps without masks, and steps of an optimiser that has masks and no gradients."""
    x, y = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    figures = {}
    for name, make in (
        ("SGD", lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)),
        ("AdamW", lambda p: torch.optim.AdamW(p, 1e-3)),
    ):
        net, masked = resnet_cifar(20), resnet_cifar(20)
        plain, held = make(net.parameters()), make(masked.parameters())

        def step(net: nn.Module = net, optimizer: torch.optim.Optimizer = plain) -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()

        step(masked, held)
        held.zero_grad()
        weights = prunable(masked)
        keep_global(weights, round(DENSITY * sum(w.numel() for w in weights.values())), key=torch.abs).attach(
            masked, held
        )
        times = interleave({"step": step, "masking": held.step}, seconds=given.seconds)
        figures[f"{name} step, ms"] = times["step"].seconds * 1e3
        figures[f"masking {name}, ms"] = times["masking"].seconds * 1e3
        figures[f"masking {name}, share of a step"] = times["masking"].seconds / times["step"].seconds
    return figures


def on_disk(given: argparse.Namespace) -> dict[str, float]:
    masks = MaskSet.ones_like(resnet50())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.safetensors"
        masks.save(path)
        return {"bits on disk for each weight": path.stat().st_size * 8 / masks.total}


def large(given: argparse.Namespace) -> dict[str, float]:
    size = round(given.weights / LAYERS)
    weights = {f"layer{i}": torch.randn(size) for i in range(LAYERS)}
    tenth = torch.cat([w[: size // 10] for w in weights.values()]).abs_()
    keep = round(DENSITY * size * LAYERS)

    def ours() -> MaskSet:
        return keep_global(weights, keep, key=torch.abs)

    keep_global({"small": torch.randn(1000)}, 100, key=torch.abs)  # loads what torch loads late
    extra = peak(ours) - size * LAYERS
    times = interleave({"topk": lambda: torch.topk(tenth, keep // 10), "ours": ours}, least=given.repeat)
    return {
        "torch.topk on a tenth, seconds": times["topk"].seconds,
        "top-k, seconds": times["ours"].seconds,
        "top-k, times torch.topk on a tenth": times["ours"].seconds / times["topk"].seconds,
        "top-k, extra MB": extra / 1e6,
        "top-k, extra memory, share of the weights": extra / (4 * size * LAYERS),
    }


def against_torch(given: argparse.Namespace) -> dict[str, float]:
    """Prune fresh networks by both in turns; each takes the weights of a plain network to a pruned one."""

    def ours(net: nn.Module) -> None:
        weights: dict[str, Tensor] = dict(prunable(net))
        keep_global(weights, round(DENSITY * sum(w.numel() for w in weights.values())), key=torch.abs).apply_(net)

    def torchs(net: nn.Module) -> None:
        layers = [(net.get_submodule(name.removesuffix(".weight")), "weight") for name in prunable(net)]
        global_unstructured(layers, L1Unstructured, amount=1 - DENSITY)

    seconds: dict[str, list[float]] = {"ours": [], "torch's": []}
    memory: dict[str, list[float]] = {"ours": [], "torch's": []}
    for _ in range(given.repeat):
        for name, prune in (("ours", ours), ("torch's", torchs)):
            net = resnet50()
            start = time.perf_counter()
            memory[name].append(peak(lambda prune=prune, net=net: prune(net)))
            seconds[name].append(time.perf_counter() - start)
            del net
    middle = {name: (statistics.median(seconds[name]), statistics.median(memory[name]) / 1e6) for name in seconds}
    (our_time, our_memory), (their_time, their_memory) = middle["ours"], middle["torch's"]
    return {
        "ResNet-50, seconds": our_time,
        "ResNet-50, global_unstructured, seconds": their_time,
        "ResNet-50, time, share of global_unstructured": our_time / their_time,
        "ResNet-50, extra MB with masks": our_memory,
        "ResNet-50, global_unstructured, extra MB with masks": their_memory,
        "ResNet-50, memory, share of global_unstructured": our_memory / their_memory,
    }


def peak(job: Callable[[], object]) -> float:
    """Return how many bytes the process grew by at the most while ``job`` ran."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is held now
    before = resident("VmRSS")
    result = job()
    grown = resident("VmHWM") - before
    del result
    return grown


def resident(mark: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(mark))


if __name__ == "__main__":
    sys.exit(main())
