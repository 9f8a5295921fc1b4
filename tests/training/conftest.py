from __future__ import annotations

import pytest
from toy import Noise, Toy, recipe

from efface.core.run import Run
from efface.training.loop import train


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Spare every test the time that matplotlib takes."""
    monkeypatch.setattr("efface.training.loop.plot_losses", lambda lines, path: True)


@pytest.fixture
def fit(tmp_path):
    """Train the toy into a folder, or on from what is there; end after ``until`` steps of this call."""

    def fit(name="run", *, method=None, source=None, until=None, resume=False, **settings):
        plan = recipe(**settings)
        run = Run.open(tmp_path / name) if resume else Run.create(tmp_path / name, plan.as_dict())
        calls = iter(range(1, 1000))
        finished = train(
            method or Toy(), source or Noise(), plan, run,
            device="cpu", resume=resume, stop=lambda: next(calls) == until,
        )  # fmt: skip
        assert finished == run.finished == (until is None)
        return run

    return fit
