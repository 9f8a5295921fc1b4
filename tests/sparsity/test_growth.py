import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.parts.sparsity.growth import drop_smallest, exchangeable, grow_largest, momentum


def row(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


@st.composite
def layers(draw):
    """Draw a weight with ties and live zeros, its mask, and a count within both the live and the dead."""
    size = draw(st.integers(1, 40))
    weight = row(*draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size)))
    mask = row(*draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)
    limit = min(int(mask.sum()), int((~mask).sum()))
    return weight * mask, mask, draw(st.integers(0, limit))


@given(layers())
@settings(max_examples=25)
def test_as_many_grow_as_are_dropped(layer):
    weight, mask, count = layer
    kept = drop_smallest(weight, mask, count)
    assert kept.sum() == mask.sum() - count
    assert not (kept & ~mask).any()
    gone = mask & ~kept
    if gone.any() and kept.any():
        assert weight[gone].abs().max() <= weight[kept].abs().min()
    grown = grow_largest(torch.rand(mask.shape), kept, count)
    assert grown.sum() == mask.sum()
    assert (grown & kept).sum() == kept.sum()


@given(layers())
@settings(max_examples=25)
def test_places_that_never_lived_grow_first(layer):
    weight, mask, count = layer
    fired = mask | (weight.new_tensor(range(len(mask))) % 2 == 0)
    grown = grow_largest(torch.ones(mask.shape), mask, count, fired) & ~mask
    assert grown.sum() == count
    assert (grown & ~fired).sum() == min(count, (~fired).sum())


def test_dead_weights_are_never_dropped_though_live_ones_are_zero_too():
    mask = row(0, 1, 1, 1, dtype=torch.bool)
    assert drop_smallest(row(0, 0, 5, 0), mask, 2).tolist() == [False, False, True, False]


def test_fresh_weights_are_dropped_last():
    mask, fresh = row(1, 1, 1, dtype=torch.bool), row(1, 0, 0, dtype=torch.bool)
    assert drop_smallest(row(0, 2, 3), mask, 2, fresh).tolist() == [True, False, False]
    assert not drop_smallest(row(0, 2, 3), mask, 3, fresh).any()


def test_ties_go_by_index():
    assert grow_largest(row(1, 1, 1, 1), row(0, 1, 0, 0, dtype=torch.bool), 2).tolist() == [True, True, True, False]


def test_growth_stops_where_nothing_is_dead():
    assert grow_largest(row(1, 2), row(1, 0, dtype=torch.bool), 5).all()


@pytest.mark.parametrize(
    ("live", "dead", "share", "expected"),
    [(10, 10, 0.25, 3), (10, 2, 0.5, 2), (10, 0, 0.5, 0), (0, 10, 0.5, 0), (10, 10, 0.0, 0), (1, 9, 0.01, 1)],
)
def test_exchange_is_a_share_of_the_live_within_the_dead(live, dead, share, expected):
    assert exchangeable(torch.arange(live + dead) < live, share) == expected


def test_momentum_reads_what_the_optimiser_remembers():
    assert momentum({"momentum_buffer": row(-2, 1)}).tolist() == [2, 1]
    assert torch.allclose(momentum({"exp_avg": row(-2, 1), "exp_avg_sq": row(4, 4)}), row(1, 0.5))
    assert momentum({"momentum_buffer": None}) is None
    assert momentum({}) is None
