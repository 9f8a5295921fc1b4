"""Maps of what goes into layers; plans in strengths; plans that know only what they edit."""

import copy

import pytest
import torch
from torch import nn

from efface.core.fingerprint import Fingerprint
from efface.core.ops import OPS, Bypass, Delta, Map, Mask
from efface.core.plan import Plan, applied
from efface.errors import PlanError


def build(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleDict({
        "net": nn.ModuleDict({"k": nn.Linear(4, 6), "v": nn.Linear(4, 3, bias=False), "out": nn.Linear(6, 4)}),
        "text": nn.Linear(4, 4),
    })  # fmt: skip


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turn(layers=("k", "v"), **given):
    return Map("net", layers, given.get("up", noise(4, 2)), given.get("down", noise(2, 4, seed=2)))


def test_a_map_is_seen_by_its_layers_as_a_map_of_their_input():
    net, op, x = build(), turn(), noise(5, 4, seed=3)
    mapped = x @ op.matrix.float().T
    expected = {name: net["net"][name](mapped) for name in ("k", "v")} | {"out": net["net"]["out"].weight.clone()}
    undo, before = op.apply(net), Fingerprint.of(build())
    for name in ("k", "v"):
        assert torch.allclose(net["net"][name](x), expected[name], atol=1e-5)
    assert torch.equal(net["net"]["out"].weight, expected["out"])
    undo(net)
    assert Fingerprint.of(net) == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_map_is_stored_and_made_in_the_format_of_the_weights(dtype):
    net, op = build().to(dtype), turn()
    again = OPS["map"].read(op.target, op.values(), op.tensors())
    exact = net["net"]["k"].weight.double() @ op.matrix
    again.apply(net)
    assert net["net"]["k"].weight.dtype == dtype
    assert torch.equal(net["net"]["k"].weight, exact.to(dtype)) or dtype == torch.float64
    assert torch.allclose(net["net"]["k"].weight.double(), exact, rtol=torch.finfo(dtype).eps * 8)


def test_a_row_of_a_map_counts_its_layers():
    row = turn().row(build())
    assert (row.weights, row.kept, row.removed, row.op) == (36, 36, 0, "map of rank 2")
    assert row.norm > 0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: turn(up=noise(4, 3)), "which is no map"),
        (lambda: turn(up=noise(4)), "no matrix"),
        (lambda: turn(up=torch.full((4, 2), float("nan"))), "no matrix of finite"),
        (lambda: turn(layers=()), "names no layer"),
        (lambda: turn(layers=("k", "k")), "or one twice"),
        (lambda: turn(layers=("q",)).check(build()), "q"),
        (lambda: turn(layers=("out",)).check(build()), "vectors of width 4"),
    ],
)
def test_maps_that_cannot_be_are_refused(make, match):
    with pytest.raises(PlanError, match=match):
        make()


EDITS = {
    "map": (lambda: [turn()], "net.k.weight"),
    "addition": (lambda: [Delta.add("net.k.weight", noise(6, 4))], "net.k.weight"),
    "low rank": (lambda: [Delta.low_rank("net.k.weight", noise(6, 2), noise(2, 4), 0.5)], "net.k.weight"),
    "values": (lambda: [Delta.set("net.k.bias", noise(6))], "net.k.bias"),
    "several": (lambda: [turn(), Delta.add("net.v.weight", noise(3, 4))], "net.v.weight"),
}


@pytest.mark.parametrize("edit", [name for name in EDITS if name != "several"])
def test_an_edit_grows_with_its_strength(edit, tmp_path):
    make, name = EDITS[edit]
    net = build()
    plan, base = Plan.of(net, make(), method="m"), net.get_parameter(name).detach().clone()
    whole = plan.apply(copy.deepcopy(net)).get_parameter(name) - base
    for strength in (0.0, 0.25, 2.0):
        scaled = plan.scaled(strength)
        scaled.save(tmp_path / str(strength))
        for one in (scaled, Plan.load(tmp_path / str(strength))):
            moved = one.apply(copy.deepcopy(net)).get_parameter(name) - base
            assert torch.allclose(moved, strength * whole, atol=1e-5)
    assert plan.scaled(1) is plan
    assert plan.scaled(0.5).scaled(0.5).made_by["strength"] == 0.25


