"""`check_method` finds broken promises in erasers of other packages."""

import pytest

from efface.core.contract import ContractError, check_method, checks

GOOD = '''"""Turn the rows of one concept into those of another.

Left out: everything.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from efface.core.card import Card
from efface.core.eraser import Eraser, check_concepts
from efface.core.method import param
from efface.core.ops import Map
from efface.parts.concepts.attention import backbone, cross_attention
from efface.parts.concepts.slots import aligned


@dataclass(frozen=True, kw_only=True)
class Turn(Eraser):
    """One direction goes."""

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

    def plan(self, pipe, concepts, work):
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
'''
LIES = {
    "planning leaves the pipeline as it was": (
        "ups, downs = [], []",
        "ups, downs = [], []\n        net.requires_grad_(False)",
    ),
    "planning leaves the pipeline as it was ": ("generator=work.generator(concept)", ""),
    "same seed gives same bytes": ("work.generator(concept)", "torch.Generator().manual_seed(id(old))"),
    "refuses concepts that cannot be": ("check_concepts(pipe, concepts)", ""),
    "plan says what it erases": (
        "return self.planned(pipe, concepts, work, ops)",
        "from efface.core.eraser import editable\n        from efface.core.plan import Plan\n"
        "        return Plan.of(editable(pipe), ops, method=self.name, whole=False)",
    ),
    "edits what it names and nothing else": (
        "return self.planned(pipe, concepts, work, ops)",
        "from efface.core.eraser import editable\n        from efface.core.plan import Plan\n"
        "        return Plan.of(editable(pipe), ops, method=self.name, **concepts.facts())",
    ),
    "comes in strengths": ("Map(name", "type('M', (Map,), {'scaled': lambda self, s: self})(name"),
}


def test_a_good_eraser_of_another_package_passes(install):
    install(GOOD, "turn")
    check_method("turn")


@pytest.mark.parametrize("promise", LIES)
def test_a_broken_promise_is_named(install, promise):
    truth, lie = LIES[promise]
    assert truth in GOOD
    install(GOOD.replace(truth, lie), "turn")
    (check,) = (c for c in checks("turn") if c.name == promise.strip())
    with pytest.raises(ContractError, match=f"turn, {check.name}"):
        check.run()
