"""A Markov field on the grid of a layer: messages, samples and clusters."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.errors import UsageError
from efface.parts.sparsity.grid import Chain, GridMarkov, Independent, clusters, from_grid, to_grid

FREE = Chain(0.5, 0.5)
"""Says nothing."""


def marginals(field, evidence):
    """Return the log-odds of every weight, by enumeration of all grids."""
    rows, columns = evidence.shape
    total = torch.zeros(2, rows, columns, dtype=torch.float64)
    for bits in itertools.product((0, 1), repeat=rows * columns):
        live = torch.tensor(bits).view(rows, columns)
        log = float((live * evidence).sum())
        for chain, lines in ((field.down, live.t()), (field.across, live)):
            for line in lines.tolist():
                log += math.log(chain.density if line[0] else 1 - chain.density)
                for a, b in itertools.pairwise(line):
                    p = chain.p11 if a else chain.p01
                    log += math.log(p if b else 1 - p)
        total[0] += math.exp(log)
        total[1] += math.exp(log) * live
    return torch.logit(total[1] / total[0])


def evidence(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (1, 1)])
@pytest.mark.parametrize("chain", [Chain(0.29, 0.49), Chain(0.05, 0.9), Chain(0.7, 0.2)])
def test_messages_are_exact_on_chains(shape, chain):
    field, given_ = GridMarkov(chain, Chain(0.3, 0.6), sweeps=80), evidence(*shape)
    assert torch.allclose(field.extrinsic(given_) + given_, marginals(field, given_), atol=1e-5)


def test_messages_are_nearly_exact_on_a_grid_of_weak_couplings():
    field, given_ = GridMarkov(Chain(0.29, 0.4), Chain(0.3, 0.42), sweeps=40), evidence(4, 4)
    found = (field.extrinsic(given_) + given_).sigmoid()
    assert (found - marginals(field, given_).sigmoid()).abs().max() < 1e-2


@given(st.floats(0.05, 0.95), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_an_independent_chain_passes_no_evidence_on(p, seed):
    field = GridMarkov(Chain(p, p), Chain(p, p), sweeps=30)
    one, two = (field.extrinsic(evidence(5, 6, seed=s)) for s in (seed, seed + 1))
    assert torch.allclose(one, two, atol=1e-9)
    assert torch.allclose(GridMarkov(FREE, FREE).extrinsic(evidence(5, 6)), torch.zeros(5, 6, dtype=torch.float64))


def test_what_a_weight_says_does_not_come_back_to_it_on_a_chain():
    field, given_ = GridMarkov(Chain(0.2, 0.7), FREE, sweeps=60), evidence(6, 3)
    other = given_.clone()
    other[2, 1] += 5
    change = (field.extrinsic(other) - field.extrinsic(given_)).abs()
    assert change[2, 1] < 1e-9
    assert change[1, 1] > 0.1
    assert change[:, [0, 2]].max() < 1e-9


def test_messages_stay_finite_for_certain_evidence_and_strong_couplings():
    field = GridMarkov(Chain(1e-3, 0.999), Chain(1e-3, 0.999), sweeps=50)
    assert field.extrinsic(1e4 * evidence(20, 20).float()).isfinite().all()


@pytest.mark.parametrize("chain", [Chain(0.29, 0.49), Chain(0.1, 0.75)])
def test_samples_have_the_density_and_cluster_length_of_the_chain(chain):
    live = GridMarkov(chain, FREE).sample((400, 200), torch.Generator().manual_seed(0))
    assert float(live.float().mean()) == pytest.approx(chain.density, rel=0.05)
    assert clusters(live).length == pytest.approx(chain.length, rel=0.05)


def test_chains_are_found_again_from_their_samples():
    chain, field = Chain(0.15, 0.7), GridMarkov(Chain(0.3, 0.5), FREE)
    live = GridMarkov(chain, FREE).sample((300, 100), torch.Generator().manual_seed(1))
    for _ in range(10):
        field = field.refit(40 * (live.double() - 0.5))
    assert (field.down.p01, field.down.p11) == pytest.approx((chain.p01, chain.p11), abs=0.03)
    assert (field.across.p01, field.across.p11) == pytest.approx((chain.density, chain.density), abs=0.03)


def test_an_independent_prior_learns_its_density():
    prior = Independent(0.5)
    for _ in range(30):
        prior = prior.refit(torch.tensor([[20.0, -20, -20, -20]]))
    assert prior.density == pytest.approx(0.25, abs=1e-3)
    assert prior.extrinsic(torch.zeros(1, 2)).sigmoid().tolist() == [[pytest.approx(prior.density)] * 2]


@pytest.mark.parametrize("wrong", [(0.0, 0.5), (0.3, 1.0), (float("nan"), 0.5)])
def test_certain_transitions_are_refused(wrong):
    with pytest.raises(UsageError, match="no probability"):
        Chain(*wrong)


@pytest.mark.parametrize("shape", [(3, 5), (4, 3, 2, 3), (4, 1, 1, 1)])
def test_grids_turn_back_into_weights(shape):
    weight = torch.arange(math.prod(shape)).view(shape)
    grid = to_grid(weight)
    assert torch.equal(from_grid(grid, weight.shape), weight)


def test_a_column_of_a_grid_is_a_neuron():
    linear, kernel = torch.randn(5, 7), torch.randn(4, 3, 2, 2)
    assert torch.equal(to_grid(linear)[:, 2], linear[2])
    assert torch.equal(to_grid(kernel)[:, 1], kernel[1, :, :, 0].t().flatten())


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["110", "010", "000", "011"], {"count": 4, "length": 5 / 4, "empty_rows": 1, "empty_columns": 0}),
        (["000", "000"], {"count": 0, "length": 0.0, "empty_rows": 2, "empty_columns": 3}),
        (["11", "11", "11"], {"count": 2, "length": 3.0, "empty_rows": 0, "empty_columns": 0}),
    ],
)
def test_clusters_are_runs_down_columns(rows, expected):
    grid = torch.tensor([[c == "1" for c in row] for row in rows])
    found = clusters(grid)
    assert expected.items() <= found.as_dict().items()
    flat = grid.t().flatten().tolist()
    runs = [len(list(group)) for _, group in itertools.groupby(flat)]
    assert found.index_bits == 1 + sum(2 * (run.bit_length() - 1) + 1 for run in runs)
