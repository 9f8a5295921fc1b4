"""Samples keep the angles and distances that they promise, without rejection."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny

from efface.errors import UsageError
from efface.parts.concepts.neighbours import anchors, random_prompts, sample_beyond, sample_neighbours
from efface.parts.concepts.slots import encode


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


E = torch.randn(5, 40, generator=generator(9), dtype=torch.float64) * torch.tensor([[30.0], [1], [2], [0.1], [5]])


def measured(samples):
    """Return cosines and distances (n, slots), distances as shares of the rows' lengths."""
    cos = torch.cosine_similarity(samples, E, dim=-1)
    return cos, (samples - E).norm(dim=-1) / E.norm(dim=-1)


@given(low=st.floats(0, 0.9), width=st.floats(0, 0.5), extra=st.floats(0, 1), seed=st.integers(0, 99))
def test_neighbours_keep_both_limits(low, width, extra, seed):
    high = min(0.999, low + width)
    max_dist = (1 - high**2) ** 0.5 + extra
    cos, dist = measured(sample_neighbours(E, cos=(low, high), max_dist=max_dist, n=8, generator=generator(seed)))
    assert low - 1e-6 <= cos.min()
    assert cos.max() <= high + 1e-6
    assert dist.max() <= max_dist + 1e-6


def test_neighbours_without_a_limit_keep_their_lengths():
    found = sample_neighbours(E, cos=(0.5, 0.9), n=4, generator=generator())
    torch.testing.assert_close(found.norm(dim=-1), E.norm(dim=-1).expand(4, -1))
    assert sample_neighbours(E, cos=(0.5, 0.9), n=0, generator=generator()).shape == (0, 5, 40)


@given(near=st.floats(0.05, 1.5), width=st.floats(0.01, 1), max_cos=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_beyond_is_farther_and_not_alike(near, width, max_cos, seed):
    far = near + width
    if far <= (1 - max_cos**2) ** 0.5:
        with pytest.raises(UsageError, match="Rising distances that end above"):
            sample_beyond(E, dist=(near, far), max_cos=max_cos, n=8, generator=generator(seed))
        return
    cos, dist = measured(sample_beyond(E, dist=(near, far), max_cos=max_cos, n=8, generator=generator(seed)))
    assert cos.max() <= max_cos + 1e-6
    assert near - 1e-6 <= dist.min()
    assert dist.max() <= far + 1e-6


def test_the_same_generator_draws_the_same_and_slots_share_the_draw():
    one, two = (sample_neighbours(E, cos=(0.2, 0.9), max_dist=1.0, n=6, generator=generator(3)) for _ in range(2))
    assert torch.equal(one, two)
    cos, dist = measured(one)
    assert cos.std(dim=1).max() < 1e-9
    assert dist.std(dim=1).max() < 1e-9


def test_limits_that_exclude_each_other_name_the_least_distance():
    with pytest.raises(UsageError, match=r"Give 0\.6 or more"):
        sample_neighbours(E, cos=(0.5, 0.8), max_dist=0.5, n=1, generator=generator())
    with pytest.raises(UsageError, match="no range"):
        sample_neighbours(E, cos=(0.9, 0.8), n=1, generator=generator())


def test_anchors_have_the_length_of_the_concept():
    found = anchors(E, 20, generator())
    share = found.flatten(1).norm(dim=1) / E.norm()
    assert share.min() >= 0.8
    assert share.max() <= 1.2
    assert found.shape == (20, *E.shape)


def test_random_prompts_are_words_of_the_tokenizer():
    pipe = tiny()
    found = random_prompts(pipe, 12, generator())
    assert found == random_prompts(pipe, 12, generator())
    assert len(set(found)) > 6
    assert encode(pipe, found).words.any(1).sum() >= 10
