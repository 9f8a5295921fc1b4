"""Run tasks in worker processes, within bounds of memory, time and number, and end them when told to."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any, Literal, Protocol

import psutil

from efface.app.serving.refusing import RequestError
from efface.app.serving.worker import Task, work
from efface.errors import EffaceError

State = Literal["waiting", "running", "done", "failed", "cancelled"]
PATIENCE = 0.05
"""Seconds between looks at a running task's memory, time and wish to be cancelled."""


class Follower(Protocol):
    """Whoever wants to be told that a ticket ended."""

    def __call__(self, ticket: Ticket) -> None:
        """Be told."""


def _nobody(ticket: Ticket) -> None:
    pass


@dataclass(eq=False)
class Ticket:
    """A task that was taken in, as it stands."""

    task: Task
    seconds: float
    """How long it may run."""
    ended: Follower = _nobody
    """Called once when it ended, before ``future`` tells."""
    state: State = "waiting"
    progress: float = 0.0
    doing: str = "waiting"
    error: EffaceError | None = None
    value: Any = None
    stop: bool = False
    future: Future[Any] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # whoever awaits it cannot cancel it by going away

    @property
    def over(self) -> bool:
        """Whether it ended."""
        return self.state in ("done", "failed", "cancelled")

    def finish(self, state: State, value: Any = None, error: EffaceError | None = None) -> None:
        """End as ``state``."""
        self.value, self.error, self.doing = value, error, state
        self.progress = 1.0 if state == "done" else self.progress
        self.state = state  # last: whoever sees the state finds the rest
        self.ended(self)
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


class Worker:
    """One process that runs tasks, one after another."""

    def __init__(self, threads: int) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, threads), daemon=True, name="efface-worker")
        self.process.start()
        theirs.close()  # so that its end is noticed here

    @property
    def memory(self) -> int:
        """Bytes that the process holds in memory."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def kill(self) -> None:
        """End the process, which gives its memory back at once."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Pool:
    """Some workers and a bounded line of tasks for them; where a worker died, another starts."""

    def __init__(self, workers: int, *, max_waiting: int, memory: float, seconds: float) -> None:
        self.max_waiting, self.memory, self.seconds = max_waiting, memory, seconds
        self.workers: list[Worker | None] = [None] * workers
        self._change, self._closed = threading.Condition(), False
        self._waiting: deque[Ticket] = deque()
        self._threads = [threading.Thread(target=self._serve, args=(i,), daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task, ended: Follower = _nobody, *, seconds: float = math.inf) -> Ticket:
        """Take a task in; a 429 where too many wait. It may run for ``seconds``, and no longer than all may."""
        ticket = Ticket(task, min(seconds, self.seconds), ended)
        with self._change:
            if self._closed or len(self._waiting) >= self.max_waiting:
                raise RequestError(429, f"{len(self._waiting)} jobs are waiting already", fix="Try again in a moment")
            self._waiting.append(ticket)
            self._change.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a task that waits or runs; one that ended stays as it is."""
        with self._change:
            ticket.stop = True
            if ticket not in self._waiting:
                return
            self._waiting.remove(ticket)
        ticket.finish("cancelled", error=_cancelled())

    def close(self) -> None:
        """Cancel everything and end the workers."""
        with self._change:
            self._closed = True
            waiting = [*self._waiting]
            self._change.notify_all()
        for ticket in waiting:
            self.cancel(ticket)
        for thread in self._threads:
            thread.join()

    def _serve(self, place: int) -> None:
        while not self._closed:
            with contextlib.suppress(OSError):
                self._ready(place)  # before there is anything to do, so that no task waits for it
            if (ticket := self._next()) is not None:
                ticket.finish(*self._outcome(place, ticket))
        if (worker := self.workers[place]) is not None:
            worker.kill()

    def _ready(self, place: int) -> Worker:
        """Return the worker of a place; one that died has a successor."""
        worker = self.workers[place]
        if worker is None or not worker.process.is_alive():
            worker = self.workers[place] = Worker(max(1, (os.cpu_count() or 1) // len(self.workers)))
        return worker

    def _next(self) -> Ticket | None:
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            ticket = self._waiting.popleft()
            ticket.state, ticket.doing = "running", "starting"
            return ticket

    def _outcome(self, place: int, ticket: Ticket) -> tuple[State, Any, EffaceError | None]:
        try:
            return self._follow(self._ready(place), ticket)
        except OSError as error:
            return "failed", None, EffaceError(f"no process could start ({error.strerror})", fix="Try again")

    def _follow(self, worker: Worker, ticket: Ticket) -> tuple[State, Any, EffaceError | None]:
        deadline = time.monotonic() + self.seconds
        with contextlib.suppress(OSError, EOFError):  # the process died
            worker.pipe.send(ticket.task)
            while True:
                if wait([worker.pipe], PATIENCE):
                    kind, *values = worker.pipe.recv()
                    if kind == "done":
                        return "done", values[0], None
                    if kind == "failed":
                        return "failed", None, values[0]
                    if kind == "begun":  # until now the process may have been starting
                        deadline = time.monotonic() + ticket.seconds
                    else:
                        ticket.progress, ticket.doing = values
                if ticket.stop or self._closed:
                    worker.kill()
                    return "cancelled", None, _cancelled()
                if (reason := self._exceeded(worker, ticket, deadline)) is not None:
                    worker.kill()
                    return "failed", None, reason
        worker.kill()
        return "failed", None, EffaceError("the process that did it was killed, perhaps for memory", fix="Try again")

    def _exceeded(self, worker: Worker, ticket: Ticket, deadline: float) -> EffaceError | None:
        if worker.memory > self.memory:
            what = f"it took more than {self.memory / 1e6:.0f} MB of memory"
            return RequestError(422, what, fix="Start the server with more --memory, or give a smaller picture")
        if time.monotonic() > deadline:
            what = f"it took more than {ticket.seconds:g} s"
            return RequestError(422, what, fix="Give it less to do, or take a quicker method")
        return None


def _cancelled() -> RequestError:
    return RequestError(409, "was cancelled")
