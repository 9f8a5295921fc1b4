"""Hold the jobs: which picture, by which rules, how far, and where the result lies."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from efface.app.serving.catalogue import check_method, weights_for
from efface.app.serving.choosing import Means, resolve, searching
from efface.app.serving.copying import copies
from efface.app.serving.pool import Pool, Ticket
from efface.app.serving.refusing import RequestError, problem_of
from efface.app.serving.rendering import Rendition
from efface.app.serving.schemas import Job, Result, Rules
from efface.app.serving.settings import Settings
from efface.app.serving.store import Entry, Store
from efface.app.serving.tasks import Clean, Made

KEPT = 200
"""Jobs that ended and are remembered."""
ITERATES = 4_000_000
"""Pixels up to which a picture's iterates are kept."""


@dataclass(eq=False)
class Record:
    """A job."""

    id: str
    entry: Entry
    wanted: Rules
    means: Means
    folder: Path
    ticket: Ticket

    def describe(self) -> Job:
        """Return what the API says of the job."""
        ticket, state = self.ticket, self.ticket.state  # the state first: what belongs to it is there already
        problem = problem_of(self.entry.named(ticket.error)) if ticket.error and state == "failed" else None
        return Job(
            id=self.id,
            picture=self.entry.id,
            state=state,
            progress=ticket.progress,
            doing=ticket.doing,
            problem=problem,
            result=self._result(ticket.value) if state == "done" else None,
        )

    def place(self, iteration: int | None = None) -> Path:
        """Return the folder of the result, or of an iterate; a refusal where there is none."""
        if self.ticket.state != "done":
            raise RequestError(409, f"there is no result: the job is {self.ticket.state}")
        if iteration is None:
            return self.folder
        if iteration > self.ticket.value.iterations:
            raise RequestError(404, f"there is no iterate {iteration}", fix=f"{self.ticket.value.iterations} are there")
        return self.folder / str(iteration)

    def result(self, iteration: int | None = None) -> Path:
        """Return the file of the result, or of an iterate; a refusal where there is none."""
        return self.place(iteration) / f"result{self.entry.suffix}"

    def rendition(self, iteration: int | None = None) -> Rendition:
        """Return the rendition of the result, which has the form of the picture's own."""
        own = self.entry.admitted.rendition
        return Rendition(self.place(iteration) / "view", own.height, own.width, own.channels, own.icc)

    def _result(self, made: Made) -> Result:
        same = copies(self.wanted, self.entry.name, self.means)
        scores = {name: made.cleaned["scores"][name] for name in ("masked", "flat", "rim", "seconds")}
        return Result(
            method=made.cleaned["method"],
            residual=made.residual,
            iterations=made.iterations,
            notes=made.cleaned["notes"],
            command=same.command,
            python=same.python,
            needs_mask=same.needs_mask,
            **scores,
        )


class Jobs:
    """The jobs, by their random names. ``pool`` does them."""

    def __init__(self, store: Store, settings: Settings, pool: Pool) -> None:
        self.store, self.settings, self.pool = store, settings, pool
        self._records: dict[str, Record] = {}

    def get(self, id: str) -> Record:
        """Return the job called ``id``; a 404 where there is none."""
        record = self._records.get(id)
        if record is None:
            raise RequestError(404, "there is no such job")
        return record

    def all(self) -> list[Record]:
        """Return the jobs in the order they came."""
        return [*self._records.values()]

    def begin(self, entry: Entry, wanted: Rules) -> Record:
        """Begin to clean a picture."""
        check(entry, wanted)
        check_method(wanted, self.settings)
        self.store.check_room()
        folder = self.store.folder("jobs")
        mask = Path(shutil.copy(entry.mask, folder / "given.png")) if wanted.mask else None
        means = self.means(wanted, mask)
        iterates = entry.size[0] * entry.size[1] <= ITERATES
        task = Clean(entry.source, folder, entry.suffix, wanted, entry.texts, means, iterates)
        try:
            ticket = self.pool.submit(task, lambda ticket: self._ended(entry, folder, ticket))
        except RequestError:
            shutil.rmtree(folder)
            raise
        record = self._records[folder.name] = Record(folder.name, entry, wanted, means, folder, ticket)
        for old in [r for r in self.all() if r.ticket.over][:-KEPT]:
            self.remove(old)
        return record

    def means(self, wanted: Rules, mask: Path | None) -> Means:
        """Return what the server adds to the rules."""
        return Means(self.settings.memory, weights_for(wanted.method, self.settings.weights), mask)

    def remove(self, record: Record) -> None:
        """Forget a job; one that goes on is cancelled."""
        self._records.pop(record.id, None)
        self.pool.cancel(record.ticket)
        if record.ticket.over:
            shutil.rmtree(record.folder, ignore_errors=True)

    def _ended(self, entry: Entry, folder: Path, ticket: Ticket) -> None:
        if ticket.state != "done":
            shutil.rmtree(folder, ignore_errors=True)
        elif entry.texts is None:
            entry.texts = ticket.value.texts


def check(entry: Entry, wanted: Rules) -> None:
    """Refuse rules that cannot be kept, before anything is computed."""
    searching(wanted)
    if wanted.mask and entry.masked is None:
        raise RequestError(409, "the picture has no painted mask", fix="Put one first")
    if (wanted.take or wanted.leave) and entry.texts is None:
        raise RequestError(409, "the picture's texts are not known yet", fix="Get its texts first")
    resolve(wanted.model_copy(update={"texts": False}), entry.texts or [], Means(0))
