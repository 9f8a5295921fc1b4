"""Hold what serves the requests: the pictures, the jobs, and the workers for both."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import psutil
from fastapi import Depends, Request

from efface.app.serving.jobs import Jobs
from efface.app.serving.pool import Pool
from efface.app.serving.settings import Settings
from efface.app.serving.store import Store

LOOKERS, PATIENT = 2, 64
"""Workers that only look at pictures, so that looking never waits for cleaning, and how many may wait for them."""


class Service:
    """Everything behind the routes; all that it writes lies in one temporary folder, which goes when it closes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        _sweep()
        self.root = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-")).resolve()
        most = {"memory": 1.5 * settings.memory, "seconds": settings.seconds}
        self.looking = Pool(LOOKERS, max_waiting=PATIENT, **most)
        self.cleaning = Pool(settings.workers, max_waiting=settings.max_waiting, **most)
        self.pictures = Store(self.root, settings, self.looking)
        self.jobs = Jobs(self.pictures, settings, self.cleaning)

    def stop(self) -> None:
        """End the workers: what waits for them is answered, and nothing more is taken in."""
        self.cleaning.close()
        self.looking.close()

    def close(self) -> None:
        """Stop, and remove all files."""
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)


def _prefix() -> str:
    return f"efface-{platform.node()}-"


def _sweep() -> None:
    """Remove what servers of this computer left when they were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        number = left.name.removeprefix(_prefix()).partition("-")[0]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _service(request: Request) -> Service:
    return request.app.state.service


Here = Annotated[Service, Depends(_service)]