def test_a_scaled_plan_is_applied_once_and_undone():
    net, before = build(), Fingerprint.of(build())
    plan = Plan.of(net, [turn()])
    scaled = plan.scaled(0.5)
    scaled.apply(net)
    assert applied(net) == (scaled,)
    for again in (scaled, plan.scaled(0.5), plan, plan.scaled(0.7)):
        with pytest.raises(PlanError):
            again.apply(net)
    with pytest.raises(PlanError, match="is not applied to this model"):
        plan.scaled(0.7).undo(net)
    scaled.undo(net)
    assert Fingerprint.of(net) == before
    assert applied(net) == ()


@pytest.mark.parametrize(
    "op",
    [
        Mask("net.k.weight", torch.ones(6, 4, dtype=torch.bool)),
        Delta.set("net.k.weight", noise(6, 4), noise(6, 4) > 0),
        Bypass("text"),
    ],
)
def test_what_is_made_or_not_made_has_no_strength(op):
    with pytest.raises(PlanError, match="has no strength"):
        Plan.of(build(), [op]).scaled(0.5)


@pytest.mark.parametrize("strength", [-1, float("nan"), float("inf")])
def test_a_strength_is_a_number_from_zero(strength):
    with pytest.raises(PlanError, match="is no strength"):
        Plan.of(build(), [turn()]).scaled(strength)


@pytest.mark.parametrize("edit", EDITS)
def test_a_plan_of_a_part_knows_and_asks_nothing_of_the_rest(edit, tmp_path):
    net, other = build(), build()
    plan = Plan.of(net, EDITS[edit][0](), whole=False)
    assert set(plan.base.tensors) == {name for op in plan.ops for name in op.touches}
    plan.save(tmp_path / "plan")
    loaded = Plan.load(tmp_path / "plan")
    assert (loaded.base, loaded.after) == (plan.base, plan.after)
    with torch.no_grad():
        other["text"].weight.fill_(float("nan"))
    loaded.apply(other)
    with torch.no_grad():
        other["text"].weight.fill_(2.0)  # is none of the plan's business
    assert Fingerprint.of(plan.apply(net), plan.base.tensors).tensors == loaded.after.tensors
    loaded.undo(other)
    assert torch.equal(other["net"]["k"].weight, build()["net"]["k"].weight)


def test_a_plan_of_a_part_refuses_another_base():
    plan = Plan.of(build(), [turn()], whole=False)
    with pytest.raises(PlanError, match="other weights"):
        plan.apply(build(seed=1))
    with pytest.raises(PlanError, match=r"another model \(2 missing"):
        plan.apply(nn.ModuleDict({"text": nn.Linear(4, 4)}))
    plan.apply(net := build())
    with pytest.raises(PlanError, match="is applied to these weights already"):
        plan.apply(copy.deepcopy(net))


def test_a_part_that_is_broken_is_refused_and_the_rest_is_not_looked_at():
    net = build()
    with torch.no_grad():
        net["text"].weight[0] = float("nan")
    Plan.of(net, [turn()], whole=False)
    with torch.no_grad():
        net["net"]["k"].weight[0] = float("inf")
    with pytest.raises(PlanError, match="NaN or infinity"):
        Plan.of(net, [turn()], whole=False)


def test_a_tied_weight_of_a_part_goes_by_its_first_name():
    net = build()
    net["text"].weight = nn.Parameter(net["text"].weight.detach())
    net["again"] = nn.Linear(4, 4)
    net["again"].weight = net["text"].weight
    plan = Plan.of(net, [Delta.add("again.weight", noise(4, 4))], whole=False)
    assert set(plan.base.tensors) == {"text.weight"}
    assert plan.base.tied == {"again.weight": "text.weight"}
    plan.apply(net)
    plan.undo(net)


def test_plans_of_parts_add_up_if_they_meet_nowhere_or_follow_each_other():
    net = build()
    first, apart = Plan.of(net, [turn(("k",))], whole=False), Plan.of(net, [turn(("v",))], whole=False)
    clash = Plan.of(net, [Delta.add("net.k.weight", noise(6, 4))], whole=False)
    first.apply(net)
    then = Plan.of(net, [Delta.add("net.k.weight", noise(6, 4)), Delta.add("text.bias", noise(4))], whole=False)
    for both, names in (
        (first + apart, {"net.k.weight", "net.v.weight"}),
        (first + then, {"net.k.weight", "text.bias"}),
    ):
        other = build()
        assert set(both.base.tensors) == set(both.after.tensors) == names
        before = Fingerprint.of(other)
        both.apply(other)
        assert Fingerprint.of(other, names) == both.after
        both.undo(other)
        assert Fingerprint.of(other) == before
    with pytest.raises(PlanError, match=r"both change net\.k\.weight"):
        first + clash
