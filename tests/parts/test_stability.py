"""How far apart two trainings end."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from efface.errors import InputError
from efface.parts.metrics.stability import barrier, distance, distance_per_layer
from efface.seeds import torch_generator

MASKS = {"a": torch.tensor([True, False, True]), "b": torch.tensor([[True], [False]])}


def state(a, b):
    return {"a": torch.tensor(a), "b": torch.tensor([[b], [7.0]]), "bias": torch.zeros(2)}


def test_distance_and_angle_are_those_of_the_live_weights_as_one_vector():
    found = distance(state([1.0, 5.0, 0.0], 0.0), state([0.0, -5.0, 1.0], 0.0), MASKS)
    assert found.l2 == pytest.approx(math.sqrt(2))
    assert found.angle == pytest.approx(90)


def test_each_layer_has_its_own():
    layers = distance_per_layer(state([1.0, 5.0, 0.0], 2.0), state([1.0, -5.0, 1.0], 2.0), MASKS)
    assert layers["a"].angle == pytest.approx(45)
    assert (layers["b"].l2, layers["b"].angle) == (0, 0)


def test_a_layer_without_live_weights_is_left_out():
    masks = MASKS | {"b": torch.zeros(2, 1, dtype=torch.bool)}
    assert list(distance_per_layer(state([1.0] * 3, 1.0), state([2.0] * 3, 1.0), masks)) == ["a"]


@settings(max_examples=20)
@given(st.integers(0, 100), st.floats(0.0, 100.0))
def test_noise_on_pruned_weights_changes_nothing(seed, size):
    first, second = state([1.0, 5.0, 2.0], 3.0), state([2.0, -5.0, 1.0], 4.0)
    noisy = {name: t.clone() for name, t in second.items()}
    for name, mask in MASKS.items():
        noise = torch.randn(t_shape := noisy[name].shape, generator=torch_generator(seed, name))
        noisy[name] += torch.where(mask, torch.zeros(t_shape), size * noise)
    assert distance(first, second, MASKS) == distance(first, noisy, MASKS)


@pytest.mark.parametrize("degrees", [1e-7, 0.01, 60.0, 179.999])
def test_angles_of_every_size_are_told(degrees):
    turned = {
        "a": torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], dtype=torch.float64)
    }
    found = distance({"a": torch.tensor([3.0, 0.0], dtype=torch.float64)}, turned, {"a": torch.tensor([True, True])})
    assert found.angle == pytest.approx(degrees, rel=1e-6)


def test_zeros_have_no_direction():
    assert distance(state([0.0] * 3, 0.0), state([1.0] * 3, 0.0), MASKS).angle == 90


def test_a_missing_weight_and_no_weight_are_refused():
    with pytest.raises(InputError, match="second network has no such weight"):
        distance(state([0.0] * 3, 0.0), {"a": torch.zeros(3)}, MASKS)
    with pytest.raises(InputError, match="no live weights"):
        distance(state([0.0] * 3, 0.0), state([0.0] * 3, 0.0), {"a": torch.zeros(3, dtype=torch.bool)})


class TestBarrier:
    """Networks that learn a checkerboard of two numbers, which no straight line does."""

    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(16, 1)
    labels = (points[:, 0] != points[:, 1]).long()

    def net(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(self.points), self.labels).backward()
            optimizer.step()
        return net.eval()

    def error(self, net):
        return float((net(self.points).argmax(1) != self.labels).float().mean())

    def test_is_zero_between_a_network_and_itself(self):
        net = self.net()
        found = barrier(net, net.state_dict(), net.state_dict(), self.error, batches=[self.points])
        assert found.height == 0
        assert found.errors == (0.0,) * 11
        assert (found.alphas[0], found.alphas[-1]) == (0, 1)

    def test_is_high_between_a_network_and_its_units_in_another_order(self):
        net = self.net()
        order = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0])
        permuted = {
            k: v[order] if v.ndim and len(v) == 8 else v[:, order] if k == "3.weight" else v
            for k, v in net.state_dict().items()
        }
        assert barrier(net, net.state_dict(), permuted, self.error, batches=[self.points]).height > 0.1

    def test_leaves_the_network_as_it_is(self):
        net = self.net()
        before = copy.deepcopy(net.state_dict())
        other = {k: v + 1 for k, v in before.items()}
        barrier(net, before, other, self.error, points=3, batches=[self.points])
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert not net.training

    def test_estimates_statistics_anew_and_no_weight(self):
        net, seen = self.net(), []
        wrong = {k: v + 100 if "running_mean" in k else v for k, v in net.state_dict().items()}

        def error(between):
            seen.append({k: v.clone() for k, v in between.state_dict().items()})
            return self.error(between)

        assert barrier(net, wrong, net.state_dict(), error, points=3, batches=[self.points]).height == 0
        assert all(torch.equal(s[k], net.state_dict()[k]) for s in seen for k, _ in net.named_parameters())
        assert barrier(net, wrong, net.state_dict(), self.error, points=3).height > 0

    def test_needs_both_ends(self):
        net = self.net()
        with pytest.raises(InputError, match="1 points make no line"):
            barrier(net, net.state_dict(), net.state_dict(), self.error, points=1)
