"""Calibration, AUROC and adversaries are what their definitions say, on cases that can be counted by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from efface.parts.data.tasks import Task
from efface.parts.metrics.calibration import auroc, confidence, ece, fgsm, nll, robustness


def logits_of(probability, named, classes=2):
    """Return logits whose softmax gives ``probability`` to the class ``named``, the rest to the others alike."""
    rest = (1 - probability) / (classes - 1)
    return torch.tensor([[math.log(probability if c == named else rest) for c in range(classes)]])


def test_confidence_that_equals_accuracy_is_calibrated():
    found = logits_of(0.75, 0).expand(400, 2)
    labels = torch.tensor([0, 0, 0, 1] * 100)
    assert ece(found, labels) == pytest.approx(0, abs=1e-6)
    assert ece(found, torch.zeros(400, dtype=torch.long)) == pytest.approx(0.25, abs=1e-6)
    assert nll(found, labels) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), abs=1e-6)


def test_bins_do_not_let_opposite_errors_cancel():
    found = torch.cat([logits_of(0.55, 0), logits_of(0.95, 0)])
    labels = torch.tensor([0, 1])  # too shy by .45, too sure by .95
    assert ece(found, labels) == pytest.approx((0.45 + 0.95) / 2, abs=1e-6)
    assert ece(found, labels, bins=1) == pytest.approx((0.95 - 0.45) / 2, abs=1e-6)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_auroc_counts_pairs(inside, outside):
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in inside for b in outside]
    assert auroc(torch.tensor(inside), torch.tensor(outside)) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_of_equal_sets_is_a_half():
    scores = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert auroc(scores, scores) == 0.5


def test_confidence_is_the_largest_probability():
    assert confidence(torch.cat([logits_of(0.7, 1, 3), logits_of(0.4, 0, 3)])).tolist() == pytest.approx([0.7, 0.4])


@pytest.fixture(scope="module")
def halves():
    """Return a task that the mean of a picture decides, and a network that decides it so."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    pictures = (rng.integers(0, 60, (60, 1, 4, 4)) + 150 * labels[:, None, None, None]).astype(np.uint8)
    task = Task.from_arrays((pictures, labels), (pictures[:40], labels[:40]))
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([-torch.ones(16), torch.ones(16)]))
        net[1].bias.zero_()
    return task, net


def test_an_adversary_of_size_zero_changes_nothing(halves):
    task, net = halves
    batch = task.test.take(np.arange(10))
    assert torch.equal(fgsm(net, batch, task.test, 0.0), batch["picture"])


def test_an_adversary_moves_every_pixel_by_its_size_against_the_network_and_stays_in_range(halves):
    task, net = halves
    batch = task.test.take(np.arange(10))
    moved = fgsm(net, batch, task.test, 0.1)
    std, mean = float(task.test.std[0]), float(task.test.mean[0])
    pixels = [x * std + mean for x in (batch["picture"], moved)]
    away = (pixels[1] - pixels[0]) * torch.where(batch["label"] == 0, 1, -1)[:, None, None, None]
    assert torch.allclose(away, torch.full_like(away, 0.1), atol=1e-5)
    far = fgsm(net, batch, task.test, 5.0) * std + mean
    assert far.min() > -1e-5
    assert far.max() < 1 + 1e-5
    assert net[1].weight.grad is None


def test_robustness_holds_the_figures_of_a_network_that_is_right(halves):
    task, net = halves
    before = torch.random.get_rng_state()
    found = robustness(net, task, epsilons=(0.0, 1.0), seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert found.keys() == {"accuracy", "nll", "ece", "auroc_noise", "auroc_scrambled", "fgsm_0", "fgsm_255"}
    assert (found["accuracy"], found["fgsm_0"], found["fgsm_255"]) == (1, 1, 0)
    assert found["auroc_noise"] > 0.9
    assert found["auroc_scrambled"] == pytest.approx(0.5)  # a mean does not see the order of pixels
    assert found == robustness(net, task, epsilons=(0.0, 1.0), seed=3)
