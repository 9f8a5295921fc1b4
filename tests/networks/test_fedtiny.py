"""FedTiny: candidates and their selection, exchanges of weights, what clients and server tell each other."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from tickets import task
from torch import nn

from efface.core.method import Work
from efface.errors import DataError, UsageError
from efface.networks.fedtiny import FedTiny, Server
from efface.parts.data.partition import dirichlet
from efface.parts.federated.codec import Entries, encode_entries
from efface.parts.federated.exchange import Reply
from efface.parts.sparsity.masks import MaskSet
from efface.training.federated import own_task

flower = pytest.mark.usefixtures("flwr")


@pytest.fixture(scope="session")
def flwr():
    from warnings import catch_warnings, simplefilter

    with catch_warnings():
        simplefilter("ignore", DeprecationWarning)
        return pytest.importorskip("flwr.app", reason="needs the extra federated", exc_type=ImportError)


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    make = {nn.BatchNorm2d: lambda c: nn.BatchNorm2d(c), nn.GroupNorm: lambda c: nn.GroupNorm(2, c)}[norm]
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), make(4), nn.ReLU())
    stage = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False), make(8), nn.ReLU())
    return nn.Sequential(stem, stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def method(**params):
    given = {"sparsity": 0.7, "candidates": 3, "rounds": 3, "every": 1, "stop": 3, "clients": 3, "epochs": 1}
    return FedTiny(**{**given, "batch": 8, "lr": 0.05, **params})


def server(**params):
    return Server(method(**params), network(), task(), Work())


def test_fewer_weights_than_layers_are_refused():
    with pytest.raises(UsageError, match="too few"):
        server(sparsity=0.9999)


def test_blocks_take_turns_from_output_to_input_and_exchange_less_and_less():
    given = server(candidates=1, every=2, stop=8, rate=1.0)
    moved = {n: {name for name, count in given.moves(n).items() if count} for n in range(1, 12)}
    assert [moved[n] for n in (2, 4, 6, 8)] == [{"4.weight"}, {"1.0.weight"}, {"0.0.weight"}, set()]
    assert not any(moved[n] for n in (1, 3, 5, 9, 10))
    every = server(candidates=1, granularity="all", stop=10, rate=0.3)
    counts = [every.moves(n)["1.0.weight"] for n in range(1, 11)]
    kept = every.masks.per_layer()["1.0.weight"][0]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == round(0.15 * (1 + np.cos(np.pi / 10)) * kept)
    assert counts[-1] == 0


def replies(given, gradients, nodes=(0, 1)):
    """Return replies of unchanged weights with the given gradients by node."""
    arrays = given.layout.encode(given.net.state_dict(), given.masks, places=False)
    return {node: Reply(node + 1, arrays | encode_entries(gradients(node))) for node in nodes}


def test_the_server_grows_the_largest_sums_drops_the_smallest_weights_and_keeps_the_density():
    given = server(candidates=1, rate=1.0, stop=4)
    before, name = MaskSet({n: m.clone() for n, m in given.masks.items()}), "4.weight"
    count = given.moves(1)[name]
    dead = (~before[name]).flatten().nonzero().squeeze(1)
    weight = given.net.get_parameter(name).detach().clone()

    def gradients(node):  # node 1 counts twice, and disagrees with node 0 on the second place
        values = torch.tensor([1.0, -2.0, 0.1, 0.5])[: len(dead)] * (1 if node == 0 else torch.tensor([1, -1, 1, 1.0]))
        none = Entries(torch.zeros(0, dtype=torch.int64), torch.zeros(0))
        return {n: Entries(dead[:4], values) if n == name else none for n in before}

    for node in (0, 1):
        given.request(1, "train", node)
    given.receive(1, "train", replies(given, gradients))
    assert [n for n in before if not torch.equal(before[n], given.masks[n])] == [name]
    assert given.masks.per_layer() == before.per_layer()
    grown = (given.masks[name] & ~before[name]).flatten().nonzero().squeeze(1)
    sums = torch.tensor([3.0, 2.0, 0.3, 1.5])
    assert set(grown.tolist()) == set(dead[sums.topk(min(count, 4)).indices].tolist())
    dropped = before[name] & ~given.masks[name]
    assert weight[dropped].abs().max() <= weight[before[name] & given.masks[name]].abs().min()
    assert not given.net.get_parameter(name)[~(before[name] & given.masks[name])].any()


def test_masks_travel_only_when_a_client_does_not_have_them():
    given = server(candidates=1, stop=0)
    assert "bits" in given.request(1, "train", 0).arrays
    assert "bits" in given.request(1, "train", 1).arrays
    given.receive(1, "train", replies(given, lambda node: dict.fromkeys(given.masks, NOTHING), nodes=(0,)))
    assert "bits" not in given.request(2, "train", 0).arrays
    assert "bits" in given.request(2, "train", 1).arrays  # it did not answer
    assert given.request(2, "evaluate", 0) is None


NOTHING = Entries(torch.zeros(0, dtype=torch.int64), torch.zeros(0))


def test_statistics_of_clients_are_merged_and_the_lowest_loss_is_taken():
    given = server()
    own = [own_task(task(), part) for part in dirichlet(task().train.labels, 3, 0.5)]
    clients = [given.method.client(network(), one, Work()) for one in own]
    memories = [{} for _ in clients]
    for stage in ("train", "evaluate"):
        asked = {i: given.request(1, stage, i) for i in range(3)}
        answers = {i: c.answer(asked[i], memories[i]) for i, c in enumerate(clients)}
        given.receive(1, stage, answers)
        if stage == "train":
            sums = sum(answers[i].arrays["statistics"][:, 0] * len(t.train) for i, t in enumerate(own))
            assert np.allclose(given._merged[:, 0], sums / sum(len(t.train) for t in own), atol=1e-6)
            plain = sum(answers[i].arrays["statistics"][:, 1] * len(t.train) for i, t in enumerate(own))
            assert (given._merged[:, 1] > plain / sum(len(t.train) for t in own)).all()
    assert len(given.selection) == 3
    chosen = int(np.argmin(given.selection))
    assert given.masks == given._candidates[chosen]
    assert torch.allclose(given.net[0][1].running_mean, torch.from_numpy(given._merged[chosen][0, :4]))


def test_only_clients_that_measured_candidates_are_asked_to_judge_them():
    given = server()
    client = given.method.client(network(), task(), Work())
    given.receive(1, "train", {1: client.answer(given.request(1, "train", 1), {})})
    assert given.request(1, "evaluate", 0) is None
    assert given.request(1, "evaluate", 1).config["job"] == "losses"


def test_a_client_with_another_network_refuses():
    given = server(candidates=1)
    client = given.method.client(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), task(), Work())
    with pytest.raises(DataError, match="other tensors"):
        client.answer(given.request(1, "train", 0), {})


def test_module_one_needs_batch_normalisation_or_falls_back_to_validation():
    given = Server(method(), network(nn.GroupNorm), task(), Work())
    assert "no batch normalisation" in given.notes[0]
    assert len(given.selection) == 3
    assert given.rounds == 3
    with pytest.raises(UsageError, match="no batch normalisation"):
        Server(method(select="bn"), network(nn.GroupNorm), task(), Work())
    assert not Server(method(select="validation"), network(), task(), Work()).notes


@cache
def planned(**params):
    net = network()
    return net, method(**dict(params)).plan(net, task(), Work())


@flower
@pytest.mark.parametrize("params", [{}, {"candidates": 1, "grad_data": "sample"}, {"clients": 1, "fraction": 0.5}])
def test_a_federation_ends_at_the_sparsity_with_its_costs_told(params):
    net, plan = planned(**params)
    masks = plan.masks()
    assert sum(int(m.sum()) for m in masks.values()) == round(0.3 * sum(m.numel() for m in masks.values()))
    made = plan.apply(copy.deepcopy(net))
    assert all(not made.get_parameter(name)[~mask].any() for name, mask in masks.items())
    assert not torch.equal(made[4].bias, net[4].bias)
    cost = plan.made_by["cost"]
    assert [c["round"] for c in cost] == list(range(1, len(cost) + 1))
    assert len(cost) == 3 + (params.get("candidates", 3) > 1)
    assert all(c["up"] > 0 and c["down"] > 0 for c in cost)


@flower
def test_sparse_rounds_cost_less_than_dense_ones():
    sparse, dense = (planned(sparsity=s, candidates=1)[1].made_by["cost"][-1] for s in (0.9, 0.01))
    for figure in ("up", "down", "floats", "gflops"):
        assert sparse[figure] < dense[figure]


@flower
def test_the_federation_is_averaging_by_hand():
    net, work = network(), Work(seed=3)
    given = method(candidates=1, stop=0, rounds=2)
    found, _ = given.federate(net, task(), work)
    from efface.seeds import derive

    by_hand, parts = Server(given, net, task(), work), dirichlet(task().train.labels, 3, 0.5, seed=3)
    clients = [given.client(net, own_task(task(), part), Work(derive(3, "client", i))) for i, part in enumerate(parts)]
    for number in (1, 2):
        answers = [client.answer(by_hand.request(number, "train", i), {"masks": by_hand.arrays()})
                   for i, client in enumerate(clients)]  # fmt: skip
        states = [by_hand.layout.decode(a.arrays, by_hand.masks)[0] for a in answers]
        shares = [len(part) / sum(map(len, parts)) for part in parts]
        average = {n: sum(w * s[n] for w, s in zip(shares, states, strict=True)) for n in states[0]}
        by_hand.receive(number, "train", dict(enumerate(answers)))
        assert all(torch.allclose(by_hand.net.state_dict()[n], t, atol=1e-6) for n, t in average.items())
    wanted = found.net.state_dict()
    assert all(torch.allclose(t, wanted[n], atol=1e-6) for n, t in by_hand.net.state_dict().items())


def test_data_are_needed():
    with pytest.raises(UsageError, match="no data"):
        method().plan(network(), None, Work())
