"""`check_method` finds broken promises in editors of other packages."""

import pytest

from efface.core.contract import ContractError, check_method, checks

GOOD = '''"""Cut small weights.

Left out: everything.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from efface.core.card import Card
from efface.core.method import Editor, param
from efface.core.ops import Delta, Mask
from efface.core.plan import Plan
from efface.parts.sparsity.prunable import prunable


@dataclass(frozen=True, kw_only=True)
class Cut(Editor):
    """Random weights of each layer go, and a step of training follows."""

    sparsity: float = param(0.5, "share of the weights that go", low=0.0, high=1.0)
    card = Card(
        title="Cut",
        paper="of no paper",
        year=2026,
        task="weights from networks",
        inputs=(),
        good_at="Tests.",
    )
    needs: ClassVar = "task"
    small: ClassVar = {"sparsity": 0.25}

    def plan(self, model, data, work):
        """Draw the masks."""
        weights = prunable(model)
        ops = [Mask(name, self.mask(name, weight, work)) for name, weight in weights.items()]
        label = data.train.batch(work.seed, 0, 2)["label"]
        ops.append(Delta.add("0.bias", 0.1 * label.float().repeat(4)))
        return Plan.of(model, ops, method=self.name)

    def mask(self, name, weight, work):
        order = torch.randperm(weight.numel(), generator=work.generator(name))
        return (order >= round(self.sparsity * weight.numel())).view(weight.shape)
'''
LIES = {
    "planning leaves the model as it was": ("weights = prunable(model)", "weights = prunable(model.eval())"),
    "planning leaves the model as it was ": (
        "return Plan.of(model, ops, method=self.name)",
        "plan = Plan.of(model, ops, method=self.name)\n        plan.apply(model)\n        return plan",
    ),
    "planning leaves the model as it was  ": ("generator=work.generator(name)", ""),
    "same seed gives same bytes": ("work.generator(name)", "torch.Generator().manual_seed(id(weight))"),
    "meets the sparsity": ("round(self.sparsity", "2 + round(self.sparsity"),
    "refuses broken weights": (
        "weights = prunable(model)",
        "[p.detach().nan_to_num_() for p in model.parameters()]\n        weights = prunable(model)",
    ),
    "says what it needs": ('"task"', '"data"'),
    "leaves a plain model": (
        "from efface.core.ops import Delta, Mask\n",
        "from efface.core import ops\nfrom efface.core.ops import Delta\n\n\nclass Mask(ops.Mask):\n"
        "    def apply(self, model):\n        model[6].register_forward_hook(lambda *args: None)\n"
        "        return super().apply(model)\n\n\n",
    ),
    "bad hyper parameters are refused": (
        "    def plan(",
        "    def __post_init__(self):\n        pass\n\n    def plan(",
    ),
}


def test_a_good_editor_of_another_package_passes(install):
    install(GOOD, "cut")
    check_method("cut")


@pytest.mark.parametrize("promise", LIES)
def test_a_broken_promise_is_named(install, promise):
    truth, lie = LIES[promise]
    assert truth in GOOD
    install(GOOD.replace(truth, lie), "cut")
    (check,) = (c for c in checks("cut") if c.name == promise.strip())
    with pytest.raises(ContractError, match=f"cut, {check.name}"):
        check.run()
