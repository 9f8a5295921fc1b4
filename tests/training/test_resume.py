"""A training that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from toy import Noise, Spoilt, Toy, recipe, same, weights

from efface.core.run import Run
from efface.errors import WeightsError
from efface.training.log import read_log
from efface.training.loop import train

VARIANTS = {
    "plain": {},
    "ema": {"ema": 0.9},
    "accumulate": {"accumulate": 3, "clip": 0.1},
    "cosine": {"schedule": "cosine", "warmup": 0.2, "weight_decay": 0.1},
    "onecycle sgd": {"schedule": "onecycle", "warmup": 0.3, "optimizer": "sgd"},
    "bfloat16": {"dtype": "bfloat16"},
    "workers": {"workers": 1},
    "phases": {"method": Toy(critic=True), "ema": 0.99, "accumulate": 2},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_stopped_training_goes_on_exactly(fit, settings):
    whole = fit("whole", **settings)
    fit("parts", until=7, **settings)
    torch.rand(17)  # what else happens in the process does not matter
    parts = fit("parts", resume=True, **settings)
    assert same(weights(whole), weights(parts))
    assert read_log(whole.log)[-1]["loss" + ("/maker" if "method" in settings else "") + "/total"]


def test_crash_between_checkpoints_repeats_the_lost_steps(fit):
    def crash(batch):
        raise RuntimeError("power cut")

    whole = fit("whole", log_every=1)
    with pytest.raises(RuntimeError, match="power cut"):
        fit("parts", source=Spoilt([13], crash), log_every=1, checkpoint_minutes=0)
    run = Run(whole.path.parent / "parts")
    with run.log.open("a") as file:  # lines of steps whose state was not saved, and a torn one
        file.write(json.dumps({"step": 14, "loss/total": 99.0}) + '\n{"step": 15, "lo')
    fit("parts", resume=True, log_every=1)
    assert same(weights(whole), weights(run))
    lines = read_log(run.log)
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[13]["loss/total"] == read_log(whole.log)[13]["loss/total"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_the_step_saves_and_leaves(fit, number, tmp_path):
    class Interrupted(Noise):
        def batch(self, seed, step, count):
            if step == 3:
                os.kill(os.getpid(), number)
            return super().batch(seed, step, count)

    before = signal.getsignal(number)
    plan = recipe()
    run = Run.create(tmp_path / "parts", plan.as_dict())
    assert not train(Toy(), Interrupted(), plan, run, device="cpu")
    assert signal.getsignal(number) == before
    state = run.load_state()
    assert state is not None
    assert state[1]["step"] == 4
    assert same(weights(fit("parts", resume=True)), weights(fit("whole")))


def test_only_the_newest_whole_state_is_kept_and_read(fit):
    run = fit(until=5, checkpoint_minutes=0)
    (torn := run.path / "state" / "000000009").mkdir()
    (torn / "weights.safetensors").write_bytes(b"torn")
    state = run.load_state()
    assert state is not None
    assert state[1]["step"] == 5
    fit(resume=True)
    assert [p.name for p in (run.path / "state").iterdir()] == ["000000020"]


def test_damaged_state_is_refused(fit):
    run = fit(until=5)
    file = run.path / "state" / "000000005" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(WeightsError):
        fit(resume=True)


def test_nothing_in_a_run_is_pickled(fit):
    run = fit(method=Toy(critic=True), ema=0.9, sample_every=10)
    files = [p for p in run.path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".jsonl", ".png", ".safetensors"}
    assert not [p for p in files if p.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")]
