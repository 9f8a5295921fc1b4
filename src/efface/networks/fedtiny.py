"""Prune a network while clients train it together, none of whom ever holds more than the sparse network.

What is taken away are weights that a server chooses without seeing data, at first coarsely and then finely. *Adaptive
batch-normalisation selection* (module 1, section III-B): the server makes several masks that share the density out over
layers differently; clients measure their batch statistics with each, these are merged to statistics of all data, and
the mask whose network then has the lowest loss over the clients is taken. *Progressive pruning* (module 2, III-C):
every few rounds of federated averaging one block of layers, from the output to the input, exchanges weights. Clients
send the few largest gradients of dead weights, which they pick while the gradient streams by; the server lets the
largest in sum grow at zero, and drops as many live weights of least magnitude.

Flower is the engine: :class:`Server` and :meth:`FedTiny.client` run under ``flwr run`` as ``Exchange(Server(...))`` and
``client_app(...)`` (:mod:`efface.parts.federated.engine`), or within one process, as :meth:`FedTiny.plan` has it, which
shares the task's training data out by a Dirichlet distribution. The network given is what the server starts from.

Data stay with the clients, but what they send tells of them: averages of weights do, and so do the indices of the
largest gradients, which neither averaging nor noise on values hides. Secure aggregation and differential privacy are
Flower's to add; this file promises neither.

The authors' code exchanged no statistics, chose gradients on the server, and took indices among dead weights for
indices of the layer; here all three are as the paper has them. The rule for how many candidates fit a budget is left to
``candidates``: about 0.1 / density cost as much traffic as one dense model. Costs are counted, as sparse kernels would
have them; PyTorch's own are dense.

Left out: pretraining on the server, gradients of a client's whole data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.errors import UsageError
from efface.parts.counting import count_flops
from efface.parts.data.partition import dirichlet
from efface.parts.federated.codec import Arrays, Layout, decode_entries
from efface.parts.federated.exchange import Reply, Request, Stage
from efface.parts.nn.batchnorm import Merge, load_statistics, merged, normalised
from efface.parts.sparsity.candidates import blocks_of, noisy_masks
from efface.parts.sparsity.growth import drop_smallest, grow_largest
from efface.parts.sparsity.masks import MaskSet
from efface.seeds import derive
from efface.training.course import needed
from efface.training.edits import edits
from efface.training.federated import DEVELOPMENT, Local, SparseClient, own_task

if TYPE_CHECKING:
    from efface.core.plan import Plan
    from efface.parts.data.tasks import Task


@dataclass(frozen=True, kw_only=True)
class FedTiny(Editor):
    """Hyper-parameters of federated pruning."""

    sparsity: float = param(0.99, "share of the weights to take away", low=0.001, high=0.9999)
    candidates: int = param(5, "masks to choose from; 1 takes equal densities and spares module 1", low=1)
    noise: float = param(0.5, "deviation of the logarithm of a layer's density among candidates", low=0.0)
    select: str = param("auto", "what candidates are judged with", choices=("auto", "bn", "validation"))
    merge: str = param("pooled", "variance of all data, or the paper's mean of variances", choices=("pooled", "plain"))
    rounds: int = param(300, "rounds of federated averaging", low=1)
    every: int = param(10, "rounds between two exchanges of weights", low=1)
    stop: int = param(100, "last round with an exchange; 0 exchanges none", low=0)
    rate: float = param(0.3, "share of a layer exchanged at first (twice the paper's 0.15)", low=0.0, high=1.0)
    granularity: str = param("block", "what is exchanged at a time", choices=("layer", "block", "all"))
    blocks: tuple[str, ...] = param((), "globs of the weights of each block, from input to output; none: by child")
    grad_data: str = param("batch", "what gradients are of", choices=("sample", "batch"))
    clients: int = param(10, "clients that share the training data", low=1)
    alpha: float = param(0.5, "how alike clients are; small is unlike (Dirichlet)", low=1e-3)
    fraction: float = param(1.0, "share of the clients that takes part in a round", low=0.0, high=1.0)
    epochs: int = param(5, "times a client goes through its data in a round", low=1)
    batch: int = param(64, "pictures a step", low=1)
    lr: float = param(0.1, "learning rate of plain SGD", low=0.0)
    weight_decay: float = param(1e-3, "decay of the weights", low=0.0)
    include: tuple[str, ...] = param(("*",), "globs of the weights that may go")
    exclude: tuple[str, ...] = param((), "globs of the weights that stay")

    card = Card(
        title="Distributed Pruning Towards Tiny Neural Networks in Federated Learning",
        paper="arXiv:2212.01977",
        year=2023,
        task="weights from networks",
        inputs=("model", "task"),
        good_at="Training very sparse networks over clients with little memory and traffic whose data differ.",
    )
    needs = "task"
    small: ClassVar[dict[str, Any]] = {
        "sparsity": 0.5, "candidates": 2, "rounds": 2, "every": 1, "clients": 2, "epochs": 1, "batch": 16, "lr": 0.01,
    }  # fmt: skip

    def plan(self, model: nn.Module, data: Task | None, work: Work) -> Plan:
        """Return the sparse network that the clients end with; facts tell the cost of each round.

        Raises
        ------
        UsageError
            If there is no task, the data do not go round, module 1 is asked for and there is no batch normalisation,
            or the weights that stay are fewer than the layers.
        MissingExtraError
            If Flower is not installed (extra ``federated``).
        """
        task = needed(data)
        server, cost = self.federate(model, task, work)
        net = server.network()
        return self.made(
            model,
            edits(model, server.masks, net.state_dict()),
            work,
            selection=server.selection,
            cost=cost,
            notes=server.notes,
        )

    def federate(
        self, model: nn.Module, task: Task, work: Work, masks: MaskSet | None = None
    ) -> tuple[Server, list[dict[str, float]]]:
        """Train ``model`` over simulated clients; return the server as it ends, and the cost of each round.

        ``masks``, where given, are those to start from, and none are selected.
        """
        from efface.parts.federated.engine import Exchange, client_app, simulate

        parts = dirichlet(task.train.labels, self.clients, self.alpha, seed=work.seed)
        own = [own_task(task, part) for part in parts]
        server = Server(self, model, task, work, masks)

        def client(context: Any) -> SparseClient:
            number = int(context.node_config["partition-id"])
            return self.client(model, own[number], Work(derive(work.seed, "client", number), work.device))

        strategy = Exchange(server, fraction=self.fraction, seed=work.seed)
        grid = simulate(strategy, client_app(client), self.clients, server.rounds)
        traffic = {n: {"round": n, "down": down, "up": grid.up.get(n, 0)} for n, down in grid.down.items()}
        cost = [told | server.costs.get(n, {}) for n, told in traffic.items()]
        return server, cost

    def client(self, model: nn.Module, task: Task, work: Work) -> SparseClient:
        """Return a client that trains a network of the form of ``model`` on its own ``task``."""
        local = Local(
            epochs=self.epochs, batch=self.batch, lr=self.lr, weight_decay=self.weight_decay, grad_data=self.grad_data,
            include=self.include, exclude=self.exclude,
        )  # fmt: skip
        return SparseClient(local, model, task, work)


class Server:
    """The server: it holds the network and its masks, and only ever sends what is alive."""

    def __init__(self, method: FedTiny, model: nn.Module, task: Task, work: Work, masks: MaskSet | None = None) -> None:
        self.method, self.task, self.work = method, task, work
        self.net = copy.deepcopy(model).requires_grad_()
        every = MaskSet.ones_like(self.net, method.include, method.exclude)
        self.layout, self.blocks = Layout.of(self.net, every), blocks_of(every, method.granularity, method.blocks)
        self.notes: list[str] = []
        self.selection: list[float] = []
        self.costs: dict[int, dict[str, float]] = {}
        self._candidates = [masks] if masks else self._drawn(every)
        self._statistics = bool(normalised(self.net)) and method.select != "validation"
        if method.select == "bn" and not self._statistics:
            what = "module 1 compares batch statistics, and the network has no batch normalisation"
            raise UsageError(what, where="select", fix="Choose by validation loss: select=validation")
        self._selecting = len(self._candidates) > 1 and self._statistics
        self.masks = self._candidates[0] if len(self._candidates) == 1 or self._selecting else self._by_validation()
        self._version, self._known = 0, dict[int, int]()
        self._sent: dict[int, int] = {}
        self._merged, self._measured = np.zeros(0, np.float32), set[int]()
        self._flops = count_flops(self.net, task.train.take(np.zeros(1, np.int64))["picture"])

    def _drawn(self, every: MaskSet) -> list[MaskSet]:
        method = self.method
        return noisy_masks(self.net, every, 1 - method.sparsity, method.candidates, method.noise, self.work.seed)

    @property
    def rounds(self) -> int:
        """Rounds that the engine runs: one more where there is a selection."""
        return self.method.rounds + self._selecting

    def network(self) -> nn.Module:
        """Return a copy of the network with its masks applied."""
        net = copy.deepcopy(self.net)
        self.masks.apply_(net)
        return net

    def arrays(self) -> Arrays:
        """Return the sparse network as it travels."""
        return self.layout.encode(self.net.state_dict(), self.masks)

    def request(self, number: int, stage: Stage, node: int) -> Request | None:
        """Ask for statistics and then losses of all candidates in the first round, and for training after that."""
        told = {"digest": self.layout.digest, "round": number}
        if self._selecting and number == 1:
            if stage == "evaluate":  # those that did not answer do not have the candidates
                judge = node in self._measured
                return Request({"statistics": self._merged}, {**told, "job": "losses"}) if judge else None
            state, arrays = self.net.state_dict(), dict[str, Any]()
            for i, masks in enumerate(self._candidates):
                arrays |= {f"{i}.{name}": array for name, array in self.layout.encode(state, masks).items()}
            return Request(arrays, {**told, "job": "statistics", "candidates": len(self._candidates)})
        if stage == "evaluate":
            return None
        self._sent[node] = self._version
        arrays = self.layout.encode(self.net.state_dict(), self.masks, places=self._known.get(node) != self._version)
        return Request(arrays, {**told, "job": "train", "grow": list(self.moves(number).values())})

    def moves(self, number: int) -> dict[str, int]:
        """Return how many weights each layer exchanges after round ``number``; 0 for layers out of turn."""
        method, moves = self.method, dict.fromkeys(self.layout.weights, 0)
        time = number - self._selecting
        if time % method.every or time > method.stop:
            return moves
        share = method.rate / 2 * (1 + math.cos(math.pi * time / method.stop))
        turn = self.blocks[::-1][(time // method.every - 1) % len(self.blocks)]
        for name, (kept, total) in self.masks.per_layer().items():
            moves[name] = min(round(share * kept), total - kept) if name in turn else 0
        return moves

    def receive(self, number: int, stage: Stage, replies: Mapping[int, Reply]) -> dict[str, float]:
        """Merge statistics, choose the mask, or average the clients and exchange weights."""
        counts = {node: reply.examples for node, reply in replies.items()}
        if self._selecting and number == 1:
            return self._judge(replies, counts) if stage == "evaluate" else self._merge(replies, counts)
        self._known |= {node: self._sent[node] for node in replies}
        states = {node: self.layout.decode(reply.arrays, self.masks)[0] for node, reply in replies.items()}
        total = sum(counts.values())
        average = {
            name: sum((states[node][name].double() * (n / total) for node, n in counts.items()), torch.zeros(()))
            for name in next(iter(states.values()))
        }
        current = self.net.state_dict()
        self.net.load_state_dict({n: average[n].to(t.dtype) if n in average else t for n, t in current.items()})
        moves = self.moves(number)
        sparse = self._flops.kept({name: kept / n for name, (kept, n) in self.masks.per_layer().items()})
        self.costs[number] = {
            "density": self.masks.density,
            "buffer": max(moves.values()),
            "floats": 2 * self.masks.kept + 2 * sum(map(math.prod, self.layout.rest.values())),
            "gflops": 3 * sparse * total * self.method.epochs / len(replies) / 1e9,
        }
        if any(moves.values()):
            self._exchange(moves, replies, counts)
        return {"examples": float(total)}

    def _exchange(self, moves: Mapping[str, int], replies: Mapping[int, Reply], counts: Mapping[int, int]) -> None:
        """Grow where the weighted sum of gradients is largest, and drop as many of the smallest weights."""
        sizes = {name: mask.numel() for name, mask in self.masks.items()}
        sums = {name: torch.zeros(sizes[name]) for name, count in moves.items() if count}
        for node, reply in replies.items():
            for name, entries in decode_entries(reply.arrays, sizes).items():
                if name in sums:
                    sums[name].index_add_(0, entries.indices, entries.values * counts[node])
        masks = dict(self.masks)
        for name, total in sums.items():
            weight, mask, score = self.net.get_parameter(name), masks[name], total.abs().view(masks[name].shape)
            count = min(moves[name], int((score[~mask] > 0).sum()))
            kept = drop_smallest(weight, mask, count)
            masks[name] = kept | (grow_largest(score, mask, count) & ~mask)
            with torch.no_grad():
                weight.masked_fill_(~kept, 0)
        self.masks, self._version = MaskSet(masks, self.masks.aliases), self._version + 1

    def _merge(self, replies: Mapping[int, Reply], counts: Mapping[int, int]) -> dict[str, float]:
        found = [
            torch.from_numpy(reply.arrays["statistics"]) for reply in replies.values()
        ]  # (candidates, 2, channels)
        how: Merge = "plain" if self.method.merge == "plain" else "pooled"
        mean, variance = merged([f[:, 0] for f in found], [f[:, 1] for f in found], list(counts.values()), how)
        self._merged, self._measured = torch.stack([mean, variance], 1).numpy(), set(replies)
        return {}

    def _judge(self, replies: Mapping[int, Reply], counts: Mapping[int, int]) -> dict[str, float]:
        losses = np.array([reply.arrays["losses"] for reply in replies.values()], np.float64)
        self._choose(np.average(losses, axis=0, weights=list(counts.values())).tolist())
        chosen = int(np.argmin(self.selection))
        load_statistics(self.net, torch.from_numpy(self._merged[chosen]))
        self.masks = self._candidates[chosen]
        return {"chosen": float(chosen)}

    def _by_validation(self) -> MaskSet:
        """Choose by the loss on the server's own validation examples, where there are no batch statistics."""
        if self.method.select == "auto":
            self.notes.append("no batch normalisation: masks were chosen by the loss on validation examples")
        losses = []
        for masks in self._candidates:
            net = copy.deepcopy(self.net)
            masks.apply_(net)
            losses.append(self.task.score(net, "val", DEVELOPMENT).loss)
        self._choose(losses)
        return self._candidates[int(np.argmin(losses))]

    def _choose(self, losses: list[float]) -> None:
        self.selection = losses
        self.work.progress(f"losses of {len(losses)} candidates: {', '.join(f'{loss:.3f}' for loss in losses)}")
