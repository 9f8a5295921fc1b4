"""A table that grew has its old rows bit by bit, and its new ones go without a trace."""

import pytest
import torch
from torch import nn

from efface.core.fingerprint import Fingerprint
from efface.core.ops import OPS, Grow
from efface.core.plan import Plan
from efface.errors import PlanError


class Config:
    """What models of transformers hold beside their modules."""

    vocab_size = 5


class Encoder(nn.Module):
    """A table inside of a model that says how long it is."""

    def __init__(self, rows=5, width=4, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.config, self.table, self.out = Config(), nn.Embedding(rows, width), nn.Linear(width, 2)

    def forward(self, ids):
        return self.out(self.table(ids))


def rows(count=3, width=4):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def box():
    return nn.ModuleDict({"text": Encoder()})


@pytest.fixture
def plan(box):
    return Plan.of(box, [Grow.of("text.table.weight", 5, rows())], method="words", whole=False)


def test_rows_are_appended_and_taken_back_bit_by_bit(box, plan):
    before, ids, parameter = Fingerprint.of(box), torch.arange(5), box["text"].table.weight
    expected = box["text"](ids)
    plan.apply(box)
    table = box["text"].table
    assert table.weight is parameter
    assert (len(table.weight), table.num_embeddings, box["text"].config.vocab_size) == (8, 8, 8)
    assert torch.equal(table.weight[5:], rows())
    assert torch.equal(box["text"](ids), expected)
    assert box["text"](torch.tensor([7])).isfinite().all()
    plan.undo(box)
    assert (table.num_embeddings, box["text"].config.vocab_size) == (5, 5)
    assert table.weight is parameter
    assert Fingerprint.of(box) == before


def test_a_saved_plan_adds_the_same_rows(box, plan, tmp_path):
    plan.save(tmp_path)
    again = Plan.load(tmp_path)
    (op,) = again.ops
    assert (op.kind, op.start, op.target) == ("grow", 5, "text.table.weight")
    again.apply(box)
    assert torch.equal(box["text"].table.weight[5:], rows())


def test_any_strength_has_all_the_rows(box, plan):
    for strength in (0.0, 0.5):
        weaker = plan.scaled(strength)
        weaker.apply(box)
        assert torch.equal(box["text"].table.weight[5:], rows())
        weaker.undo(box)


def test_a_row_counts_the_longer_table(box, plan):
    (row,) = plan.diff(box).rows
    assert (row.op, row.shape, row.weights, row.removed) == ("grow", (8, 4), 32, 0)
    assert row.norm == pytest.approx(float(rows().norm()))


@pytest.mark.parametrize(
    "other", [Encoder(rows=6), Encoder(width=3), Encoder(seed=1), Encoder().double()],
    ids=["longer", "narrower", "other weights", "other format"],
)  # fmt: skip
def test_another_base_is_refused_and_left_alone(plan, other):
    box = nn.ModuleDict({"text": other})
    before = Fingerprint.of(box)
    with pytest.raises(PlanError):
        plan.apply(box)
    assert Fingerprint.of(box) == before


def test_a_table_that_grew_already_is_refused(box, plan):
    plan.apply(box)
    with pytest.raises(PlanError, match="for a table"):
        plan.ops[0].check(box)
    with pytest.raises(PlanError):
        plan.apply(box)
    assert len(box["text"].table.weight) == 8


@pytest.mark.parametrize("wrong", [torch.zeros(4), torch.full((2, 4), float("nan"))])
def test_rows_that_cannot_be_are_refused(wrong):
    with pytest.raises(PlanError, match="no matrix"):
        Grow.of("text.table.weight", 5, wrong)


def test_the_edit_is_known_by_its_name():
    op = Grow.of("table.weight", 5, rows())
    again = OPS["grow"].read(op.target, op.values(), op.tensors())
    assert (again.start, again.rows.equal(op.rows)) == (5, True)
