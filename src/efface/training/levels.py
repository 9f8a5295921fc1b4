"""Prune by levels: train, take some of the weights that are left, rewind the others, and train again.

This is iterative magnitude pruning (Frankle and Carbin, arXiv:1803.03635), with rewinding to any step of the training
(arXiv:1903.01611) or of its learning rate alone (Renda et al., arXiv:2003.02389), with any other way to choose what
goes, and with the controls that tell whether mask, weights or their pairing make a subnetwork good.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efface.core.fingerprint import Fingerprint
from efface.errors import UsageError, WeightsError
from efface.io.atomic import write_json
from efface.io.weights import load_weights, save_weights
from efface.parts.sparsity.budget import Budget, Keep, best
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.scores import magnitude
from efface.seeds import derive
from efface.training.course import Course, Outcome, State, Trained, masked
from efface.training.recipe import FREE

RESTARTS = ("weights", "rate")
CONTROLS = ("reinit", "same-sign", "shuffle")


@dataclass(frozen=True)
class Round:
    """What a prune step is told: what is left, where its training began and ended, how to train less of it alike."""

    masks: MaskSet
    start: State
    final: State
    retrain: Callable[[MaskSet], State] = lambda masks: {}


Prune = Callable[[Round, Keep], MaskSet]
"""Choose what stays: masks that lie within those of the round, with exactly as many weights as they should have."""


def smallest(round: Round, keep: Keep) -> MaskSet:
    """Prune the weights that are smallest at the end of the training."""
    return best(magnitude({name: round.final[name] for name in round.masks}), round.masks, keep)


@dataclass(frozen=True)
class Level:
    """A subnetwork: its masks, the weights it starts from, those it reached, and how well it and its controls did."""

    number: int
    masks: MaskSet
    start: State
    final: State
    ticket: Outcome
    controls: Mapping[str, Outcome]

    def facts(self) -> dict[str, Any]:
        """Return what was measured, as JSON-ready values."""
        return {
            "level": self.number,
            "density": self.masks.density,
            "per_layer": {name: kept for name, (kept, _) in self.masks.per_layer().items()},
            "ticket": self.ticket.as_dict(),
            "controls": {name: outcome.as_dict() for name, outcome in self.controls.items()},
        }


def imp(
    course: Course,
    levels: int,
    budget: Budget | None = None,
    *,
    masks: MaskSet | None = None,
    rewind: int = 0,
    restart: str = "weights",
    prune: Prune = smallest,
    controls: Sequence[str] = (),
    fresh: Callable[[], nn.Module] | None = None,
    dense: Trained | None = None,
    folder: Path | str | None = None,
) -> Iterator[Level]:
    """Prune ``levels`` times; yield each level once it is trained, first the whole network, then ever smaller parts.

    Survivors go back to the weights and buffers of step ``rewind`` and are trained from there on; where ``restart`` is
    ``rate`` they keep their weights, and only the learning rate and the data go back. ``budget`` says how many weights
    stay (four of five at each level), ``masks`` which may be pruned at all (all that is prunable).

    ``controls`` are trained beside every level: its masks with new initial weights (``reinit``), with new ones of the
    old signs (``same-sign``), and random masks with as many weights in each layer, and the old weights (``shuffle``).
    New weights come from :meth:`Course.redrawn`, which takes ``fresh``.

    ``dense``, a run of the course with a snapshot at ``rewind``, spares the first training. Levels are stored in
    ``folder``, and those found there are not trained again.

    Raises
    ------
    UsageError
        If a number is out of range, a level would empty a layer, a control cannot be made, or ``folder`` holds levels
        of another experiment; before anything is trained.
    LayerCollapse
        If the weights that are left in the whole network leave nothing of a layer.
    """
    budget, masks = budget or Budget(), masks or MaskSet.ones_like(course.net)
    if levels < 1:
        raise UsageError(f"{levels} levels prune nothing", where="levels", fix="Ask for one at least")
    for name, value, known in [("restart", restart, RESTARTS), *(("controls", c, CONTROLS) for c in controls)]:
        if value not in known:
            raise UsageError(f"{value!r} is not one of {', '.join(known)}", where=name)
    course.check_step(rewind)
    if dense is not None and rewind not in dense.snapshots:
        raise UsageError(f"the dense run has no snapshot at step {rewind}", where="dense", fix="Ask for it in the run")
    keeps = [budget.keep(masks, level) for level in range(levels + 1)]
    redrawn = course.redrawn(fresh) if {"reinit", "same-sign"} & set(controls) else {}
    settings = (budget, rewind, restart, _told(prune), *controls)
    shelf = None if folder is None else _Shelf(Path(folder), _identity(course, masks, settings))

    def first() -> Level:
        run = dense or course.run(course.initial, snapshots=(rewind,))
        return Level(0, masks, run.snapshots[rewind], run.weights, run.outcome, {})

    def after(level: Level) -> Level:
        train = partial(course.run, step=rewind)
        given = Round(level.masks, level.start, level.final, lambda left: train(level.start, left).weights)
        left = prune(given, keeps[level.number + 1])
        left.check()
        start = masked(origin if restart == "weights" else level.final, left)
        ticket = train(start, left)
        beside = {name: train(*_control(name, origin, redrawn, left, course.train.seed)).outcome for name in controls}
        return Level(level.number + 1, left, start, ticket.weights, ticket.outcome, beside)

    level: Level | None = None
    for number in range(levels + 1):
        found = shelf.take(number) if shelf else None
        level = found or (after(level) if level else first())
        if number == 0:
            origin = level.start
        if shelf and not found:
            shelf.put(level)
        course.progress(f"level {number}, density {level.masks.density:.1%}: {level.ticket.test.accuracy:.1%} right")
        yield level


def _control(name: str, origin: State, redrawn: State, masks: MaskSet, seed: int) -> tuple[State, MaskSet]:
    if name == "shuffle":
        masks = masks.random_like(derive(seed, "shuffle", masks.kept))
        return masked(origin, masks), masks
    if name == "same-sign":
        redrawn = {**redrawn, **{k: torch.copysign(redrawn[k], origin[k]) for k in (*masks, *masks.aliases)}}
    return masked(redrawn, masks), masks


def _identity(course: Course, masks: MaskSet, settings: tuple[object, ...]) -> str:
    """Return a digest of all that decides what the levels are."""
    recipe = {k: v for k, v in dataclasses.asdict(course.train).items() if k not in FREE}
    weights = Fingerprint.of(course.net).sha256
    told = [recipe, course.every, course.task.name, len(course.task.train), weights, masks.digest(), *settings]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _told(value: object) -> str:
    """Return ``value`` in words, the same in every process: a function by its name, a dataclass by its fields."""
    if dataclasses.is_dataclass(value):
        fields = (f"{f.name}={_told(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({', '.join(fields)})"
    return getattr(value, "__qualname__", None) or repr(value)


@dataclass(frozen=True)
class _Shelf:
    """A folder of levels.

    Each is a folder ``level_00`` with ``mask.safetensors``, the weights folders ``rewind`` and ``final``, and
    ``level.json``, which is written last: its presence says that the level is whole.
    """

    folder: Path
    identity: str

    def take(self, number: int) -> Level | None:
        """Return a stored level, or None where there is none yet; one of another experiment is refused."""
        place = self.folder / f"level_{number:02d}"
        try:
            facts = json.loads((place / "level.json").read_text("utf-8"))
            controls = {name: Outcome.from_dict(values) for name, values in facts["controls"].items()}
            ticket, identity = Outcome.from_dict(facts["ticket"]), facts["experiment"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"does not describe a level ({error})", where=place, fix="Remove the folder") from error
        if identity != self.identity:
            what = "holds levels of another network, training or way to prune"
            raise UsageError(what, where=self.folder, fix="Choose another folder")
        start, final = (load_weights(place / name)[0] for name in ("rewind", "final"))
        return Level(number, MaskSet.load(place / "mask.safetensors"), start, final, ticket, controls)

    def put(self, level: Level) -> None:
        """Store a level."""
        place = self.folder / f"level_{level.number:02d}"
        facts = {"experiment": self.identity, **level.facts()}
        level.masks.save(place / "mask.safetensors", overwrite=True)
        for name, weights in (("rewind", level.start), ("final", level.final)):
            save_weights(place / name, weights, {"level": level.number}, overwrite=True)
        write_json(place / "level.json", facts, overwrite=True)
