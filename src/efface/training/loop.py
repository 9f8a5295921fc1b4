"""Train a network: the one loop that every method goes through, over accelerate.

What a step does depends on the recipe, the step's number and the weights, on nothing else: batches, draws and learning
rates are pure functions of (seed, step). So a run that was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator

from efface.core.method import Network
from efface.core.run import Run
from efface.training.log import Log, plot_losses, progress_bar, read_log, sample_sheet
from efface.training.order import Source
from efface.training.recipe import Recipe
from efface.training.trainer import Trainer, accelerator, own_randomness


def train(
    method: Network,
    source: Source,
    recipe: Recipe,
    run: Run,
    *,
    device: str = "auto",
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = False,
) -> bool:
    """Train ``method`` on ``source`` into ``run``; return whether the last step was reached.

    Training ends early, with its state saved, after the step in which ``stop`` returns true or SIGINT or SIGTERM
    arrives; with ``resume`` it goes on from the newest state.

    Raises
    ------
    EffaceError
        If a gradient is not finite in :data:`~efface.training.trainer.PATIENCE` steps in a row.
    """
    settings = recipe.train
    trainer = Trainer(method, settings, accelerator(settings, device))
    main = trainer.accelerator.is_main_process
    saved = run.load_state() if resume else None
    if saved is not None:
        trainer.load(*saved)
    elif settings.init:
        trainer.start_from(settings.init)
    log = Log(run.log, trainer.step) if main else None

    with (
        contextlib.closing(trainer.batches(source)) as data,
        _signals() as interrupted,
        own_randomness(trainer.device),
        progress_bar(progress and main) as bar,
    ):
        task = bar.add_task(method.name, total=settings.steps, completed=trainer.step, rate=0.0, loss=float("nan"))
        stopping, written_step = False, trainer.step
        written_at = saved_at = time.monotonic()
        while trainer.step < settings.steps and not stopping:
            losses = trainer.advance([next(data) for _ in range(settings.accumulate)])
            stopping = trainer.agree(stop() or interrupted.is_set())
            last, now = stopping or trainer.step == settings.steps, time.monotonic()
            bar.update(task, completed=trainer.step)
            if log is None:
                continue
            log.add(losses)
            if last or trainer.step % settings.log_every == 0:
                rate = (trainer.step - written_step) * trainer.samples_per_step / max(now - written_at, 1e-9)
                line = log.write(
                    trainer.step, seconds=now - written_at, samples_per_second=rate, skipped=trainer.skipped
                )
                bar.update(task, rate=rate, loss=line.get(trainer.headline, float("nan")))
                written_step, written_at = trainer.step, now
            if settings.sample_every and (last or trainer.step % settings.sample_every == 0):
                sample_sheet(method, *trainer.samples(source), run.samples / f"{trainer.step:06d}.png")
            if last or now - saved_at >= 60 * settings.checkpoint_minutes:
                run.save_state(trainer.step, *trainer.state())
                saved_at = now

    finished = trainer.step == settings.steps
    if log is not None:
        lines = read_log(run.log)
        if not plot_losses(lines, run.path / "loss.png"):
            log.write(trainer.step, note="no loss.png without matplotlib: pip install 'efface[plots]'")
        if finished:
            metrics = {k: v for k, v in lines[-1].items() if k.startswith("loss/")}
            run.save_weights(trainer.stored(), {"method": method.name, "params": method.params(), "metrics": metrics})
    trainer.accelerator.wait_for_everyone()
    return finished


def seconds_per_step(method: Network, source: Source, recipe: Recipe, *, device: str = "auto", steps: int = 2) -> float:
    """Return how long a step takes, its batches included: the mean of ``steps`` after one to warm up."""
    settings = dataclasses.replace(recipe.train, steps=max(recipe.train.steps, 1 + steps))
    trainer = Trainer(method, settings, accelerator(settings, device))
    with contextlib.closing(trainer.batches(source)) as data, own_randomness(trainer.device):
        start = 0.0
        for step in range(1 + steps):
            trainer.advance([next(data) for _ in range(settings.accumulate)])
            start = time.perf_counter() if step == 0 else start
        return (time.perf_counter() - start) / steps


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """Give an event that the first SIGINT or SIGTERM sets; a second one acts as it would have without this."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # Python delivers signals to the main thread alone
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(_number: int, _frame: object) -> None:
        event.set()
        restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        restore()
