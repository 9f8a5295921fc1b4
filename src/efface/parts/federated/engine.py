"""Carry the messages of a federated method with Flower, over the network or within one process.

:class:`Exchange` is a strategy for ``ServerApp``, :func:`client_app` makes a ``ClientApp``: both run as they are under
``flwr run``, on nodes that each hold their data. :class:`LocalGrid` stands in for the network, one client after the
other, so that a federation can be tried, debugged and measured on one machine. Every message passes through the bytes
that it would have on the wire, which are what traffic counts.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from efface.errors import UsageError
from efface.extras import need
from efface.parts.federated.codec import Arrays
from efface.parts.federated.exchange import Client, Reply, Request, Server, Stage
from efface.seeds import numpy_generator

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of libraries that Flower imports
    need("flwr.app", extra="federated", job="a federated method")
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.message_pb2 import Message as Wire
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg
    from flwr.supercore.task_identity import TaskIdentity

ARRAYS, CONFIG, METRICS, EXAMPLES = "arrays", "config", "metrics", "num-examples"


class Exchange(FedAvg):
    """Ask a share of the nodes, drawn by ``seed`` and round, what ``server`` wants to know; a strategy for Flower.

    A round waits until ``nodes`` of them are connected; one that does not answer is left out of it. In a ``ServerApp``:
    ``Exchange(server, nodes=10).start(grid, ArrayRecord(), num_rounds=server.rounds)``.
    """

    def __init__(self, server: Server, *, fraction: float = 1.0, seed: int = 0, nodes: int = 1) -> None:
        super().__init__(fraction, fraction, min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=nodes)
        self.server, self.seed = server, seed

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages of the round's first exchange."""
        return self._ask(server_round, "train", grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages of the round's second exchange, to the same nodes; most rounds have none."""
        return self._ask(server_round, "evaluate", grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the replies to the server, and return the network with figures of the round."""
        figures = self._take(server_round, "train", replies)
        return _record(self.server.arrays()), _metrics(figures)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Hand the replies to the server."""
        return _metrics(self._take(server_round, "evaluate", replies))

    def _ask(self, number: int, stage: Stage, grid: Grid) -> list[Message]:
        while len(nodes := sorted(grid.get_node_ids())) < self.min_available_nodes:
            time.sleep(1)
        count = max(1, round(self.fraction_train * len(nodes)))
        chosen = numpy_generator(self.seed, number, "nodes").choice(len(nodes), count, replace=False)
        kind, messages = getattr(MessageType, stage.upper()), []
        for node in (nodes[i] for i in sorted(chosen)):
            if (request := self.server.request(number, stage, node)) is not None:
                content = RecordDict({ARRAYS: _record(request.arrays), CONFIG: ConfigRecord(request.config)})
                messages.append(Message(content, node, kind, group_id=str(number)))
        return messages

    def _take(self, number: int, stage: Stage, replies: Iterable[Message]) -> dict[str, float]:
        valid, _ = self._check_and_log_replies(list(replies), is_train=stage == "train", validate=False)
        found = {message.metadata.src_node_id: _reply(message.content) for message in valid}
        return self.server.receive(number, stage, found) if found else {}


def client_app(client: Callable[[Context], Client]) -> ClientApp:
    """Return a Flower app whose nodes answer as ``client(context)`` does.

    On a real node that function opens the node's own data; in a simulation ``context.node_config["partition-id"]``
    says which part it has. What a client remembers is kept in the context's state.
    """
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        request = Request(_arrays(message.content[ARRAYS]), dict(message.content[CONFIG]))
        reply = client(context).answer(request, _Memory(context.state))
        metrics = _metrics({EXAMPLES: reply.examples, **reply.metrics})
        return Message(RecordDict({ARRAYS: _record(reply.arrays), METRICS: metrics}), reply_to=message)

    app.train()(answer)
    app.evaluate()(answer)
    return app


class LocalGrid(Grid):
    """Clients in this process, numbered from 0: each is asked in turn, and keeps its own context.

    ``up`` and ``down`` hold the bytes of the messages by round. ``reachable(round, node)`` may let clients drop out.
    """

    def __init__(
        self, app: ClientApp, clients: int, reachable: Callable[[int, int], bool] = lambda number, node: True
    ) -> None:
        if clients < 1:
            raise UsageError(f"{clients} clients train nothing", where="clients", fix="Take one at least")
        self.app, self.reachable = app, reachable
        self.contexts = [
            Context(1, node, {"partition-id": node, "num-partitions": clients}, RecordDict(), {})
            for node in range(clients)
        ]
        self.up: dict[int, int] = {}
        self.down: dict[int, int] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver the messages, and return the replies."""
        replies = []
        for message in messages:
            number, node = int(message.metadata.group_id), message.metadata.dst_node_id
            delivered = _delivered(message, self.down, number)
            if self.reachable(number, node):
                replies.append(_delivered(self.app(delivered, self.contexts[node]), self.up, number))
        return replies

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of the clients."""
        return range(len(self.contexts))

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: replies are there at once, through :meth:`send_and_receive`."""
        raise NotImplementedError("ask with send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse: see :meth:`push_messages`."""
        raise NotImplementedError("ask with send_and_receive")

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """There is no record of the run."""
        return None


def simulate(strategy: Exchange, app: ClientApp, clients: int, rounds: int, **grid: Any) -> LocalGrid:
    """Run ``strategy`` for ``rounds`` with ``clients`` in this process, and return the grid with its traffic."""
    local = LocalGrid(app, clients, **grid)
    with _alone():
        strategy.start(local, ArrayRecord(), num_rounds=rounds)
    return local


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let messages be made outside a Flower process, and hold back its log below warnings.

    Flower takes a message's sender from the identity of the process, which has no public way to be set.
    """
    names, log = ("_task_id", "_run_id", "_node_id"), logging.getLogger("flwr")
    before, level = [getattr(TaskIdentity, name) for name in names], log.level
    try:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        log.setLevel(logging.WARNING)
        yield
    finally:
        log.setLevel(level)
        for name, value in zip(names, before, strict=True):
            setattr(TaskIdentity, name, value)


class _Memory(MutableMapping[str, Arrays]):
    """The arrays in a context's state."""

    def __init__(self, state: RecordDict) -> None:
        self.state = state

    def __getitem__(self, name: str) -> Arrays:
        return _arrays(self.state[name])

    def __setitem__(self, name: str, arrays: Arrays) -> None:
        self.state[name] = _record(arrays)

    def __delitem__(self, name: str) -> None:
        del self.state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


def _delivered(message: Message, traffic: dict[int, int], number: int) -> Message:
    """Return ``message`` as it comes out of the wire, and count its bytes."""
    wire = message_to_proto(message).SerializeToString()
    traffic[number] = traffic.get(number, 0) + len(wire)
    return message_from_proto(Wire.FromString(wire))


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def _arrays(record: Any) -> Arrays:
    return {name: array.numpy() for name, array in record.items()}


def _metrics(figures: Mapping[str, float]) -> MetricRecord:
    return MetricRecord(dict(figures))


def _reply(content: RecordDict) -> Reply:
    metrics: dict[str, Any] = dict(content[METRICS])
    return Reply(int(metrics.pop(EXAMPLES)), _arrays(content[ARRAYS]), metrics)
