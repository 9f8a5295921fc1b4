"""Draw accuracy against density for every method that takes weights out of networks, in one figure.

    python benchmarks/pruning.py [--data FOLDER] [--seeds 0,1,2] [--densities 0.3,0.1,0.03,0.01] [-o benchmarks/results]
    python benchmarks/pruning.py --redraw [-o benchmarks/results]

Six convolutions on 16x16 pictures. Every sparse network is trained for the same number of steps as the dense one; what
a method trains besides (a dense network, earlier levels) is counted in the table. Methods that search without training
weights search for as many steps. random-search takes nodes: so many of each layer that about as many weights are left.
Writes pruning.json and pruning.png.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import efface
from efface.app.options import parse_numbers
from efface.core.method import Work
from efface.io.atomic import atomic_write, write_json
from efface.parts.data.tasks import Task, task
from efface.parts.nn.classifiers import convnet
from efface.parts.sparsity.prunable import prunable
from efface.seeds import derive
from efface.training.recipe import Train
from efface.training.tuning import tune

STEPS, BATCH, LR = 600, 64, 2e-3
TRAINED: dict[str, Any] = {"steps": STEPS, "batch": BATCH, "optimizer": "adamw", "lr": LR, "weight_decay": 0.0}
COSINE = TRAINED | {"schedule": "cosine", "warmup": 0.0}
LEVELS = COSINE | {"rate": 0.7, "deliver": "trained"}
METHODS: dict[str, tuple[bool, dict[str, Any]]] = {
    "global-mp": (True, TRAINED | {"momentum": 0.9, "label_smoothing": 0.0}),
    "lottery-jackpots": (True, {"steps": STEPS, "batch": BATCH, "spare_last": False}),
    "random-pruning": (False, TRAINED | {"rule": "erk"}),
    "granet": (False, COSINE | {"init_density": 0.5, "every": 15, "stop": 0.6}),
    "lth": (False, LEVELS),
    "lth-rewind": (False, LEVELS | {"rewind": "5%"}),
    "ap": (False, LEVELS),
    "random-search": (
        False,
        {"steps": STEPS, "batch": BATCH, "lr": LR, "budget": 50, "score_batch": 256, "chunk": 8},
    ),
}
"""Whether a method begins with a trained network, and its hyper-parameters."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of labelled pictures; made-up ones without it")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--densities", default="0.3,0.1,0.03,0.01")
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--redraw", action="store_true", help="draw the figures stored in OUT anew, and train nothing")
    given = parser.parse_args()
    if not given.redraw:
        write_json(given.out / "pruning.json", figures(given), overwrite=True)
    with atomic_write(given.out / "pruning.png", overwrite=True) as path:
        draw(json.loads((given.out / "pruning.json").read_text("utf-8")), path)


def figures(given: argparse.Namespace) -> dict[str, Any]:
    """Measure every method at every density and seed, and return what is stored."""
    densities = [float(text) for text in given.densities.split(",")]
    pictures = task(given.data, side=16, limit=15_000 if given.data else None)
    dense: list[float] = []
    rows: list[dict[str, Any]] = []
    for seed in parse_numbers(given.seeds):
        fresh, trained = networks(pictures, seed)
        dense.append(100 * pictures.score(trained).accuracy)
        print(f"seed {seed}, dense: {dense[-1]:.1f} %", flush=True)
        for name in METHODS:
            for density in densities:
                rows.append({"method": name, "seed": seed, **measure(name, density, fresh, trained, pictures, seed)})
                print(
                    "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in rows[-1].items()),
                    flush=True,
                )
    return {"data": pictures.name, "steps": STEPS, "densities": densities, "dense": dense, "rows": rows}


def networks(pictures: Task, seed: int) -> tuple[nn.Module, nn.Module]:
    """Return an untrained network, and the same one trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        fresh = convnet(16, channels=pictures.shape[0], classes=len(pictures.classes))
    trained = copy.deepcopy(fresh)
    tune(trained, pictures, Train(steps=STEPS, batch=BATCH, lr=LR, schedule="cosine", seed=seed))
    return fresh, trained


def measure(
    name: str, density: float, fresh: nn.Module, trained: nn.Module, pictures: Task, seed: int
) -> dict[str, Any]:
    """Return the density reached, the test accuracy in percent, and the seconds of processor time it took."""
    from_trained, params = METHODS[name]
    share = {"node_sparsity": 1 - density**0.5} if name == "random-search" else {"sparsity": 1 - density}
    net = copy.deepcopy(trained if from_trained else fresh)
    start = time.process_time()
    plan = efface.get(name).from_params(params | share).plan(net, pictures, Work(seed=seed))  # type: ignore[attr-defined]
    seconds = time.process_time() - start
    total = sum(weight.numel() for weight in prunable(net).values())
    kept = sum(int(weight.count_nonzero()) for weight in prunable(plan.apply(net)).values())
    return {"density": kept / total, "accuracy": 100 * pictures.score(net).accuracy, "seconds": seconds}


def draw(values: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(float(np.mean(values["dense"])), color="0.6", linestyle="--", label="dense")
    for place, name in enumerate(METHODS):
        points: dict[float, list[float]] = {}
        for row in values["rows"]:
            if row["method"] == name:
                points.setdefault(round(row["density"], 3), []).append(row["accuracy"])
        kept = sorted(points)
        means = [float(np.mean(points[density])) for density in kept]
        apart = [float(np.ptp(points[density])) / 2 for density in kept]
        aside = 1.015 ** (place - len(METHODS) / 2)  # bars beside one another can be told apart
        axes.errorbar([100 * density * aside for density in kept], means, apart, marker="o", capsize=3, label=name)
    axes.set_xscale("log")
    ticks = [100 * density for density in values["densities"]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("weights left, %")
    axes.set_ylabel("test accuracy, %")
    seeds = len(values["dense"])
    bars = f"bars: range over {seeds} seeds" if seeds > 1 else "one seed"
    axes.set_title(f"{values['data']}, {values['steps']} steps for each network; {bars}", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, format="png")


if __name__ == "__main__":
    main()
