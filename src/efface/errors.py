"""Raise errors that say what is wrong, where, and what to do about it.

Every error a user can cause is an :class:`EffaceError`. The command line prints it without a traceback and leaves with
its ``exit_code``; the Python API lets it through unchanged.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EffaceError(Exception):
    """Say ``what`` went wrong, ``where`` (a path, layer or option), and how to ``fix`` it."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, None if where is None else str(where), fix
        super().__init__(what)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        stop = "" if head.endswith("?") else "."
        return f"{head}{stop} {self.fix}" if self.fix else head

    def __reduce__(self):  # keyword arguments survive the trip between worker processes
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(kind: type[EffaceError], what: str, where: str | None, fix: str | None) -> EffaceError:
    error = kind.__new__(kind)
    EffaceError.__init__(error, what, where=where, fix=fix)
    return error


class UsageError(EffaceError):
    """The command or call itself is wrong: an option, a name, a combination."""

    exit_code = 2


class InputError(EffaceError):
    """An input was read and refused."""

    exit_code = 3


class PictureError(InputError):
    """A picture cannot be read, is not allowed, or has a form the job does not take."""


class MaskError(InputError):
    """A mask, box or region does not fit its picture."""


class WeightsError(InputError):
    """Weights are missing, damaged, of another network, or in a form that is not accepted."""


class PlanError(InputError):
    """A plan is damaged, of another model or of a newer version, or an edit does not fit."""


class DataError(InputError):
    """A data set cannot be found or does not have the expected form."""


class OutputError(EffaceError):
    """A result cannot be written: no space, no permission, name taken, a link in the way."""


class MissingExtraError(UsageError):
    """A feature needs a library that an extra installs."""


class UnknownNameError(UsageError):
    """A name is not known; close ones are suggested, or else a few of those there are."""

    def __init__(self, kind: str, name: str, known: Iterable[str], few: int = 12) -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        more = f" and {len(known) - few} more" if len(known) > few else ""
        listed = f"{', '.join(known[:few]) or 'none'}{more}"
        fix = f"Did you mean {' or '.join(close)}?" if close else f"Known: {listed}"
        super().__init__(f"no {kind} is called {name!r}", fix=fix)
