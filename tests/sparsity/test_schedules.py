import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.parts.sparsity.schedules import cosine, cubic, exponential, geometric, linear

shares = st.floats(1e-3, 1)


@pytest.mark.parametrize("schedule", [linear, cubic])
@given(first=shares, last=shares, start=st.integers(0, 50), length=st.integers(1, 300))
def test_ramps_have_exact_endpoints_and_turn_nowhere(schedule, first, last, start, length):
    stop = start + length
    values = [schedule(step, first, last, start, stop) for step in range(start - 2, stop + 3)]
    assert values[:3] == [first] * 3
    assert values[-3:] == [last] * 3
    assert values == sorted(values, reverse=first > last)


def test_cubic_is_that_of_the_paper():
    for step in range(101):
        expected = 0.1 + (1 - 0.1) * (1 - step / 100) ** 3
        assert cubic(20 + step, 1.0, 0.1, 20, 120) == pytest.approx(expected, abs=1e-12)


def test_a_ramp_without_length_is_a_jump():
    assert [cubic(step, 1.0, 0.25, 5, 5) for step in (4, 6)] == [1.0, 0.25]


@given(first=shares, last=shares, total=st.integers(1, 300))
def test_cosine_starts_and_ends_flat(first, last, total):
    assert cosine(0, first, last, total) == first
    assert cosine(total, first, last, total) == cosine(total + 7, first, last, total) == last
    middle = last + (first - last) * (1 + math.cos(math.pi * (total // 2) / total)) / 2
    assert cosine(total // 2, first, last, total) == pytest.approx(middle)


@given(last=shares, steps=st.integers(1, 200))
def test_exponential_takes_equal_factors(last, steps):
    values = [exponential(step, last, steps) for step in range(steps + 1)]
    assert (values[0], values[-1]) == (1, last)
    assert all(b / a == pytest.approx(last ** (1 / steps)) for a, b in pairwise(values))


def test_geometric_takes_the_rate_of_what_is_left():
    assert [round(geometric(level, 0.2), 4) for level in range(4)] == [1, 0.8, 0.64, 0.512]
