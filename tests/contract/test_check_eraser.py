"""`check_method` finds broken promises in erasers of other packages."""

from pathlib import Path

import pytest

from efface.core.contract import ContractError, check_method, checks

GOOD = (Path(__file__).parents[1] / "concepts/turn.py").read_text("utf-8")
LIES = {
    "planning leaves the pipeline as it was": (
        "ups, downs = [], []",
        "ups, downs = [], []\n        net.requires_grad_(False)",
    ),
    "planning leaves the pipeline as it was ": ("generator=work.generator(concept)", ""),
    "same seed gives same bytes": (
        "work.generator(concept)",
        "torch.Generator().manual_seed(__import__('time').time_ns())",
    ),
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
