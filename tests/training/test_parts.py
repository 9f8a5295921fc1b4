"""Order of the data, course of the learning rate, averaging of the weights."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy import Noise, same, trainer

from efface.training.optim import Ema, lr_factor, optimizer
from efface.training.order import batches
from efface.training.recipe import Train


def test_batches_depend_on_their_number_alone():
    whole = list(batches(Noise(), range(6), seed=3, count=2))
    late = list(batches(Noise(), range(4, 6), seed=3, count=2))
    assert all(map(same, whole[4:], late))
    assert not same(whole[0], next(batches(Noise(), range(6), seed=4, count=2)))


def test_workers_change_nothing_and_end_when_closed():
    data = batches(Noise(), range(100), seed=3, count=2, workers=2)
    for number in range(5):
        assert same(next(data), Noise().batch(3, number, 2))
    data.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("schedule", "warmup", "values"),
    [
        ("constant", 0.0, {0: 1, 99: 1}),
        ("constant", 0.1, {0: 1 / 11, 9: 10 / 11, 10: 1, 99: 1}),
        ("cosine", 0.0, {0: 1, 50: 0.5, 100: 0}),
        ("cosine", 0.2, {0: 1 / 21, 20: 1, 60: 0.5, 100: 0}),
        ("onecycle", 0.3, {0: 1 / 25, 15: 0.52, 30: 1, 99: 1 / 250_000}),
        ("onecycle", 0.0, {0: 1, 99: 1 / 250_000}),
        ("onecycle", 1.0, {0: 1 / 25, 50: 0.52}),
        ("steps", 0.0, {0: 1, 49: 1, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01}),
        ("steps", 0.1, {0: 1 / 11, 10: 1, 50: 0.1}),
    ],
)
def test_learning_rate_at_key_steps(schedule, warmup, values):
    found = {step: lr_factor(schedule, step, 100, warmup, drops=(0.5, 0.75)) for step in values}
    assert found == pytest.approx(values, abs=1e-9)


@given(
    st.sampled_from(["constant", "cosine", "onecycle", "steps"]), st.integers(1, 200), st.floats(0, 1), st.floats(0, 1)
)
def test_learning_rate_stays_in_bounds(schedule, steps, warmup, share):
    assert 0 < lr_factor(schedule, int(share * (steps - 1)), steps, warmup) <= 1


def test_onecycle_is_the_one_of_torch():
    steps, lr = 40, 0.1
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    course = torch.optim.lr_scheduler.OneCycleLR(theirs, lr, steps, pct_start=0.25, div_factor=25, final_div_factor=1e4)
    assert course.get_last_lr()[0] == pytest.approx(lr * lr_factor("onecycle", 0, steps, 0.25))
    theirs.step()
    for _ in range(steps - 1):
        course.step()
    assert course.get_last_lr()[0] == pytest.approx(lr * lr_factor("onecycle", steps - 1, steps, 0.25))


def test_average_follows_its_formula_and_copies_counters():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    ema, wanted = Ema({"w": values[0], "n": torch.tensor(0)}, decay=0.3), float(values[0])
    for t, value in enumerate(values[1:]):
        decay = min(0.3, (1 + t) / (10 + t))
        wanted = decay * wanted + (1 - decay) * float(value)
        ema.update({"w": value, "n": torch.tensor(t)}, t)
    assert float(ema.state["w"]) == pytest.approx(wanted)
    assert int(ema.state["n"]) == 2
    assert float(values[0]) == 1.0  # the average has its own memory


def test_decay_spares_biases_and_scales():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    groups = optimizer(list(net.parameters()), Train(weight_decay=0.1)).param_groups
    assert {(g["weight_decay"], p.ndim) for g in groups for p in g["params"]} == {(0.1, 4), (0.0, 1)}


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_looks_ahead_only_if_told(nesterov):
    weight = nn.Parameter(torch.ones(1, 1))
    settings = Train(optimizer="sgd", betas=(0.5, 0.9), lr=1.0, nesterov=nesterov)
    weight.grad = torch.ones(1, 1)
    optimizer([weight], settings).step()
    assert weight.item() == (1 - 1.5 if nesterov else 0)


def test_frozen_weights_stay_out_of_the_optimiser():
    t = trainer()
    assert all(p.requires_grad for ps in t.parameters.values() for p in ps)
