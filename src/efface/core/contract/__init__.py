"""Prove that a method keeps what is promised of every method.

Authors of methods, in this package and in others, call ``efface.check_method("name")`` in their tests; test runners
that show each promise by itself take :func:`checks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from efface.core.catalogue import Entry, entry
from efface.core.contract.editors import OF_EDITORS
from efface.core.contract.erasers import OF_ERASERS
from efface.core.contract.methods import OF_ALL
from efface.core.contract.networks import OF_NETWORKS
from efface.core.contract.promise import ContractError

__all__ = ["Check", "ContractError", "check_method", "checks"]


@dataclass(frozen=True)
class Check:
    """One promise, to be tried with :meth:`run`."""

    method: str
    function: Callable[[Entry], None]

    @property
    def name(self) -> str:
        """The promise in words."""
        return self.function.__name__.replace("_", " ").strip()

    def run(self) -> None:
        """Raise :class:`ContractError` unless the method keeps the promise."""
        try:
            self.function(entry(self.method))
        except ContractError as error:
            raise ContractError(error.what, where=f"{self.method}, {self.name}", fix=error.fix) from error


def check_method(method: str | type) -> None:
    """Try every promise on ``method``, a name of the catalogue or a class in it.

    Raises :class:`ContractError` at the first that is broken, and :class:`efface.errors.UnknownNameError` for a method
    that is not in the catalogue: other packages enter theirs by the entry-point group ``efface.methods``.
    """
    for check in checks(method):
        check.run()


def checks(method: str | type) -> list[Check]:
    """Return the promises that ``method`` has to keep, in the order in which they are best read."""
    found = entry(method if isinstance(method, str) else method.__module__.rpartition(".")[2])
    of_its_kind = {"Network": OF_NETWORKS, "Editor": OF_EDITORS, "Eraser": OF_ERASERS}[found.kind]
    return [Check(found.name, function) for function in (*OF_ALL, *of_its_kind)]
