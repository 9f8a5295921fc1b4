"""Score edits that take a concept out of a generator: is it gone, what else went, and does it come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from efface.core.erasure_report import Report
    from efface.core.plan import Plan
    from efface.parts.metrics.judged import Judge

SENTENCES = ("this is {}", "here is {}", "we see {}", "look at {}", "{}, seen from afar", "a close view of {}")
"""Prompts for pipelines that know more than the tiny one; edits are made with others."""
BASELINES = ("negative", "uce", "esd")
"""What edits are scored beside: the concept as negative prompt, and two methods that others are measured by."""


def score_erasure(
    pipe: Any,
    edits: Sequence[Plan | str | Path] = (),
    *,
    target: str | None = None,
    keep: Sequence[str] = (),
    instead: str | None = None,
    also: Sequence[str] = (),
    sentences: Sequence[str] = SENTENCES,
    judge: Judge | str | Path | None = None,
    attacks: Sequence[str] = (),
    baselines: Sequence[str] = ("negative", "uce"),
    seeds: Sequence[int] = range(8),
    steps: int = 20,
    guidance: float | None = None,
    device: str = "auto",
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Score every one of ``edits`` on ``pipe``, side by side with the untouched pipeline and with ``baselines``.

    Parameters
    ----------
    pipe
        A pipeline of diffusers, its folder or name in the hub's cache, or ``tiny``, the one that comes with the
        package. It is afterwards as it was.
    edits
        What :func:`efface.forget` made on this pipeline, or folders of it.
    target, instead
        What was taken out, and what takes its place; by default as the first edit says.
    keep
        What must still be drawn. On the tiny pipeline by default all other values of the target's factor.
    also
        Other words for the target, which must not bring it back. The world of the tiny pipeline has its own.
    sentences
        Prompts with ``{}`` where the concept stands, none of which an edit has seen. The world has its own.
    judge
        A function that says what pictures show, or a CLIP model's folder. By default the judge of the tiny pipeline's
        world.
    attacks
        Names of :data:`efface.parts.concepts.attacks.ATTACKS`.

    Raises
    ------
    UsageError
        If a name is unknown, it is not said what went or what must stay, or the judge does not know it.
    """
    from efface.core.erasure import score_erasure
    from efface.core.erasure_world import score_on_world
    from efface.core.hub import open_pipeline
    from efface.core.plan import Plan
    from efface.core.trained import pick_device
    from efface.parts.concepts.attacks import ATTACKS
    from efface.parts.concepts.clip_judge import clip_judge
    from efface.parts.diffusion.pipelines import usual_guidance
    from efface.parts.worlds.erasing import kept

    for kind, names, known in (("attack", attacks, ATTACKS), ("baseline", baselines, BASELINES)):
        if unknown := [name for name in names if name not in known]:
            raise UnknownNameError(kind, unknown[0], known)
    plans = {_name(edit, i): Plan.load(edit) if isinstance(edit, str | Path) else edit for i, edit in enumerate(edits)}
    erased = [one for plan in plans.values() for one in plan.made_by.get("erases", ())]
    target = target or (erased[0]["remove"] if erased else None)
    if not target:
        raise UsageError("it is not said what was taken out", where="target", fix="Name the concept: --target circle")
    if instead is None:
        instead = next((one["instead"] for one in erased if one["remove"] == target), "")
    if isinstance(pipe, str | Path):
        pipe = open_pipeline(pipe, pick_device(device))
    guidance = usual_guidance(pipe) if guidance is None else guidance
    if judge is None:
        _check_world(pipe)
        keep = tuple(keep) or kept(target)
    models = {**plans, **_beside(pipe, target, instead, tuple(keep), baselines)}
    chosen = [ATTACKS[name] for name in attacks]
    if judge is None:
        return score_on_world(
            pipe, models, target, keep, chosen, instead=instead, seeds=seeds, steps=steps, guidance=guidance,
            progress=progress,
        )  # fmt: skip
    if bare := [text for text in sentences if "{}" not in text]:
        raise UsageError(f"{bare[0]!r} has no place for a concept", where="sentences", fix="Write {} where it stands")
    if isinstance(judge, str | Path):
        judge = clip_judge(judge, [target, *keep, *filter(None, [instead])], pick_device(device))
    prompts = {word: [text.replace("{}", word) for text in sentences] for word in (target, *keep, *also)}
    return score_erasure(
        pipe, models, target, keep, judge, prompts, seeds, chosen, instead=instead, steps=steps, guidance=guidance,
        progress=progress,
    )  # fmt: skip


def _beside(pipe: Any, target: str, instead: str, keep: tuple[str, ...], names: Sequence[str]) -> dict[str, Any]:
    """Return the models called ``names`` that edits are scored beside; the pipeline stays as it is."""
    from efface.core.eraser import Concepts, editable
    from efface.core.erasure import Negative
    from efface.core.method import Work
    from efface.core.plan import Plan
    from efface.training.baselines import esd, uce

    found: dict[str, Any] = {"negative prompt": Negative(target)} if "negative" in names else {}
    concepts = Concepts.of(target, instead, keep)
    if "uce" in names:
        found["uce"] = Plan.of(editable(pipe), uce(pipe, concepts), method="uce", whole=False)
    if "esd" in names:
        found["esd"] = Plan.of(editable(pipe), esd(pipe, concepts, Work()), method="esd", whole=False)
    return found


def _check_world(pipe: Any) -> None:
    from efface.parts.worlds.world import SIDE

    side = pipe.vae_scale_factor * pipe.unet.config.sample_size
    if side != SIDE:
        what = f"draws {side} x {side} pixels, and there is no judge but that of the tiny pipeline's world"
        raise UsageError(what, where=type(pipe).__name__, fix="Give one: --judge with the folder of a CLIP model")


def _name(edit: Plan | str | Path, place: int) -> str:
    """Return what an edit is called in the report; the place tells equal names apart."""
    name = Path(edit).name if isinstance(edit, str | Path) else edit.name
    return name if not place else f"{name} ({place + 1})"
