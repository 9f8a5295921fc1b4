"""Find methods by what they do, read what they promise, and get their classes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.core.catalogue import Entry, entries, entry
from efface.core.claim import Result, load_result
from efface.core.trained import SHIPPED
from efface.errors import UnknownNameError
from efface.io.weights import CARD


@dataclass(frozen=True)
class Description:
    """All that is known of a method without importing it."""

    entry: Entry
    weights: dict[str, dict[str, Any]]
    """Cards of the weights that come with the package, by the name of their folder."""
    result: Result | None
    """The method's claim as last measured, where one is stored."""

    def as_dict(self) -> dict[str, Any]:
        """Return the description as JSON-ready values."""
        return {
            **summary(self.entry),
            "kind": self.entry.kind,
            "doc": self.entry.doc,
            "card": self.entry.card.as_dict(),
            "params": [vars(p) for p in self.entry.params],
            "weights": self.weights,
            "result": None if self.result is None else self.result.as_dict(),
        }


def find(search: str = "", *, subject: str | None = None, task: str | None = None) -> list[Entry]:
    """List the methods that have every word of ``search`` in their name, card or docstring.

    ``subject`` keeps those of one subject (``pictures``, ``networks``, ...), ``task`` those whose task holds that text.
    An unknown subject raises :class:`efface.errors.UnknownNameError`.
    """
    known = entries().values()
    subjects = {e.subject for e in known}
    if subject is not None and subject not in subjects:
        raise UnknownNameError("subject", subject, subjects)
    words = search.casefold().split()
    return [
        e
        for e in known
        if (subject is None or e.subject == subject)
        and (task is None or task.casefold() in e.card.task.casefold())
        and all(word in _text(e) for word in words)
    ]


def get(name: str) -> type:
    """Import the method called ``name`` and return its class; a misspelt name raises with suggestions."""
    return entry(name).load()


def describe(name: str, *, results: str | Path | None = None) -> Description:
    """Describe the method called ``name``: card, hyper-parameters, weights, the claim in ``results``.

    By default that is the folder of :func:`evidence`.
    """
    found = entry(name)
    stored = (evidence() if results is None else Path(results)) / f"{found.name}.json"
    cards = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in sorted(SHIPPED.glob(f"*/{CARD}"))}
    return Description(
        entry=found,
        weights={name: card for name, card in cards.items() if card.get("method") == found.name},
        result=load_result(stored) if stored.is_file() else None,
    )


def evidence() -> Path:
    """Return the folder of claims as measured: ``results`` where one works, else that of the package's own source."""
    here = Path("results")
    return here if here.is_dir() else SHIPPED.parents[2] / "results"


def summary(entry: Entry) -> dict[str, Any]:
    """Return the few values of a method that a list shows."""
    card = entry.card
    return {"name": entry.name, "subject": entry.subject, "task": card.task, "title": card.title, "year": card.year}


def _text(entry: Entry) -> str:
    return " ".join([entry.name, entry.doc, *map(str, entry.card.as_dict().values())]).casefold()
