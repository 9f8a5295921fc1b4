"""Turn the rows of each concept into those of what takes its place.

An eraser for tests: as small as one can be.

Left out: everything.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from efface.core.card import Card
from efface.core.eraser import Concepts, Eraser, check_concepts
from efface.core.method import Work, param
from efface.core.ops import Map
from efface.core.plan import Plan
from efface.parts.concepts.attention import backbone, cross_attention
from efface.parts.concepts.slots import aligned


@dataclass(frozen=True, kw_only=True)
class Turn(Eraser):
    """One direction goes for each concept."""

    noise: float = param(0.01, "deviation of the noise on what takes the place", low=0.0)
    card = Card(
        title="Turn",
        paper="of no paper",
        year=2026,
        task="concepts from generators",
        inputs=(),
        good_at="Tests.",
    )
    small: ClassVar = {"noise": 0.1}

    def plan(self, pipe: Any, concepts: Concepts, work: Work) -> Plan:
        """Map the mean row of each concept."""
        check_concepts(pipe, concepts)
        name, net = backbone(pipe)
        ups, downs = [], []
        for concept, other in concepts.pairs:
            old, new = (rows.mean(0) for rows in aligned(pipe, concept, other))
            new = new + self.noise * torch.randn(new.shape, generator=work.generator(concept))
            ups.append(new - old)
            downs.append(old / old.square().sum())
        ops = [Map(name, tuple(cross_attention(net)), torch.stack(ups, 1), torch.stack(downs))]
        return self.planned(pipe, concepts, work, ops)
