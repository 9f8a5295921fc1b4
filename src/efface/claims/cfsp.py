"""Show that budgets by block and activity of channels choose what can go, and that adapters repair what is left.

The feed-forward layers of the tiny language model that comes with the package lose half of their channels and more by
each rule, and the loss of the next character is measured on text that no rule saw.
"""

from __future__ import annotations

import copy
from statistics import fmean
from typing import Any

import torch

from efface.core.claim import Claim, Context, Effect
from efface.core.method import Work
from efface.core.models import open_model
from efface.core.plan import Plan
from efface.core.trial import trial
from efface.networks.cfsp import CFSP
from efface.parts.data.language import Corpus
from efface.parts.language.tiny import LENGTH, SHIPPED, tiny_corpus
from efface.parts.timing import interleave

KEEPS, ROWS, STEPS = (0.7, 0.5, 0.3), 32, 60
RULES: dict[str, dict[str, Any]] = {
    "magnitude": {"score": "magnitude", "coarse": "constant"},
    "wanda": {"score": "wanda", "coarse": "constant"},
    "fine only": {"coarse": "constant"},
    "cfsp": {},
    "cfsp released": {"norm": "released"},
}

CLAIM = Claim(
    statement="Channels of feed-forward layers chosen by activity, as many of each block as it turns its states, cost "
    "less than channels of least magnitude or the same number of each block; adapters with ranks by block repair them",
    baseline="magnitude; Wanda's score and the fine score with the same width for all blocks; adapters of one rank",
    minutes=5,
    data="text that the bundled language model writes itself, or a folder of text",
)


def check(context: Context) -> list[Effect]:
    """Prune by each rule and repair, per seed; compare how much the loss of the next character rises, in nats."""
    model: Any = open_model(SHIPPED).model
    rises: dict[str, dict[float, list[float]]] = {rule: {keep: [] for keep in KEEPS} for rule in RULES}
    repaired: dict[str, list[float]] = {"not repaired": [], "adaptive ranks": [], "uniform ranks": []}
    speed: dict[str, list[float]] = {"parameters": [], "time": []}
    rows, steps = (2, 1) if context.quick else (ROWS, STEPS)
    for seed in context.seeds:
        corpus = tiny_corpus(model, context.data, seed, windows=16 if context.quick else 512)
        whole = corpus.score(model).loss

        def rise(**options: Any) -> tuple[float, Plan]:
            plan = CFSP(rows=rows, length=LENGTH, multiple=8, **options).plan(model, corpus, Work(seed=seed))  # noqa: B023
            return loss_after(model, corpus, plan) - whole, plan  # noqa: B023

        for rule, options in RULES.items():
            for keep in KEEPS:
                rises[rule][keep].append(rise(keep=keep, **options)[0])
        repaired["not repaired"].append(rises["cfsp"][KEEPS[-1]][-1])
        for arm, mode in (("adaptive ranks", "importance"), ("uniform ranks", "uniform")):
            options = {"steps": steps, "rank": 4, "rank_mode": mode, "lr": 1e-2, "repair_batch": 16}
            repaired[arm].append(rise(keep=KEEPS[-1], **options)[0])
        for name, share in shares(model, rise(keep=KEEPS[-1])[1]).items():
            speed[name].append(share)
        told = ", ".join(f"{rule} {'/'.join(f'{rises[rule][k][-1]:.3f}' for k in KEEPS)}" for rule in rises)
        context.progress(
            f"seed {seed}: loss {whole:.3f}, rises at {KEEPS} by {told}; at {KEEPS[-1]} repaired "
            + ", ".join(f"{arm} {values[-1]:.3f}" for arm, values in repaired.items())
        )
    half = {rule: values[0.5] for rule, values in rises.items()}
    mean = {rule: fmean(values) for rule, values in half.items()}
    lost, left = fmean(repaired["not repaired"]), fmean(repaired["adaptive ranks"])
    return [
        Effect(
            "half of the channels",
            "the mean rise of the loss at most 0.5 of that by magnitude, and below that by Wanda's score, which is "
            "below that by magnitude",
            {rule: half[rule] for rule in ("cfsp", "cfsp released", "wanda", "magnitude")},
            mean["cfsp"] <= 0.5 * mean["magnitude"] and mean["cfsp"] < mean["wanda"] < mean["magnitude"],
            unit="nats",
            note=f"ratio to magnitude {mean['cfsp'] / max(mean['magnitude'], 1e-9):.2f}",
        ),
        Effect(
            "budgets by block",
            "the mean rise of the loss, half of the channels gone, at most 0.95 of that with the same width for all",
            {rule: half[rule] for rule in ("cfsp", "fine only")},
            mean["cfsp"] <= 0.95 * mean["fine only"],
            unit="nats",
            note=f"ratio {mean['cfsp'] / max(mean['fine only'], 1e-9):.2f}",
        ),
        Effect(
            "repair",
            f"with {KEEPS[-1]:.0%} of the channels, {STEPS} steps of low-rank adapters undo at least 60 % of the rise, "
            "and ranks by block leave no more of it than equal ones, in the mean over seeds",
            repaired,
            left <= 0.4 * lost and left <= fmean(repaired["uniform ranks"]),
            unit="nats",
            note=f"{1 - left / lost:.0%} of the rise undone" if lost > 0 else "",
        ),
        Effect(
            "what is left is faster",
            f"reading text takes less time with {KEEPS[-1]:.0%} of the channels, in the mean over seeds",
            speed,
            fmean(speed["time"]) < 1,
            unit="share of the whole model's",
        ),
    ]


def loss_after(model: Any, corpus: Corpus, plan: Plan) -> float:
    """Return the loss of the model as ``plan`` leaves it."""
    with trial(plan.ops, model):
        return corpus.score(model).loss


@torch.inference_mode()
def shares(model: Any, plan: Plan) -> dict[str, float]:
    """Return the share of the parameters, and of the time to read text, that ``plan`` leaves."""
    small, ids = plan.apply(copy.deepcopy(model)), torch.full((8, LENGTH), 50)
    parameters = [sum(p.numel() for p in net.parameters()) for net in (small, model)]
    times = interleave({"small": lambda: small(ids), "whole": lambda: model(ids)})
    return {"parameters": parameters[0] / parameters[1], "time": times["small"].seconds / times["whole"].seconds}
