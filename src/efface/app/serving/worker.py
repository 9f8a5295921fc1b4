"""What a worker process does: run the tasks that come through its pipe, and say how they get on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

from efface.errors import EffaceError


class Task(Protocol):
    """Work that can be sent to another process."""

    def run(self, tell: Callable[[float, str], None]) -> Any:
        """Do it; ``tell`` is told how much is done, 0 to 1, and what goes on."""


def work(pipe: Connection, threads: int) -> None:
    """Run tasks until the other end of ``pipe`` is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C ends the server, and that ends this
    os.environ["OMP_NUM_THREADS"] = str(threads)  # libraries read it before they start their own threads
    try:
        while True:
            task = pipe.recv()
            pipe.send(("begun",))
            pipe.send(_outcome(task, lambda done, what: pipe.send(("told", done, what))))
    except (EOFError, OSError):
        return


def _outcome(task: Task, tell: Callable[[float, str], None]) -> tuple[str, Any]:
    try:
        return "done", task.run(tell)
    except EffaceError as error:
        return "failed", error
    except MemoryError:
        return "failed", EffaceError("there was not enough memory", fix="Give a smaller picture")
    except OSError as error:
        return "failed", EffaceError(f"it stopped: {error.strerror or error}", fix="Check the disk")
    except Exception as error:  # a fault of ours must not end the worker
        return "failed", EffaceError(f"unexpected {type(error).__name__}: {error}", fix="Please report this")
