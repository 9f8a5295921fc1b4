"""Calls are timed in turns, and layers by all their calls in one of the model's."""

import itertools

import pytest
import torch
from torch import nn

from efface.errors import UsageError
from efface.parts import timing
from efface.parts.timing import WARM, Stopwatch, Timing, interleave, using


class Twice(nn.Module):
    """Calls one layer twice, one once, and one never."""

    def __init__(self):
        super().__init__()
        self.often, self.once, self.never = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.once(self.often(self.often(x)))


def test_interleaving_takes_turns_and_leaves_out_the_first_rounds():
    order, shares = [], []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = interleave(calls, seconds=0, least=4, done=shares.append)
    assert [taken.runs for taken in timings.values()] == [4, 4, 4]
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert len(rounds) == 4 + WARM
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len(set(map(tuple, rounds))) > 1  # whoever always followed the same call would find the same caches
    assert shares[-1] == 1
    assert shares == sorted(shares)


def test_interleaving_goes_on_while_there_is_time_and_stops_at_the_most(monkeypatch):
    monkeypatch.setattr(timing.time, "perf_counter", itertools.count().__next__)  # a second passes at each look
    calls = {"a": lambda: None}
    assert interleave(calls, seconds=0, least=5)["a"] == Timing(1, 1, 1, 5)
    assert 20 < interleave(calls, seconds=100, least=5)["a"].runs < 100
    assert interleave(calls, seconds=10**6, least=5, most=30)["a"].runs == 30


def test_a_timing_is_the_median_with_its_quartiles():
    assert Timing.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Timing(3.0, 2.0, 4.0, 5)


def test_a_stopwatch_adds_the_calls_of_a_layer_and_lets_go_of_the_model(monkeypatch):
    net, x = Twice(), torch.zeros(1, 2)
    with Stopwatch(net, dict(net.named_children())) as watch:
        monkeypatch.setattr(timing.time, "perf_counter", itertools.count().__next__)
        for _ in range(WARM + 3):
            net(x)
    monkeypatch.undo()
    net(x)
    assert watch.timings() == {"often": Timing(2, 2, 2, 3), "once": Timing(1, 1, 1, 3)}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_threads_are_set_for_a_while():
    before = torch.get_num_threads()
    with using(before + 1):
        assert torch.get_num_threads() == before + 1
    with using(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
    with pytest.raises(UsageError, match="0 threads"), using(0):
        pass
