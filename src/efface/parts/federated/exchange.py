"""Say what server and clients of a federated method are, without the engine that carries their messages."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from efface.parts.federated.codec import Arrays

Stage = Literal["train", "evaluate"]
"""The two exchanges that a round of Flower has."""
Memory = MutableMapping[str, Arrays]
"""What a client keeps from one message to the next, on its own machine."""


@dataclass(frozen=True)
class Request:
    """What the server asks of a client: ``config`` holds numbers, texts, and lists of them."""

    arrays: Arrays
    config: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What a client answers, with the number of ``examples`` that it speaks for."""

    examples: int
    arrays: Arrays = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class Server(Protocol):
    """The server's side of a method."""

    def request(self, number: int, stage: Stage, node: int) -> Request | None:
        """Return what to ask ``node`` in round ``number`` (from 1), None for nothing."""
        ...

    def receive(self, number: int, stage: Stage, replies: Mapping[int, Reply]) -> dict[str, float]:
        """Take in the replies by node, of those that answered, and return figures of the round."""
        ...

    def arrays(self) -> Arrays:
        """Return the network as it stands."""
        ...


class Client(Protocol):
    """The client's side: it has data and never sends any."""

    def answer(self, request: Request, memory: Memory) -> Reply:
        """Do what is asked."""
        ...
