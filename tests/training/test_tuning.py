"""Training a given network: exact from any step on, what is attached, what is told, and what is left behind."""

from __future__ import annotations

import copy
import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from toy import same

from efface.errors import EffaceError, UsageError
from efface.parts.data.tasks import Task
from efface.training.optim import lr_factor
from efface.training.recipe import Train
from efface.training.trainer import PATIENCE, accelerator
from efface.training.tuning import tune

STEPS = 12
SETTINGS = {
    "adamw": Train(steps=STEPS, batch=8, lr=1e-2, schedule="cosine", warmup=0.2, weight_decay=0.1),
    "sgd": Train(
        steps=STEPS, batch=8, lr=1e-2, optimizer="sgd", nesterov=True, schedule="steps", clip=0.5, accumulate=2
    ),
}
ADAMW = SETTINGS["adamw"]


@pytest.fixture(scope="module")
def task():
    """Tell the brightest row of a picture."""
    generator = np.random.default_rng(0)
    pictures, labels = 0.6 * generator.random((150, 1, 4, 4)), generator.integers(4, size=150)
    pictures[range(150), 0, labels] += 0.4
    return Task.from_arrays((pictures[:120], labels[:120]), (pictures[120:], labels[120:]), augment=True)


@pytest.fixture
def net():
    """Every kind of state and of draw: batch statistics, dropout, no bias, a frozen layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
            nn.Linear(16, 16), nn.Linear(16, 4),
        )  # fmt: skip
    net[5].requires_grad_(False)
    return net


@pytest.mark.parametrize("train", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("middle", [0, 5, STEPS])
def test_going_on_is_exactly_as_not_having_stopped(net, task, train, middle):
    through, halved = copy.deepcopy(net), copy.deepcopy(net)
    whole = tune(through, task, train, every=4, snapshots=(middle,))
    first = tune(halved, task, train, stop=middle, snapshots=(middle,))
    assert same(first.snapshots[middle], whole.snapshots[middle])
    rest = tune(halved, task, train, start=middle, every=4, moments=first.moments[middle])
    assert same(through.state_dict(), halved.state_dict())
    assert [(p.step, p.val_loss) for p in rest.history] == [
        (p.step, p.val_loss) for p in whole.history if p.step > middle
    ]


def test_is_the_training_that_a_user_would_write(net, task):
    train = Train(steps=5, batch=8, lr=1e-2, optimizer="sgd", schedule="cosine", seed=3)
    net[3] = nn.Identity()  # a user would draw otherwise
    mine = copy.deepcopy(net)
    tune(net, task, train)
    optimizer = torch.optim.SGD([p for p in mine.parameters() if p.requires_grad], lr=train.lr, momentum=0.9)
    for step in range(train.steps):
        optimizer.param_groups[0]["lr"] = train.lr * lr_factor("cosine", step, train.steps)
        batch = task.train.batch(3, step, 8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(mine(batch["picture"]), batch["label"]).backward()
        optimizer.step()
    for k, v in mine.state_dict().items():
        torch.testing.assert_close(net.state_dict()[k], v)


def test_late_start_sees_the_data_and_rates_of_its_steps(net, task):
    seen, rates = [], []
    spy = SimpleNamespace(
        train=SimpleNamespace(batch=lambda *at: seen.append(at) or task.train.batch(*at)), loss=task.loss, name="spy"
    )

    def attach(net, optimizer):
        return optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))

    train = dataclasses.replace(ADAMW, seed=7)
    tune(net, spy, train, start=9, stop=11, attach=[attach])
    assert seen == [(7, 9, 8), (7, 10, 8)]
    assert rates == [train.lr * lr_factor("cosine", step, STEPS, 0.2) for step in (9, 10)]


def test_momentum_begins_at_zero_unless_given(net, task):
    trained = tune(net, task, ADAMW, stop=6, snapshots=(0, 6))
    fresh, going_on = copy.deepcopy(net), copy.deepcopy(net)
    tune(fresh, task, ADAMW, start=6)
    tune(going_on, task, ADAMW, start=6, moments=trained.moments[6])
    assert not same(fresh.state_dict(), going_on.state_dict())
    assert trained.moments[0] == {}
    kept = copy.deepcopy(trained.moments[6])
    tune(net, task, ADAMW, start=6, moments=trained.moments[6])
    assert same(kept, trained.moments[6])  # what was given is not trained on


@pytest.mark.parametrize(("change", "equal"), [({}, True), ({"seed": 1}, False)])
def test_seed_decides_every_byte(net, task, change, equal):
    other = copy.deepcopy(net)
    torch.manual_seed(1)
    tune(net, task, ADAMW)
    torch.manual_seed(2)
    tune(other, task, dataclasses.replace(ADAMW, **change))
    assert same(net.state_dict(), other.state_dict()) is equal


def test_it_learns_and_tells_how_it_goes(net, task):
    lines = []
    train = Train(steps=150, batch=16, lr=1e-2, schedule="cosine")
    tuned = tune(net, task, train, every=60, progress=lines.append)
    assert [point.step for point in tuned.history] == [60, 120, 150]
    assert task.score(net).accuracy > 0.6
    assert tuned.history[-1].loss < tuned.history[0].loss
    last, score = tuned.history[-1], task.score(net, "val")
    assert (last.val_accuracy, last.val_loss) == (score.accuracy, score.loss)
    assert lines[-1].startswith("step 150 of 150: loss ")
    assert tune(net, task, ADAMW).history == ()


def test_snapshots_are_copies_at_their_steps(net, task):
    first = {k: v.clone() for k, v in net.state_dict().items()}
    tuned = tune(net, task, ADAMW, snapshots={0, 3, STEPS})
    assert list(tuned.snapshots) == [0, 3, STEPS]
    assert same(tuned.snapshots[0], first)
    assert same(tuned.snapshots[STEPS], net.state_dict())
    with torch.no_grad():
        net[0].weight.zero_()
    assert tuned.snapshots[STEPS]["0.weight"].any()


class Keep:
    """Hold the weights of the last layer at zero after each step, and count the calls."""

    def __init__(self, net, optimizer):
        self.steps, self.removed = 0, False
        self.net, self.handle = net, optimizer.register_step_post_hook(self.hook)

    def hook(self, optimizer, *_):
        assert self.net[6].weight.grad is not None  # what grows weights reads it
        self.steps += 1
        with torch.no_grad():
            self.net[6].weight.zero_()

    def remove(self):
        self.handle.remove()
        self.removed = True


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_attached_acts_after_every_step_and_is_removed(net, task, fails):
    made = []

    def attach(*given):
        made.append(Keep(*given))
        return made[-1]

    def fail(net, optimizer):
        raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            tune(net, task, ADAMW, attach=[attach, fail])
    else:
        tune(net, task, ADAMW, attach=[attach, attach])
        assert not net[6].weight.any()
    assert {(keep.steps, keep.removed) for keep in made} == {(0 if fails else STEPS, True)}


def test_nothing_else_is_left_changed(net, task):
    theirs = accelerator(Train(dtype="bfloat16"), "cpu")
    net.train()
    net[1].eval()
    flags = [(m.training, [p.requires_grad for p in m.parameters(False)]) for m in net.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads()
    tune(net, task, ADAMW, every=5)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads()) == states[1:]
    assert flags == [(m.training, [p.requires_grad for p in m.parameters(False)]) for m in net.modules()]
    assert all(p.grad is None for p in net.parameters())
    assert theirs.mixed_precision == "bf16"
    frozen = copy.deepcopy(net)
    tune(net, task, ADAMW)
    assert same(frozen[5].state_dict(), net[5].state_dict())


def test_models_of_transformers_and_no_steps_at_all(net, task):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, pixel_values):
            return SimpleNamespace(logits=self.inner(pixel_values), loss=None)

    alone = copy.deepcopy(net)
    tune(Model(), task, ADAMW, every=6)
    tune(alone, task, ADAMW)
    assert same(alone.state_dict(), net.state_dict())
    assert tune(net, task, ADAMW, start=4, stop=4, snapshots=(4,)).snapshots.keys() == {4}
    assert same(alone.state_dict(), net.state_dict())


def test_gradients_that_are_not_finite_end_it(net, task):
    def spoil(net, optimizer):
        return net[6].weight.register_hook(lambda grad: grad * float("nan"))

    before = copy.deepcopy(net[6])
    with pytest.raises(EffaceError, match=f"not finite in {PATIENCE} steps") as error:
        tune(net, task, ADAMW, attach=[spoil], every=4)
    assert "arrays" in str(error.value)
    assert same(before.state_dict(), net[6].state_dict())


@pytest.mark.parametrize(
    ("options", "change", "says"),
    [
        ({"start": -1}, {}, "start, stop"),
        ({"start": 5, "stop": 4}, {}, "start, stop"),
        ({"stop": STEPS + 1}, {}, "start, stop"),
        ({"start": 5, "snapshots": (4, 5)}, {}, r"\[4\] are not among the steps 5 to 12"),
        ({}, {"ema": 0.9}, "train.ema"),
        ({}, {"init": "folder"}, "train.init"),
        ({"device": "tpu"}, {}, "not available"),
    ],
)
def test_wrong_requests_leave_the_network_alone(net, task, options, change, says):
    before = copy.deepcopy(net)
    with pytest.raises(UsageError, match=says):
        tune(net, task, dataclasses.replace(ADAMW, **change), **options)
    assert same(before.state_dict(), net.state_dict())
    assert net.training


def test_a_frozen_network_is_refused(net, task):
    with pytest.raises(UsageError, match="no weight of the network may change"):
        tune(net.requires_grad_(False), task, ADAMW)
