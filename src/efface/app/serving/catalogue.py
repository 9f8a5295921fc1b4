"""Say what the API says of methods, and which of them jobs may use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efface.app.serving.schemas import Method, MethodPage, Rules
from efface.app.serving.settings import Settings
from efface.core.catalogue import Entry, entries, entry
from efface.core.trained import shipped
from efface.errors import UnknownNameError, UsageError
from efface.io.atomic import inside
from efface.io.weights import WEIGHTS, load_card
from efface.verbs.find import describe
from efface.verbs.rules import PRESETS, REMOVABLE

TASKS = {f"{thing} from pictures" for thing in REMOVABLE}


def methods(settings: Settings) -> list[Method]:
    """Return all methods by name."""
    return [Method(**_summary(found, settings)) for found in entries().values()]


def method_page(name: str, settings: Settings) -> MethodPage:
    """Return all that is known of a method; an unknown name raises :class:`UnknownNameError`."""
    known = describe(name, results=settings.results)
    values = known.as_dict()
    return MethodPage(
        **_summary(known.entry, settings),
        doc=values["doc"],
        card=values["card"],
        params=values["params"],
        weights=values["weights"],
        result=values["result"],
        plot=f"/api/methods/{known.entry.name}/plot" if plot(known.entry.name, settings) else None,
    )


def plot(name: str, settings: Settings) -> Path | None:
    """Return the plot of a method's measured claim, or None where there is none."""
    path = settings.results / f"{entry(name).name}.png"
    return path if path.is_file() and inside(settings.results, path) else None


def weights_for(method: str | None, given: Path | None) -> Path | None:
    """Return the server's own weights where a job with ``method`` uses them."""
    return given if given is not None and method in (None, load_card(given).get("method")) else None


def qualities(settings: Settings) -> dict[str, str]:
    """Return the method that each quality means here."""
    if settings.weights is None:
        return PRESETS
    return dict.fromkeys(PRESETS, load_card(settings.weights)["method"])


def check_method(wanted: Rules, settings: Settings) -> None:
    """Raise :class:`UsageError` where a job names a method that it cannot use, or iterations where there are none."""
    if wanted.method is None:
        return
    usable = {found.name: found for found in methods(settings) if found.usable}
    if wanted.method not in usable:
        raise UnknownNameError("usable method", wanted.method, usable)
    if wanted.iterations is not None and usable[wanted.method].iterations is None:
        raise UsageError(f"{wanted.method} is not iterative", where="iterations", fix="Leave them out")


def _summary(found: Entry, settings: Settings) -> dict[str, Any]:
    card, folder = found.card, weights_for(found.name, settings.weights) or shipped(found.name)
    stored = {} if folder is None else load_card(folder)
    trained = {param.name: param.default for param in found.params} | stored.get("params", {})
    return {
        "name": found.name,
        "subject": found.subject,
        "kind": found.kind,
        "title": card.title,
        "paper": card.paper,
        "year": card.year,
        "task": card.task,
        "good_at": card.good_at,
        "speed": card.speed,
        "weight_bytes": stored["files"][WEIGHTS]["bytes"] if stored else None,
        "usable": card.task in TASKS and bool(stored),
        "iterations": trained.get("iterations"),
    }
