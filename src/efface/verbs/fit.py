"""Train a method from a recipe into a folder that can be resumed, and give back that folder."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from efface.core.catalogue import get
from efface.core.method import Network
from efface.core.run import Run
from efface.errors import UsageError
from efface.training.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from efface.training.order import Source


def fit(
    recipe: str | Path | Recipe,
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    resume: bool = False,
    steps: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    dry_run: bool = False,
    set: Sequence[str] = (),
    progress: Callable[[str], None] | None = print,
) -> Run:
    """Train what ``recipe`` says into the folder ``out`` (by default ``runs/<name of the recipe>``).

    ``data`` is the folder that the recipe's source reads; ``steps``, ``seed`` and ``set`` (items such as
    ``"train.lr=3e-4"``) change the recipe. ``dry_run`` says how large the network is and how long training would take,
    and writes nothing. ``progress`` is told what happens, a line at a time; None keeps quiet.
    """
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun or accelerate launch started
    say = progress if progress and first else lambda line: None
    run = Run(Path(out) if out is not None else Path("runs") / _stem(recipe))
    recipe = resolve(recipe, data=data, steps=steps, seed=seed, changes=set)
    method = _method(recipe)
    recipe = dataclasses.replace(recipe, params=method.params(), data={"source": method.trains_on} | recipe.data)
    source = _source(recipe)
    if dry_run:
        for line in _forecast(method, source, recipe, device):
            say(line)
        return run

    from efface.training.loop import train

    if resume:
        _check_same(Run.open(run.path), recipe)
        if run.finished:
            say(f"Finished already: {run.weights}")
            return run
    elif first:
        Run.create(run.path, recipe.portable().as_dict())
    try:
        finished = train(method, source, recipe, run, device=device, resume=resume, progress=progress is not None)
    except BaseException:
        if first and not resume:
            run.discard()
        raise
    if finished:
        say(f"Weights: {run.weights}")
    else:
        say(f"Stopped with the state saved in {run.path}. Give the same command with --resume to go on")
    return run


def resolve(
    recipe: str | Path | Recipe,
    *,
    data: str | Path | None = None,
    steps: int | None = None,
    seed: int | None = None,
    changes: Sequence[str] = (),
) -> Recipe:
    """Return ``recipe``, read from its file if it is a path, with what the command line says in place."""
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, changes)
    elif changes:
        raise UsageError("`set` changes recipes in files", fix="Change the Recipe with dataclasses.replace")
    train = recipe.train
    train = train if steps is None else dataclasses.replace(train, steps=steps)
    train = train if seed is None else dataclasses.replace(train, seed=seed)
    options = recipe.data if data is None else recipe.data | {"folder": str(data)}
    return dataclasses.replace(recipe, data=options, train=train)


def _stem(recipe: str | Path | Recipe) -> str:
    return recipe.method if isinstance(recipe, Recipe) else Path(recipe).stem


def _method(recipe: Recipe) -> Network:
    from efface.training import language, worlds

    kind = {**worlds.NETWORKS, **language.NETWORKS}.get(recipe.method) or get(recipe.method)
    method = kind.from_params(recipe.params)
    if not isinstance(method, Network):
        raise UsageError("is not a network that can be trained", where=recipe.method)
    return method


def _check_same(run: Run, recipe: Recipe) -> None:
    before = Recipe.from_dict(run.recipe, where=run.path)
    before = dataclasses.replace(before, params=_method(before).params())  # which may have new ones since
    if changed := before.differences(recipe):
        fix = 'Resume with the recipe as it was, or begin a new run with [train] init = ".../weights"'
        raise UsageError(f"the recipe is not the run's: {', '.join(changed)} changed", where=run.path, fix=fix)


def _source(recipe: Recipe) -> Source:
    from efface.parts.data import source

    options = {k: v for k, v in recipe.data.items() if k != "source"}
    return source(recipe.data["source"], **options)


def _forecast(method: Network, source: Source, recipe: Recipe, device: str) -> list[str]:
    import torch

    from efface.training.loop import seconds_per_step

    train = recipe.train
    with torch.device("meta"):
        parameters = sum(p.numel() for p in method.build().parameters())
    seconds = seconds_per_step(method, source, recipe, device=device)
    options = ", ".join(f"{k}={v}" for k, v in recipe.data.items() if k != "source")
    return [
        f"Network: {method.name}, {parameters:,} parameters",
        f"Data:    {recipe.data['source']}" + (f" ({options})" if options else ""),
        f"Steps:   {train.steps:,}, each of {train.accumulate} x {train.batch} samples",
        f"Time:    {seconds:.3g} s a step, {datetime.timedelta(seconds=round(seconds * train.steps))} in all",
    ]
