"""Examples are shared out whole, repeatably, and the more unevenly the smaller alpha is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.errors import UsageError
from efface.parts.data.partition import dirichlet

LABELS = np.arange(600) % 10


@given(st.integers(1, 12), st.floats(0.1, 100), st.integers(0, 50), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_every_example_goes_to_one_client_and_none_goes_without(clients, alpha, seed, least):
    parts = dirichlet(LABELS, clients, alpha, seed=seed, least=least)
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(600))
    assert min(map(len, parts)) >= least
    assert all((np.diff(part) > 0).all() for part in parts)


def unevenness(alpha):
    shares = [np.bincount(LABELS[part], minlength=10) / len(part) for part in dirichlet(LABELS, 8, alpha)]
    return float(np.std(shares, axis=0).mean())


def test_small_alphas_are_uneven():
    assert unevenness(0.1) > 2 * unevenness(1.0) > 4 * unevenness(100.0)


def test_the_draw_is_the_seeds():
    one, two, other = (dirichlet(LABELS, 5, 0.5, seed=seed) for seed in (0, 0, 1))
    assert all(map(np.array_equal, one, two))
    assert not all(map(np.array_equal, one, other))


@pytest.mark.parametrize(
    ("clients", "alpha", "match"),
    [(0, 1.0, "share nothing"), (2, 0.0, "share nothing"), (2, float("nan"), "share nothing"),
     (400, 1.0, "cannot give"), (300, 1e-3, "draws")],
)  # fmt: skip
def test_impossible_shares_are_refused(clients, alpha, match, monkeypatch):
    monkeypatch.setattr("efface.parts.data.partition.TRIES", 3)
    with pytest.raises(UsageError, match=match):
        dirichlet(LABELS, clients, alpha)
