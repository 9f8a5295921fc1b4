"""Read what a judge says of pictures: which values it sees, how sure it is, whether the pictures are broken."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from efface.errors import UsageError
from efface.parts.metrics.erasure import Figure, Vectors, rate

NONE = "none"
"""Class of judges that may say that there is nothing they know."""
SURE = 0.5
"""Probability of its likeliest class under which a judge does not know what it sees."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a judge sees in b pictures: log-probabilities (b, classes) of each factor, and features (b, d) if any."""

    classes: Mapping[str, tuple[str, ...]]
    log_probs: Mapping[str, Vectors]
    features: Vectors | None = None

    @classmethod
    def of(cls, labels: Sequence[str], classes: Sequence[str] = (), factor: str = "concept") -> Seen:
        """Return bare ``labels``, one for each picture, as what a judge without doubts sees."""
        names = tuple(dict.fromkeys([*classes, *labels]))
        hits = np.array([[label == name for name in names] for label in labels]).reshape(len(labels), len(names))
        return cls({factor: names}, {factor: np.where(hits, 0.0, -np.inf)})

    def factor(self, concept: str) -> str:
        """Return the factor that has ``concept`` as a value; the only one there is may lack it."""
        found = [name for name, classes in self.classes.items() if concept in classes]
        if not found and len(self.classes) != 1:
            known = "; ".join(", ".join(classes) for classes in self.classes.values())
            raise UsageError("is nothing that the judge can see", where=concept, fix=f"It knows: {known}")
        return (found or list(self.classes))[0]

    def names(self, factor: str) -> list[str]:
        """Return the likeliest class of ``factor`` in each picture."""
        return [self.classes[factor][i] for i in self.log_probs[factor].argmax(1)]

    def sees(self, concept: str, top: int = 1) -> list[bool]:
        """Return for each picture whether ``concept`` is among the ``top`` likeliest classes of its factor."""
        factor = self.factor(concept)
        if concept not in self.classes[factor]:
            return [False] * len(self.log_probs[factor])
        best = np.argsort(-self.log_probs[factor], axis=1, kind="stable")[:, :top]
        return (best == self.classes[factor].index(concept)).any(1).tolist()

    def margin(self, concept: str, anchor: str) -> list[float]:
        """Return log p(concept) - log p(anchor) of each picture."""
        factor = self.factor(concept)
        columns = [self.log_probs[factor][:, self.classes[factor].index(name)] for name in (concept, anchor)]
        return np.clip(columns[0] - columns[1], -1e6, 1e6).tolist()


Judge = Callable[[Any], Seen | Sequence[str]]
"""Sees pictures (b, 3, h, w), a float32 tensor with values in [0, 1]; it may answer with a label for each."""


def look(judge: Judge, pictures: Any) -> Seen:
    """Return what ``judge`` sees in ``pictures``, also if it gives bare labels."""
    answer = judge(pictures)
    seen = answer if isinstance(answer, Seen) else Seen.of(list(answer))
    if wrong := {len(rows) for rows in seen.log_probs.values()} - {len(pictures)}:
        what = f"answered for {wrong.pop()} pictures of {len(pictures)}"
        raise UsageError(what, where="judge", fix="Return one label or row for each picture")
    return seen


def cer(seen: Seen, concept: str, anchor: str) -> Figure:
    """Return the share of pictures that show ``concept`` no more than ``anchor``, by the judge's margin.

    The form of SPM's CLIP error rate for a judge that is a classifier.
    """
    return rate([margin <= 0 for margin in seen.margin(concept, anchor)])


def spoken(prompts: Sequence[str], classes: Sequence[str]) -> list[str | None]:
    """Return for each of ``prompts`` the one of ``classes`` that it names as whole words; None of none or several."""
    found = [[name for name in classes if re.search(rf"\b{re.escape(name)}(e?s)?\b", prompt)] for prompt in prompts]
    return [names[0] if len(names) == 1 else None for names in found]


def followed(seen: Seen, prompts: Sequence[str], besides: str) -> list[bool]:
    """Return, picture by picture, whether each factor is seen as its prompt says, all but the factor ``besides``.

    One value for every picture and factor that its prompt names: the cells of UnlearnCanvas' cross-domain accuracy.
    """
    right = []
    for factor in seen.classes:
        if factor != besides:
            told = zip(spoken(prompts, seen.classes[factor]), seen.names(factor), strict=True)
            right += [said == shown for said, shown in told if said is not None]
    return right


def broken(seen: Seen, concept: str) -> list[bool]:
    """Return which pictures no longer show anything: the judge is not sure, or knows no value of any factor.

    An empty background is not broken where the judge has a factor that sees it.
    """
    unsure = np.exp(seen.log_probs[seen.factor(concept)].max(1)) < SURE
    nothing = np.all([[name == NONE for name in seen.names(factor)] for factor in seen.classes], axis=0)
    return (unsure | (nothing & (len(seen.classes) > 1))).tolist()


def entropy(seen: Seen, concept: str) -> list[float]:
    """Return the entropy in nats of the judge's belief about the factor of ``concept`` in each picture."""
    log_probs = np.maximum(seen.log_probs[seen.factor(concept)], -1e3)  # 0 log 0 is 0
    return (-(np.exp(log_probs) * log_probs).sum(1)).tolist()
