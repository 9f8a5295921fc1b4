"""Train a sparse network on the data of one client, and tell a server what it may know of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from efface.core.method import Work
from efface.errors import DataError
from efface.parts.data.tasks import Task
from efface.parts.federated.codec import Arrays, Entries, Layout, encode_entries
from efface.parts.federated.exchange import Memory, Reply, Request
from efface.parts.nn.batchnorm import load_statistics, reestimate, statistics
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.streaming import largest_gradients
from efface.seeds import derive
from efface.training.recipe import Train
from efface.training.tuning import tune

DEVELOPMENT = 512
"""Most examples on which statistics and losses are measured."""
NOTHING = Entries(torch.zeros(0, dtype=torch.int64), torch.zeros(0))


@dataclass(frozen=True, kw_only=True)
class Local:
    """What a client does in a round: ``epochs`` of plain SGD; gradients are of a ``batch`` or one ``sample``."""

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    grad_data: str = "batch"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()


class SparseClient:
    """A client that has a task of its own, and the form of the network; see ``Client`` of the room ``federated``."""

    def __init__(self, local: Local, model: nn.Module, task: Task, work: Work) -> None:
        self.local, self.task, self.work = local, task, work
        self.net = copy.deepcopy(model).requires_grad_()
        self.layout = Layout.of(self.net, MaskSet.ones_like(self.net, local.include, local.exclude))

    def answer(self, request: Request, memory: Memory) -> Reply:
        """Measure statistics or losses of candidates, or train.

        Raises :class:`DataError` where the server has another network.
        """
        if request.config["digest"] != self.layout.digest:
            fix = "Build the same network on all nodes"
            raise DataError("the server's network has other tensors than this client's", fix=fix)
        match request.config["job"]:
            case "statistics":
                memory["candidates"] = request.arrays
                found = [self._statistics(net) for net in self._candidates(request.arrays)]
                return self._reply({"statistics": torch.stack(found).numpy()})
            case "losses":
                losses = []
                statistics = torch.from_numpy(request.arrays["statistics"])
                for net, own in zip(self._candidates(memory["candidates"]), statistics, strict=True):
                    load_statistics(net, own)
                    losses.append(self.task.score(net, "train", DEVELOPMENT).loss)
                return self._reply({"losses": np.array(losses, np.float32)})
            case _:
                return self._train(request, memory)

    def _train(self, request: Request, memory: Memory) -> Reply:
        local, number = self.local, int(request.config["round"])
        known = None if "bits" in request.arrays else self.layout.masks(memory["masks"]["bits"])
        state, masks = self.layout.decode(request.arrays, known)
        if known is None:
            memory["masks"] = {"bits": request.arrays["bits"]}
        self.net.load_state_dict(state, strict=False)
        examples, seed = len(self.task.train), derive(self.work.seed, number)
        size = min(local.batch, examples)
        train = Train(
            steps=local.epochs * -(-examples // size), batch=size, seed=seed, optimizer="sgd", betas=(0.0, 0.0),
            lr=local.lr, weight_decay=local.weight_decay,
        )  # fmt: skip
        tune(self.net, self.task, train, device=self.work.device, attach=[masks.attach])
        arrays = self.layout.encode(self.net.state_dict(), masks, places=False)
        counts = dict(zip(self.layout.weights, request.config["grow"], strict=True))
        if any(counts.values()):
            batch = self.task.train.batch(derive(seed, "growth"), 0, 1 if local.grad_data == "sample" else size)
            asked = {name: count for name, count in counts.items() if count}
            self.net.eval()
            found = largest_gradients(self.net, lambda net: self.task.loss(net, batch), masks, asked)
            arrays |= encode_entries({name: found.get(name, NOTHING) for name in self.layout.weights})
        return self._reply(arrays)

    def _candidates(self, arrays: Mapping[str, Any]) -> Iterator[nn.Module]:
        """Yield this client's network with the weights of each candidate."""
        for i in range(len({name.partition(".")[0] for name in arrays})):
            own = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{i}.")}
            self.net.load_state_dict(self.layout.decode(own)[0], strict=False)
            yield self.net

    def _statistics(self, net: nn.Module) -> Tensor:
        """Return the statistics of all norms on this client's data, weights as they are."""
        examples = min(len(self.task.train), DEVELOPMENT)
        size = min(self.local.batch, examples)
        batches = range(-(-examples // size))
        reestimate(net, (self.task.train.batch(self.work.seed, step, size)["picture"] for step in batches))
        return statistics(net)

    def _reply(self, arrays: Arrays) -> Reply:
        return Reply(len(self.task.train), arrays)


def own_task(task: Task, part: NDArray[np.int64]) -> Task:
    """Return ``task`` with a part of its training examples."""
    own = dataclasses.replace(task.train, pictures=task.train.pictures[part], labels=task.train.labels[part])
    return dataclasses.replace(task, train=own)
