"""Comparing two arms pair by pair, and reading curves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.errors import InputError
from efface.parts.metrics.paired import area, bootstrap, early_stop, steps_to_threshold, verdict

T975 = {3: 4.303, 5: 2.776, 9: 2.306}  # quantiles of Student's distribution with n - 1 degrees of freedom


@pytest.mark.parametrize("n", T975)
def test_few_pairs_give_students_interval(n):
    values = np.random.default_rng(n).normal(1, 2, n)
    half = T975[n] * values.std(ddof=1) / math.sqrt(n)
    interval = bootstrap(values.tolist())
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.mean == pytest.approx(half, rel=0.05)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.05)


@pytest.mark.parametrize("pairs", [4, 5, 12])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_a_verdict_is_wrong_no_more_often_than_it_says(monkeypatch, pairs, shift):
    monkeypatch.setattr("efface.parts.metrics.paired.RESAMPLES", 2000)
    random = np.random.default_rng(0)
    seeds = random.normal(60, 5, (200, pairs))  # what two arms of one seed have in common
    first, second = (seeds + random.normal(mean, 0.5, seeds.shape) for mean in (shift, 0))
    said = [verdict(a.tolist(), b.tolist()).differ for a, b in zip(first, second, strict=True)]
    assert np.mean(said) >= 0.95 if shift else np.mean(said) <= 0.075  # 5 % and two standard errors


def test_a_skewed_difference_has_a_skewed_interval():
    interval = bootstrap([0.1, 0.2, 0.1, 0.3, 0.2, 0.1, 0.2, 0.3, 0.1, 4.0, 0.2, 0.1])
    assert interval.high - interval.mean > interval.mean - interval.low


@settings(max_examples=25)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=15))
def test_the_interval_holds_the_mean_and_turns_with_the_sign(values):
    there, back = bootstrap(values), bootstrap([-v for v in values], confidence=0.95)
    assert there.low <= there.mean + 1e-9
    assert there.mean - 1e-9 <= there.high
    assert there == bootstrap(values)
    assert back.mean == pytest.approx(-there.mean)


def test_more_confidence_is_wider_and_equal_values_leave_no_doubt():
    values = [1.0, 2.0, 4.0, 3.0]
    assert bootstrap(values, confidence=0.99).low < bootstrap(values, confidence=0.9).low
    assert (still := bootstrap([2.0] * 4)).low == still.high == 2.0


def test_a_verdict_says_which_is_better():
    assert verdict([2, 3, 4], [1, 2, 3.1]).words.startswith("the first is better: +0.97 [")
    assert verdict([1, 2, 3.1], [2, 3, 4], unit="points").words.endswith("points, 3 pairs")
    assert "no difference" in verdict([1, 2, 3], [3, 2, 1]).words


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf, 2.0]])
def test_what_cannot_be_compared_is_refused(values):
    with pytest.raises(InputError, match="more seeds"):
        bootstrap(values)


def test_arms_of_different_length_are_no_pairs():
    with pytest.raises(InputError, match="no pairs"):
        verdict([1, 2, 3], [1, 2])


@pytest.mark.parametrize(("threshold", "step"), [(0.1, 10), (0.5, 20), (0.51, 30), (0.9, None)])
def test_the_first_step_over_the_threshold_counts(threshold, step):
    assert steps_to_threshold([10, 20, 30, 40], [0.2, 0.5, 0.7, 0.4], threshold) == step


def test_learning_stops_at_the_first_least_loss():
    assert early_stop([10, 20, 30, 40], [3.0, 1.0, 2.0, 1.0]) == 20


def test_the_area_is_the_mean_height_over_uneven_steps():
    assert area([0, 10, 40], [0.0, 1.0, 1.0]) == pytest.approx((5 + 30) / 40)


@pytest.mark.parametrize("curve", [([], []), ([1], [1.0, 2.0])])
def test_curves_need_points(curve):
    for read in (early_stop, area):
        with pytest.raises(InputError):
            read(*curve)
