"""Run jobs one after another, in processes, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from efface.extras import need

Progress = Callable[[float, str], None]
"""Told how much of a job is done, in [0, 1], and what goes on."""
KILLED = "the process that worked on it was killed, perhaps for memory. Lower --memory or --workers"
LOST = "its process on the cluster was lost: killed, perhaps for memory, or without efface. See the logs of Ray"


class Job(Protocol):
    """What can be run elsewhere, and always returns."""

    def run(self, tell: Progress = ..., /) -> Any:
        """Do it, and return what became of it; nothing is raised. ``tell`` is told how far it is."""

    def failed(self, reason: str) -> Any:
        """Return the same for a job that could not end because of ``reason``."""


Engine = Callable[[Sequence[Job], int, Progress], Generator[Any]]
"""Runs jobs, some at a time, and yields what became of each as it ends. Closed early, it stops them. It tells how far
the job at work is where there is one at a time."""


def local(jobs: Sequence[Job], workers: int, tell: Progress) -> Generator[Any]:
    """Run ``jobs`` in as many processes as there are ``workers``, which share the cores, or in this one."""
    if workers == 1 or len(jobs) < 2:
        yield from (job.run(tell) for job in jobs)
        return
    tell(0.0, "starting")
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting, idle, busy = deque(jobs), list[_Worker](), dict[_Worker, Job]()
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else _Worker(threads)
                busy[worker] = waiting.popleft()
                with contextlib.suppress(OSError):  # if it died meanwhile, that is noticed below
                    worker.pipe.send(busy[worker])
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                job = busy.pop(worker)
                try:
                    ended = worker.pipe.recv()
                    idle.append(worker)
                except (EOFError, OSError):
                    worker.end()
                    ended = job.failed(KILLED)
                yield ended
    finally:
        for worker in (*idle, *busy):
            worker.end()


def ray(jobs: Sequence[Job], workers: int, tell: Progress) -> Generator[Any]:
    """Run ``jobs`` through Ray Data, on the cluster that RAY_ADDRESS names or on a local one of ``workers``.

    Every machine must have efface and see the files under the same paths.
    """
    ray = need("ray", extra="cluster", job="--engine ray")
    data = need("ray.data", extra="cluster", job="--engine ray")
    tell(0.0, "starting")
    here = not ray.is_initialized()
    if here:
        cores = None if os.environ.get("RAY_ADDRESS") else workers
        ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # failures are told in what is yielded
    context, folder, left = data.DataContext.get_current(), os.getcwd(), dict(enumerate(jobs))
    context.enable_progress_bars, context.max_errored_blocks = False, -1  # a lost process costs its own job alone

    def run(row: dict[str, Any]) -> dict[str, Any]:
        os.chdir(folder)  # names of files may be relative
        return {"number": row["number"], "ended": row["job"].run()}

    try:
        rows = [{"number": number, "job": job} for number, job in left.items()]
        spread = data.from_items(rows, override_num_blocks=len(rows))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of max_retries, without which a deadly job never ends
            ended = spread.map(run, num_cpus=1, max_retries=0)
        for row in ended.iter_rows():
            del left[row["number"]]
            yield row["ended"]
        yield from (job.failed(LOST) for job in left.values())
    finally:
        if here:
            ray.shutdown()


ENGINES: dict[str, Engine] = {"local": local, "ray": ray}


class _Worker:
    """A process that runs one job after another. One that is killed takes no other job along."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with running threads may hang
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, threads), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends with the process

    def end(self) -> None:
        """Stop, in the midst of a job if need be."""
        self.pipe.close()
        self.process.terminate()
        self.process.join(5)
        self.process.kill()
        self.process.join()


def _work(pipe: Connection, threads: int) -> None:
    """Run the jobs that come through ``pipe`` until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C ends the run, and that ends this
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unlike the default, this clears temporary files away
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # libraries read it when they start their own threads
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(pipe.recv().run())
