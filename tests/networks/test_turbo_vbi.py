"""Turbo-VBI: inference of precisions and supports, pruning, and what becomes of idle neurons."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tickets import task
from torch import nn

from efface.core.method import Work
from efface.core.ops import Drop
from efface.errors import UsageError
from efface.io.weights import load_weights
from efface.networks.turbo_vbi import Turbo, TurboVBI
from efface.parts.nn.bayesian import bayesian, sigma
from efface.parts.nn.classifiers import mlp
from efface.parts.sparsity.gammas import Gamma, apart, together
from efface.parts.sparsity.prunable import prunable

ACTIVE, INACTIVE = Gamma(1.0, 1.0), Gamma(1.0, 0.01)


def network(hidden=20):
    torch.manual_seed(0)
    return mlp((16, hidden, 3))


def method(**params):
    return TurboVBI(**{"rounds": 2, "steps": 5, "finetune": 4, "batch": 10, **params})


def log_gamma_density(log_mean, mean, gamma):
    return gamma.a * math.log(gamma.b) - math.lgamma(gamma.a) + (gamma.a - 1) * log_mean - gamma.b * mean


def elbo(prior, moment, support, shape, rate):
    """Return the bound of q(rho) q(s) for real weights of the given second moments, without what is constant."""
    q, mean, log_mean = support.sigmoid(), shape / rate, torch.digamma(shape) - rate.log()
    weights = 0.5 * log_mean - 0.5 * mean * moment
    given_ = q * log_gamma_density(log_mean, mean, ACTIVE) + (1 - q) * log_gamma_density(log_mean, mean, INACTIVE)
    entropy = shape - rate.log() + torch.lgamma(shape) + (1 - shape) * torch.digamma(shape)
    live, dead = nn.functional.logsigmoid(support), nn.functional.logsigmoid(-support)
    places = q * (nn.functional.logsigmoid(prior) - live) + (1 - q) * (nn.functional.logsigmoid(-prior) - dead)
    return float((weights + given_ + entropy + places).sum())


@given(st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_each_step_of_module_a_raises_the_bound(seed):
    """A toy with a posterior in closed form: y = w + noise of deviation 0.1, one observation for each weight."""
    draw = torch.Generator().manual_seed(seed)
    y, prior = (torch.randn(50, generator=draw, dtype=torch.float64) for _ in range(2))
    support, noise, bounds = prior.clone(), 0.1**2, []
    shape, rate = torch.full_like(y, 1.5), torch.full_like(y, 0.5)
    for _ in range(5):
        precision = shape / rate
        variance = 1 / (1 / noise + precision)
        mean = variance * y / noise
        moment = mean.square() + variance
        data = float((-(y - mean).square() / noise / 2 - variance / noise / 2 + variance.log() / 2).sum())
        bounds.append(data + elbo(prior, moment, support, shape, rate))
        q = support.sigmoid()
        shape = q * ACTIVE.a + (1 - q) * INACTIVE.a + 0.5
        rate = q * ACTIVE.b + (1 - q) * INACTIVE.b + 0.5 * moment
        bounds.append(data + elbo(prior, moment, support, shape, rate))
        support, precision = apart(moment, prior, support, ACTIVE, INACTIVE, 0.5)
        assert torch.allclose(precision, shape / rate)
        bounds.append(data + elbo(prior, moment, support, shape, rate))
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(bounds))


def test_together_integrates_the_precision_out():
    moment, prior = torch.tensor([1e-6, 0.05, 1.0], dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    support, precision = together(moment, prior, prior, ACTIVE, INACTIVE, 0.5)
    rho = torch.logspace(-6, 5, 200_001, dtype=torch.float64)[:, None]
    seen = [torch.trapezoid(rho.sqrt() * torch.exp(-rho * moment / 2) * g.b * torch.exp(-g.b * rho), rho, dim=0)
            for g in (ACTIVE, INACTIVE)]  # fmt: skip
    assert torch.allclose(support, prior + (seen[0] / seen[1]).log(), atol=1e-3)
    assert (precision.diff() < 0).all()


@given(*[st.floats(-6, 6)] * 4, st.floats(-12, 6))
@settings(max_examples=60, deadline=None)
def test_inference_is_finite_for_all_gammas(a1, b1, a0, b0, size):
    active, inactive = Gamma(10**a1, 10**b1), Gamma(10**a0, 10**b0)
    moment, zero = torch.tensor([10.0**size]), torch.zeros(1)
    for infer in (apart, together):
        assert all(t.isfinite().all() for t in infer(moment, zero, zero, active, inactive, 0.5))


def test_the_authors_form_is_that_of_complex_weights():
    moment, zero = torch.tensor([0.3]), torch.zeros(1)
    _, real = apart(moment, zero, zero, ACTIVE, INACTIVE, 0.5)
    _, complex_ = apart(moment, zero, zero, ACTIVE, INACTIVE, 1.0)
    assert real.item() == pytest.approx(1.5 / (0.15 + 0.505))
    assert complex_.item() == pytest.approx(2 / (0.3 + 0.505))


def test_the_pull_is_the_gradient_of_the_divergence():
    net = network()
    layers = bayesian(net, prunable(net), 0.1)
    turbo = Turbo(method(anneal=0.0, kl_weight=2.0), layers, examples=10)
    optimizer = torch.optim.Adam(net.parameters())
    turbo.attach(net, optimizer)
    divergence = torch.zeros(())
    for name, layer in layers.items():
        rho, spread = turbo.beliefs[name].precision, sigma(layer)
        divergence = divergence + (-spread.log() + rho * (spread.square() + layer.weight.square()) / 2).sum()
    (2 / 10 * divergence).backward()
    wanted = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    turbo._pull()
    assert all(torch.allclose(net.get_parameter(name).grad, g, rtol=1e-4) for name, g in wanted.items())


def test_module_b_gives_neighbours_of_live_weights_better_odds_and_plain_vbi_does_not():
    def odds(**params):
        net = network()
        with torch.no_grad():
            net.linear1.weight.fill_(1e-4)[:, 4:8] = 1.0
        turbo = Turbo(method(steps=1, **params), bayesian(net, prunable(net)), 60)
        turbo.attach(net, torch.optim.SGD(net.parameters(), 0.0))
        turbo._round()
        return turbo.beliefs["linear1.weight"].prior

    grid, plain = odds(), odds(prior="independent")
    assert (grid[:, 5:7] > grid[:, 12:13]).all()
    assert (grid[:, 3] > grid[:, 12]).all()
    assert plain.unique().numel() == 1


@pytest.mark.parametrize("prior", ["grid", "independent"])
@pytest.mark.parametrize("params", [{}, {"em": True}, {"coupled": False, "complex_form": True, "scale": 1.0}])
def test_a_sparsity_is_met_and_what_is_kept_is_trained(prior, params):
    net = network()
    plan = method(sparsity=0.7, prior=prior, structure=False, **params).plan(net, task(), Work())
    masks = plan.masks()
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.3 * (16 * 20 + 20 * 3))
    made = plan.apply(copy.deepcopy(net))
    assert all((made.get_parameter(name)[~mask] == 0).all() for name, mask in masks.items())
    assert len(plan.made_by["rounds"]) == 2
    assert set(plan.made_by["clusters"]) == set(masks)


@pytest.mark.parametrize("prune", ["threshold", "snr", "support"])
def test_a_bound_decides_where_no_sparsity_is_asked(prune):
    made = method(prune=prune, bound=0.3, structure=False)
    found, _ = made.infer(network(), task(), Work())
    scores = {"threshold": found.net.linear1.weight.abs(), "support": found.support["linear1.weight"]}
    scores["snr"] = scores["threshold"] / found.sigma["linear1.weight"]
    assert torch.equal(made.masks(found)["linear1.weight"], scores[prune] >= 0.3)


def test_idle_neurons_go_and_nothing_else_changes():
    net = network()
    whole, dropped = (method(sparsity=0.93, structure=s, finetune=0).plan(net, task(), Work()) for s in (False, True))
    drops = [op for op in dropped.ops if isinstance(op, Drop)]
    assert len(drops) == 1
    assert sum(dropped.made_by["removed"].values()) > 0
    small, large = dropped.apply(copy.deepcopy(net)), whole.apply(copy.deepcopy(net))
    assert small.linear1.out_features == small.linear2.in_features < large.linear1.out_features
    x = task().test.take(np.arange(5))["picture"]
    for neuron, weights in enumerate(large.linear1.weight):  # one without inputs is a constant, which goes too
        if not weights.any():
            large.linear2.weight.data[:, neuron] = 0
    assert torch.allclose(small(x), large(x), atol=1e-5)


def test_the_posterior_is_kept_on_request(tmp_path):
    method(folder=str(tmp_path / "posterior")).plan(network(), task(), Work())
    tensors, facts = load_weights(tmp_path / "posterior")
    assert facts["method"] == "turbo-vbi"
    assert tensors["linear1.weight.sigma"].min() > 0
    assert 0 <= tensors["linear1.weight.support"].min() <= tensors["linear1.weight.support"].max() <= 1


def test_chances_that_forbid_clusters_are_told_of():
    assert "avoid each other" in method(p01=(0.5, 0.5), p11=(0.2, 0.2)).notes()[0]
    assert "live or die as one" in method(p01=(0.1, 0.1), p11=(0.7, 0.6)).notes()[0]
    assert not method().notes()
    assert not method(prior="independent").notes()


@pytest.mark.parametrize("wrong", [{"p01": (0.1,)}, {"active": (1.0, 1.0, 1.0)}, {"inactive": (0.0, 1.0)}], ids=str)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        method(**wrong)


def test_layers_without_a_gaussian_form_and_missing_data_are_refused():
    with pytest.raises(UsageError, match="no data"):
        method().plan(network(), None, Work())
    net = nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(32, 3))
    with pytest.raises(UsageError, match="Conv1d"):
        method().plan(net, task(), Work())
