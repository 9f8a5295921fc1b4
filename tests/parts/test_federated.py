"""Sparse messages lose nothing, traffic is what the wire carries, and a local federation is federated averaging."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.errors import DataError, MissingExtraError, UsageError
from efface.parts.federated.codec import Entries, Layout, decode_entries, encode_entries
from efface.parts.federated.exchange import Reply, Request
from efface.parts.nn.classifiers import convnet
from efface.parts.sparsity.masks import MaskSet


@pytest.fixture(scope="session")
def engine():
    pytest.importorskip("flwr", reason="needs the extra federated", exc_type=ImportError)
    from efface.parts.federated import engine

    return engine


def network(seed=0):
    torch.manual_seed(seed)
    return convnet(4, depth=1)


def masks_of(net, density, seed=0):
    draw = torch.Generator().manual_seed(seed)
    every = MaskSet.ones_like(net)
    return MaskSet({name: torch.rand(mask.shape, generator=draw) < density for name, mask in every.items()})


@given(st.integers(0, 100), st.sampled_from([0.0, 0.1, 1.0]))
@settings(max_examples=15, deadline=None)
def test_a_sparse_network_comes_back_bit_by_bit(seed, density):
    net = network(seed)
    masks = masks_of(net, density, seed)
    masks.apply_(net)
    layout = Layout.of(net, masks)
    state, found = layout.decode(layout.encode(net.state_dict(), masks))
    assert found == masks
    wanted = {n: t for n, t in net.state_dict().items() if t.is_floating_point()}
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[n], t) for n, t in wanted.items())
    short = layout.encode(net.state_dict(), masks, places=False)
    assert set(short) == {"values", "rest"}
    again, _ = layout.decode(short, masks)
    assert all(torch.equal(again[n], t) for n, t in wanted.items())


def test_payloads_are_sparse():
    net = network()
    masks = masks_of(net, 0.05)
    arrays = Layout.of(net, masks).encode(net.state_dict(), masks)
    assert arrays["values"].nbytes == 4 * masks.kept
    assert arrays["bits"].nbytes == sum(-(-mask.numel() // 8) for mask in masks.values())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a.pop("values"),
        lambda a: a.pop("bits"),
        lambda a: a.update(bits=a["bits"][:-1]),
        lambda a: a.update(values=a["values"][:-1]),
        lambda a: a.update(rest=np.zeros((2, 2), np.float32)),
    ],
)
def test_a_message_of_another_network_is_refused(spoil):
    net = network()
    layout = Layout.of(net, masks := masks_of(net, 0.5))
    spoil(arrays := layout.encode(net.state_dict(), masks))
    with pytest.raises(DataError, match="no such network"):
        layout.decode(arrays)


def test_entries_come_back_and_stay_in_their_layers():
    given_ = {
        "a": Entries(torch.tensor([3, 7]), torch.tensor([0.5, -1.0])),
        "b": Entries(torch.zeros(0, dtype=torch.int64), torch.zeros(0)),
    }
    arrays = encode_entries(given_)
    assert arrays["indices"].dtype == np.int32
    found = decode_entries(arrays, {"a": 8, "b": 5})
    assert all(torch.equal(found[n].indices, e.indices) for n, e in given_.items())
    assert all(torch.equal(found[n].values, e.values) for n, e in given_.items())
    for sizes in ({"a": 7, "b": 5}, {"a": 8}):
        with pytest.raises(DataError, match="no such entries"):
            decode_entries(arrays, sizes)


class Average:
    """A server that averages what clients answer, by their number of examples."""

    def __init__(self, start):
        self.vector, self.asked = start, []

    def request(self, number, stage, node):
        self.asked.append((number, stage, node))
        return Request({"vector": self.vector}, {"round": number}) if stage == "train" else None

    def receive(self, number, stage, replies):
        total = sum(reply.examples for reply in replies.values())
        self.vector = sum(r.arrays["vector"] * np.float32(r.examples / total) for r in replies.values())
        return {"clients": float(len(replies))}

    def arrays(self):
        return {"vector": self.vector}


class Walker:
    """A client that goes half way to its goal."""

    def __init__(self, node):
        self.node = node

    def answer(self, request, memory):
        seen = memory["seen"]["rounds"] if "seen" in memory else np.zeros(0, np.int64)
        memory["seen"] = {"rounds": np.append(seen, request.config["round"])}
        vector = request.arrays["vector"]
        return Reply(self.node + 1, {"vector": (vector + np.float32(self.node)) / 2}, {"seen": float(len(seen) + 1)})


def run(engine, clients=3, rounds=4, fraction=1.0, **grid):
    server = Average(np.arange(5, dtype=np.float32))
    app = engine.client_app(lambda context: Walker(int(context.node_config["partition-id"])))
    return server, engine.simulate(engine.Exchange(server, fraction=fraction), app, clients, rounds, **grid)


@pytest.mark.parametrize("clients", [1, 3])
def test_a_local_federation_is_a_loop_of_averages(engine, clients):
    server, grid = run(engine, clients)
    vector = np.arange(5, dtype=np.float32)
    for _ in range(4):
        vector = sum((vector + n) / 2 * (n + 1) for n in range(clients)) / sum(range(1, clients + 1))
    assert np.allclose(server.vector, vector, atol=1e-6)
    assert [len(c.state["seen"]["rounds"].numpy()) for c in grid.contexts] == [4] * clients


def test_a_client_that_drops_out_is_left_out_of_the_round(engine):
    server, grid = run(engine, 2, 1, reachable=lambda number, node: node != 0)
    assert np.allclose(server.vector, (np.arange(5) + 1) / 2)
    assert grid.down[1] > grid.up[1] > 0
    server, grid = run(engine, 2, 1, reachable=lambda number, node: False)
    assert np.array_equal(server.vector, np.arange(5))
    assert grid.up == {}


def test_a_share_of_the_clients_is_drawn_by_the_round(engine):
    server, _ = run(engine, 10, 6, 0.3)
    chosen = [{node for n, stage, node in server.asked if n == number and stage == "train"} for number in range(1, 7)]
    assert all(len(nodes) == 3 for nodes in chosen)
    assert len(set().union(*chosen)) > 3
    assert run(engine, 10, 6, 0.3)[0].asked == server.asked


def test_traffic_is_the_length_of_the_messages(engine, monkeypatch):
    lengths = []
    to_proto = engine.message_to_proto
    monkeypatch.setattr(
        engine, "message_to_proto", lambda m: lengths.append(len(to_proto(m).SerializeToString())) or to_proto(m)
    )
    _, grid = run(engine, 2, 1)
    assert grid.down[1] == lengths[0] + lengths[2]
    assert grid.up[1] == lengths[1] + lengths[3]


def test_flowers_process_identity_and_log_stay_as_they_were(engine):
    import logging

    level = logging.getLogger("flwr").level
    run(engine, 1, 1)
    assert logging.getLogger("flwr").level == level
    with pytest.raises(RuntimeError, match="not set"):
        _ = engine.TaskIdentity.node_id


def test_a_federation_needs_clients(engine):
    with pytest.raises(UsageError, match="train nothing"):
        run(engine, 0)


def test_without_flower_the_extra_is_named(monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "flwr.app", None)
    monkeypatch.delitem(sys.modules, "efface.parts.federated.engine", raising=False)
    with pytest.raises((MissingExtraError, ImportError)):
        importlib.import_module("efface.parts.federated.engine")
