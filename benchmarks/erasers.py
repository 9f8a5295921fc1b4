"""Erase one concept from the tiny pipeline with every eraser and both baselines, and show them side by side.

    python benchmarks/erasers.py [--target star] [--instead square] [--only rece,spm] [--seed 0] [-o JSON] [--sheet PNG]

Each runs at the settings of its claim; the concept is by default the one that settings were tried on, never the claim's
own. All models draw the same prompts from the same first noise. A row of the sheet is a model, the untouched one first;
its left half asks for the target, its right half for neighbours that should stay.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from efface.app.commands.sample import sheet
from efface.core.catalogue import entries, get
from efface.core.eraser import Concepts, editable
from efface.core.erasure_world import score_on_world
from efface.core.method import Work
from efface.core.plan import Plan
from efface.io.atomic import atomic_write, write_json
from efface.parts.concepts.attacks import Derived, RingABell
from efface.parts.worlds.erasing import kept, prompts
from efface.parts.worlds.pipeline import load_pipeline
from efface.training.baselines import esd, uce
from efface.verbs.sample import sample

ESD: dict[str, Any] = {"steps": 60, "lr": 2e-3, "batch": 4, "rollout_steps": 10}
"""Its settings beside SPM, which takes as many steps."""
NOT_BY_NAME = ("geom-erasing",)
"""Takes out what captions leave unsaid, so there is no prompt to score it by."""
EACH = 4
"""Pictures of a half row of the sheet, and seeds of a prompt."""


def erasers(only: Sequence[str]) -> dict[str, Any]:
    """Return the erasers of the catalogue by name, at the settings of their claims."""
    names = [name for name, entry in entries().items() if entry.kind == "Eraser" and name not in NOT_BY_NAME]
    claims = {name: importlib.import_module(f"efface.claims.{name.replace('-', '_')}") for name in only or names}
    return {name: get(name)(**getattr(claim, "SETTINGS", {})) for name, claim in claims.items()}


def plans(pipe: Any, concepts: Concepts, work: Work, only: Sequence[str]) -> dict[str, Plan]:
    """Return the plan of each, baselines first; ``made_by`` says how many seconds of the processor it took."""

    def baseline(name: str, ops: Any) -> Plan:
        return Plan.of(editable(pipe), ops, method=name, whole=False)

    makers: dict[str, Callable[[], Plan]] = {
        "uce": lambda: baseline("uce", uce(pipe, concepts)),
        "esd": lambda: baseline("esd", esd(pipe, concepts, work, **ESD)),
        **{name: partial(method.plan, pipe, concepts, work) for name, method in erasers(only).items()},
    }
    made = {}
    for name, make in makers.items():
        start = time.process_time()
        made[name] = make()
        made[name].made_by["seconds"] = time.process_time() - start
        print(f"{name}: {made[name].made_by['seconds']:.1f} s of the processor", flush=True)
    return made


def rows(pipe: Any, made: dict[str, Plan], target: str, keep: Sequence[str]) -> list[torch.Tensor]:
    """Return the pictures of the sheet, row by row."""
    asked = [*prompts(target, count=EACH), *(prompts(keep[i % len(keep)], count=EACH)[i] for i in range(EACH))]
    drawn = [sample(pipe, asked, edits=edits, steps=20).pictures for edits in ([], *([plan] for plan in made.values()))]
    return [picture for row in drawn for picture in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="star")
    parser.add_argument("--instead", default="square")
    parser.add_argument("--only", type=lambda names: names.split(","), default=())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    pipe, keep = load_pipeline(), kept(given.target, 3)
    concepts = Concepts.of(
        given.target, given.instead, keep=[text for concept in kept(given.target) for text in prompts(concept, "edit")]
    )
    made = plans(pipe, concepts, Work(seed=given.seed), given.only)
    seeds = [given.seed * EACH + i for i in range(EACH)]
    report = score_on_world(
        pipe,
        made,
        given.target,
        keep,
        (Derived(), RingABell()),
        instead=given.instead,
        seeds=seeds,
        progress=lambda told: print(told, flush=True),
    )
    Console(width=40 + 22 * len(made)).print(report.table())
    if given.out:
        seconds = {name: plan.made_by["seconds"] for name, plan in made.items()}
        write_json(given.out, {"processor, s": seconds, **report.as_dict()}, overwrite=True)
    if given.sheet:
        with atomic_write(given.sheet, overwrite=True) as temporary:
            sheet(rows(pipe, made, given.target, keep), 2 * EACH).save(temporary, "PNG")


if __name__ == "__main__":
    main()
