from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from efface.errors import DataError, UsageError
from efface.parts.metrics.erasure import (
    complement,
    difference,
    drift,
    feature_drift,
    frechet_own,
    h_c,
    h_mean,
    h_o,
    harmonic,
    icr,
    mean,
    rate,
    wilson,
)
from efface.parts.metrics.judged import Seen, broken, cer, entropy, followed, look, spoken

few = settings(max_examples=30)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (0, 0, 0, 1)],
)
def test_wilson_gives_published_bounds(hits, n, low, high):
    assert wilson(hits, n) == pytest.approx((low, high), abs=1e-4)


def test_48_pictures_are_known_to_14_percent():
    figure = rate([True, False] * 24)
    assert figure.value == 0.5
    assert figure.high - figure.value == pytest.approx(0.14, abs=0.005)


@few
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_rate_lies_in_its_interval_and_mirrors(hits):
    figure, other = rate(hits), rate([not hit for hit in hits])
    assert 0 <= figure.low <= figure.value + 1e-12
    assert figure.value <= figure.high + 1e-12 <= 1 + 2e-12
    gone = complement(figure)
    assert (gone.value, gone.low, gone.high) == pytest.approx((other.value, other.low, other.high))
    assert gone.each == other.each


def test_nothing_measured_is_not_a_number():
    assert math.isnan(rate([]).value)
    assert math.isnan(mean([]).value)
    assert math.isnan(mean([0.3]).low)
    assert mean([0.3]).value == 0.3


@pytest.mark.parametrize("terms", [(0.0, 1.0), (-0.2, 0.9, 0.9), (0.0, 0.0)])
def test_harmonic_means_are_guarded(terms):
    assert harmonic(*terms) == 0.0


@few
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=4))
def test_harmonic_mean_lies_between_its_terms(terms):
    assert min(terms) * (1 - 1e-9) <= harmonic(*terms) <= max(terms) * (1 + 1e-9)
    assert math.isnan(harmonic(*terms, math.nan))


def test_joint_scores():
    erased, kept, other = rate([False] * 9 + [True]), rate([True] * 8 + [False] * 2), rate([False] * 6 + [True] * 4)
    assert h_o(erased, kept, other).value == pytest.approx(3 / (1 / 0.9 + 1 / 0.8 + 1 / 0.6))
    assert h_c(erased, kept).value == pytest.approx(2 / (1 / 0.9 + 1 / 0.8))
    both = h_o(erased, kept, other)
    assert both.low < both.value < both.high
    assert h_o(rate([True] * 5), kept, other).value == 0.0  # nothing erased
    assert h_mean(0.9, 0.1, 0.8) == pytest.approx(0.8)
    assert h_mean(0.5, 0.6, 0.8) == 0.0


def test_difference_is_of_pairs():
    first, second = rate([True] * 30 + [False] * 18), rate([False] * 12 + [True] * 18 + [False] * 18)
    paired = difference(first, second)
    shuffled = difference(first, rate(sorted(map(bool, second.each), reverse=False)))
    assert paired.mean == shuffled.mean == pytest.approx(0.25)
    assert paired.high - paired.low < shuffled.high - shuffled.low  # alike pairs say more
    assert 0 not in paired
    back = difference(second, first)
    assert (back.low, back.high) == pytest.approx((-paired.high, -paired.low))


@pytest.mark.parametrize("alike", [0.0, 0.7])
def test_difference_covers_the_truth_19_times_in_20(alike):
    generator, covered = np.random.default_rng(0), 0
    for _ in range(200):
        u, v, tied = generator.random((3, 30))
        u2 = np.where(tied < alike, u, v)
        covered += 0.25 in difference(rate((u < 0.8).tolist()), rate((u2 < 0.55).tolist()))
    assert 0.92 <= covered / 200 <= 0.985


def test_difference_of_means_and_of_no_pairs():
    assert difference(mean([0.1, 0.4, 0.3]), mean([0.0, 0.3, 0.2])).mean == pytest.approx(0.1)
    for other in (rate([True]), rate([])):
        with pytest.raises(DataError, match="no pairs"):
            difference(rate([True, False]), other)
    with pytest.raises(DataError):
        difference(rate([]), rate([]))


