"""Time a step of training a given network beside the same step in a loop written by hand.

    python benchmarks/tuning.py [--batch 256] [--repeat 10] [-o tuning.json]

Both train LeNet-300-100 on 16x16 pictures of shapes with AdamW, from the same batches, in turns. Figures are the least
milliseconds of processor time a step over the repeats: what other processes take from the caches only adds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from efface.io.atomic import write_json
from efface.parts.data.tasks import Task, task
from efface.parts.nn.classifiers import lenet_300_100
from efface.training.recipe import Train
from efface.training.tuning import tune

STEPS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shapes, train = task("shapes", side=16, grey=True), Train(steps=STEPS, batch=given.batch)
    ways: dict[str, Callable[[], object]] = {
        "by hand": lambda: by_hand(shapes, train),
        "tune": lambda: tune(lenet_300_100(256), shapes, train),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.repeat):
        for name, way in ways.items():
            times[name].append(milliseconds(way))
    least = {name: round(min(values), 3) for name, values in times.items()}
    found = least | {"overhead": round(least["tune"] / least["by hand"] - 1, 3), "batch": given.batch}
    print(found)
    if given.out:
        write_json(given.out, found)


def by_hand(shapes: Task, train: Train) -> None:
    """Train as a user would who knows the settings."""
    net = lenet_300_100(256)
    optimizer = torch.optim.AdamW(net.parameters(), lr=train.lr, weight_decay=0.0, fused=True)
    for step in range(train.steps):
        batch = shapes.train.batch(train.seed, step, train.batch)
        optimizer.zero_grad()
        F.cross_entropy(net(batch["picture"]), batch["label"]).backward()
        optimizer.step()


def milliseconds(way: Callable[[], object]) -> float:
    start = time.process_time()
    way()
    return (time.process_time() - start) / STEPS * 1e3


if __name__ == "__main__":
    main()
