"""What every method promises."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from typing import Any

from efface.core.card import Card, Tiling
from efface.core.catalogue import Entry, Param
from efface.core.claim import Claim
from efface.core.contract.promise import ContractError, require
from efface.errors import UsageError


def _docstring_has_its_form(found: Entry) -> None:
    first, _, rest = found.doc.partition("\n")
    require(first.endswith(".") and len(first) <= 120, f"the first line is no short sentence: {first!r}")
    require(not rest or rest.startswith("\n"), "the first line is not set off by an empty line")
    require("\nLeft out:" in rest, "no line begins with `Left out:`", "Say there what of the paper is not here")


def _card_is_true(found: Entry) -> None:
    card = found.card
    require(found.load().card == card, "the card of the class is not the one its source states")
    require(Card.from_dict(json.loads(json.dumps(card.as_dict()))) == card, "the card does not survive JSON")
    require(bool(card.title and card.paper and card.good_at), "title, paper or good_at is empty")
    require(1980 <= card.year <= 2100, f"{card.year} is no year")
    require(" from " in card.task, f"the task {card.task!r} is not of the form `what from what`")
    require(card.tiling in Tiling.__args__, f"tiling {card.tiling!r} is unknown")  # type: ignore[attr-defined]
    require(card.multiple >= 1 and card.radius >= 0 and card.smallest >= 1, "multiple, radius or smallest is too low")


def _hyper_parameters_are_described(found: Entry) -> None:
    cls = found.load()
    fields = [
        Param(f.name, f.default, f.metadata.get("help", ""), *(f.metadata.get(k) for k in ("low", "high", "choices")))
        for f in dataclasses.fields(cls)
    ]
    require(tuple(fields) == found.params, "the class has other hyper-parameters than its source declares by `param`")
    for param in fields:
        require(bool(param.help.strip()), f"{param.name} has no help")
    method = cls()
    require(cls.from_params(json.loads(json.dumps(method.params()))) == method, "the defaults do not survive JSON")  # type: ignore[attr-defined]


def _bad_hyper_parameters_are_refused(found: Entry) -> None:
    bad: list[dict[str, Any]] = [{"no_such_parameter": 1}]
    for p in found.params:
        wrong: list[Any] = [p.low - 1] if p.low is not None else []
        wrong += [p.high + 1] if p.high is not None else []
        wrong += ["no such choice"] if p.choices else []
        bad += [{p.name: (value,) if isinstance(p.default, tuple) else value} for value in wrong]
        bad += [{p.name: object()}] if p.default is not None else []
    for params in bad:
        try:
            found.load().from_params(params)  # type: ignore[attr-defined]
        except UsageError:
            continue
        raise ContractError(f"{params} is taken")


def _claim_is_there(found: Entry) -> None:
    if not found.module.startswith("efface."):
        return  # other packages keep their evidence where they like
    module = f"efface.claims.{found.stem}"
    require(importlib.util.find_spec(module) is not None, f"there is no {module}")
    claim = importlib.import_module(module)
    require(isinstance(getattr(claim, "CLAIM", None), Claim), f"{module} has no CLAIM")
    require(callable(getattr(claim, "check", None)), f"{module} has no check(context)")


OF_ALL = (
    _docstring_has_its_form,
    _card_is_true,
    _hyper_parameters_are_described,
    _bad_hyper_parameters_are_refused,
    _claim_is_there,
)