def test_drift_is_zero_of_equal_pictures_and_grows():
    pictures = np.random.default_rng(0).random((3, 3, 16, 16)).astype(np.float32)
    same, other = drift(pictures, pictures), drift(pictures, 1 - pictures)
    assert same["mse"].value == 0
    assert same["dssim"].value == pytest.approx(0, abs=1e-9)
    assert other["mse"].value == pytest.approx(float(((1 - 2 * pictures) ** 2).mean()), rel=1e-5)
    assert other["dssim"].value > 0.5
    assert other["mse"].n == 3
    with pytest.raises(DataError, match="no pairs"):
        drift(pictures, pictures[:2])


def test_feature_drift_knows_directions_alone():
    x = np.array([[1.0, 0], [0, 2]])
    assert feature_drift(x, 5 * x).value == pytest.approx(0)
    assert feature_drift(x, -x).value == pytest.approx(2)
    assert feature_drift(x, x[::-1]).value == pytest.approx(math.sqrt(2))
    assert feature_drift(x, 0 * x).value == pytest.approx(1)


def test_frechet_equals_its_definition():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(300, 5)), generator.normal(1, 2, size=(200, 5)) @ generator.normal(size=(5, 5))
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_own(x, y) == pytest.approx(expected)
    assert frechet_own(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_own(x, x + np.eye(5)[0] * 3) == pytest.approx(9)
    assert frechet_own(x[:, :1], y[:, :1]) > 0
    with pytest.raises(DataError, match="too small"):
        frechet_own(x[:1], y)


def test_icr_counts_firings():
    assert icr(np.zeros((4, 3, 8, 8)), lambda pictures: [1, 0, 0, 0]).value == 0.25


SHAPES = ("circle", "half moon", "square", "none")


def seen(*rows, colours=None):
    """Return a judge's answer with the probabilities `rows` of SHAPES."""
    with np.errstate(divide="ignore"):
        beliefs = {"shape": np.log(np.array(rows))}
    classes = {"shape": SHAPES}
    if colours is not None:
        named = Seen.of(colours, ("red", "blue", "none"), "colour")
        classes, beliefs = classes | named.classes, beliefs | named.log_probs
    return Seen(classes, beliefs)


def test_judge_names_and_ranks():
    answer = seen([0.6, 0.3, 0.1, 0], [0.1, 0.2, 0.4, 0.3])
    assert answer.names("shape") == ["circle", "square"]
    assert answer.sees("circle") == [True, False]
    assert answer.sees("half moon", top=2) == [True, False]
    assert answer.margin("circle", "square") == pytest.approx([math.log(6), math.log(0.25)])
    assert cer(answer, "circle", "square").value == 0.5
    assert entropy(seen([1, 0, 0, 0], [0.25] * 4), "circle") == pytest.approx([0, math.log(4)])


def test_labels_will_do():
    answer = look(lambda pictures: ["cat", "dog"], np.zeros((2, 3, 8, 8)))
    assert answer.sees("dog") == [False, True]
    assert answer.sees("bird") == [False, False]  # never seen, so never named
    assert broken(answer, "cat") == [False, False]
    with pytest.raises(UsageError, match="1 pictures of 2"):
        look(lambda pictures: ["cat"], np.zeros((2, 3, 8, 8)))


def test_a_concept_that_no_factor_has_is_refused():
    with pytest.raises(UsageError, match="nothing that the judge can see"):
        seen([1, 0, 0, 0], colours=["red"]).factor("octagon")


def test_prompts_are_read_as_whole_words():
    texts = ["a red circle", "two half moons on white", "a reddish thing", "red and blue", "two crosses"]
    assert spoken(texts, ("red", "blue")) == ["red", None, None, None, None]
    assert spoken(texts, ("circle", "half moon", "cross")) == ["circle", "half moon", None, None, "cross"]


def test_other_factors_are_followed_where_prompts_name_them():
    answer = seen([1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], colours=["red", "blue", "blue"])
    assert followed(answer, ["a red circle", "a red circle", "a square"], "shape") == [True, False]


def test_broken_is_what_shows_nothing():
    unsure, sure, empty = [0.4, 0.3, 0.2, 0.1], [0.9, 0.1, 0, 0], [0, 0, 0, 1.0]
    answer = seen(unsure, sure, empty, empty, colours=["red", "none", "red", "none"])
    assert broken(answer, "circle") == [True, False, False, True]  # the third is a coloured ground without a shape
