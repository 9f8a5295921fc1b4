"""Plans are applied whole or not at all, undone bit by bit, refused where they do not belong, replayed elsewhere."""

import copy
import gc
import io
import json
import os
import subprocess
import sys
import weakref
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from efface.core.fingerprint import Fingerprint
from efface.core.ops import Bypass, Delta, Mask, Replace
from efface.core.plan import Plan
from efface.core.trial import apart
from efface.errors import EffaceError, OutputError, PlanError, UsageError, WeightsError
from efface.io.weights import save_weights

BUILD = (
    "nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), nn.Linear(6, 6))"
)
X = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(2))


def build(seed=0):
    torch.manual_seed(seed)
    return eval(BUILD).eval()


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask(target="4.weight", shape=(6, 36), seed=1):
    return Mask(target, noise(*shape, seed=seed) > 0)


OPS = (
    lambda: mask("0.weight", (4, 2, 3, 3)),
    lambda: mask(),
    lambda: Delta.set("4.weight", noise(6, 36), noise(6, 36) > 1),
    lambda: Delta.set("1.running_mean", noise(4)),
    lambda: Delta.low_rank("5.weight", noise(6, 1), noise(1, 6), 0.1),
    lambda: Delta.add("0.bias", noise(4)),
    lambda: Bypass("2"),
    lambda: Replace.by("2", nn.LeakyReLU(0.2), {"negative_slope": 0.2}),
)
SEVERAL = [make() for make in OPS]


def printed(table):
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def refused(match, call, *args, **kwargs):
    with pytest.raises(PlanError, match=match) as caught:
        call(*args, **kwargs)
    return caught.value


# Applying and undoing


@settings(max_examples=40)
@given(st.lists(st.sampled_from(OPS), unique=True), st.sampled_from([torch.float32, torch.float64]))
def test_whatever_is_applied_is_undone(makes, dtype):
    net = build().to(dtype)
    kept = [op for make in makes if not isinstance(op := make(), Delta) or op.relative or dtype == torch.float32]
    before, modules = Fingerprint.of(net), list(net.modules())
    plan = Plan.of(net, kept)
    assert Fingerprint.of(net) == before == plan.base
    assert plan.apply(net) is net
    assert Fingerprint.of(net) == plan.after
    assert plan.undo(net) is net
    assert Fingerprint.of(net) == before
    assert all(a is b for a, b in zip(modules, net.modules(), strict=True))


def test_making_a_plan_leaves_modes_gradients_and_draws_alone():
    net = build().train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    draws, weight = torch.get_rng_state(), net[5].weight
    Plan.of(net, SEVERAL)
    assert torch.equal(draws, torch.get_rng_state())
    assert net[5].weight is weight
    assert [m.training for m in net] == [True, False, True, True, True, True]
    assert [p.requires_grad for p in net.parameters()] == [False, *[True] * 7]


@dataclass(frozen=True, eq=False)
class Broken(Mask):
    """An edit that fails when it is applied."""

    def apply(self, model):
        raise RuntimeError("out of memory")


def test_when_one_edit_fails_none_is_made():
    net = build()
    before = Fingerprint.of(net)
    broken = Broken("5.weight", torch.ones(6, 6, dtype=torch.bool))
    error = refused("out of memory", Plan.of, net, [*SEVERAL, broken])
    assert error.where == "5.weight"
    refused("no module is called 'nothing'", Plan.of, net, [*SEVERAL, Bypass("nothing")])
    good = Plan.of(net, SEVERAL)
    refused("out of memory", Plan((*SEVERAL, broken), good.base, good.after, {}).apply, net)
    assert Fingerprint.of(net) == before
    refused("is not applied", good.undo, net)


def test_stacked_plans_are_undone_in_reverse_order():
    net = build()
    states, plans = [Fingerprint.of(net)], []
    for seed in range(3):
        plans.append(Plan.of(net, [mask(seed=seed)], method=str(seed)))
        states.append(Fingerprint.of(plans[-1].apply(net)))
    for plan in reversed(plans):
        assert Fingerprint.of(net) == states.pop()
        plan.undo(net)
    assert Fingerprint.of(net) == states.pop()


def test_undo_refuses_what_it_cannot_put_back():
    net = build()
    plan, other = Plan.of(net, [mask()], method="one"), Plan.of(net, [Bypass("5")], method="two")
    refused("is not applied to this model", plan.undo, net)
    plan.apply(net)
    refused("is not applied to this model", plan.undo, copy.deepcopy(net))
    later = Plan.of(net, [Bypass("5")], method="later")
    later.apply(net)
    assert refused("another plan was applied after it", plan.undo, net).fix == "Undo later first"
    refused("is not applied to this model", other.undo, net)
    later.undo(net)
    with torch.no_grad():
        net[0].bias.add_(1)
    refused("changed after the plan was applied .*0.bias", plan.undo, net)
    assert int((net[4].weight == 0).sum()) > 0


def test_what_undoes_a_plan_goes_with_its_model():
    net = build()
    Plan.of(net, SEVERAL).apply(net)
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None


# Where a plan belongs


def other_names():
    return nn.Sequential(*[build()[at] for at in (0, 1, 2, 3, 4)])


def other_shapes():
    net = build()
    net[5] = nn.Linear(6, 7)
    return net


def other_format():
    return build().half()


def other_ties():
    net = build()
    net[5].bias = net[4].bias
    return net


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (other_names, r"2 missing: 5.weight, 5.bias"),
        (other_shapes, r"2 of another form: 5.weight float32\[7,6\] instead of float32\[6,6\]"),
        (other_format, r"10 of another form: 0.weight float16\[4,2,3,3\]"),
        (other_ties, r"tied in another way: 5.bias"),
        (lambda: nn.Linear(1, 1), r"11 missing: .*2 unexpected: weight, bias"),
    ],
)
def test_a_plan_for_another_model_names_the_first_differences(make, match):
    net, plan = make(), Plan.of(build(), [mask()], method="some-method")
    before = Fingerprint.of(net)
    for strict in (True, False):
        error = refused(f"the plan is for another model .*{match}", plan.apply, net, strict=strict)
        assert error.where == "some-method"
    assert Fingerprint.of(net) == before


def test_other_weights_are_refused_unless_they_are_wanted():
    plan, net = Plan.of(build(), [mask(), Delta.set("1.bias", noise(4))]), build(seed=1)
    refused(r"other weights \(\d with other weights: 0.weight", plan.apply, net)
    before = Fingerprint.of(net)
    plan.apply(net, strict=False)
    assert torch.equal(net[4].weight != 0, plan.masks()["4.weight"])
    plan.undo(net)
    assert Fingerprint.of(net) == before


def test_an_addition_is_never_made_to_other_weights():
    plan, net = Plan.of(build(), SEVERAL), build(seed=1)
    assert refused("adds to the weights it was made for", plan.apply, net, strict=False).where == "5.weight"
    plan.apply(build())


def test_a_plan_is_applied_once():
    net = build()
    plan = Plan.of(net, [mask()])
    plan.apply(net)
    refused("is applied to this model already", plan.apply, net, strict=False)
    refused("is applied to these weights already", plan.apply, copy.deepcopy(net))


def test_weights_with_nan_are_refused():
    net = build()
    with torch.no_grad():
        net[4].weight[0, 0] = float("nan")
    assert refused("NaN", Plan.of, net, [mask()]).where == "4.weight"


@pytest.mark.parametrize(("bad", "wrong"), [("nan", True), ("inf", False)])
def test_buffers_with_nan_are_refused_and_infinite_ones_are_masks(bad, wrong):
    net = build()
    net[1].running_mean[2] = float(bad)
    if wrong:
        assert refused("NaN", Plan.of, net, [mask()]).where == "1.running_mean"
    else:
        assert Plan.of(net, [mask()]).ops


def test_two_names_of_a_tied_weight_are_not_both_edited():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    add = [Delta.add(f"{at}.weight", torch.ones(4, 4)) for at in range(2)]
    refused("0.weight and 1.weight are one tied parameter", Plan.of, net, add)
    plan = Plan.of(net, add[1:])
    assert plan.base.tied == {"1.weight": "0.weight"}
    before = net[0].weight.detach().clone()
    assert torch.equal(plan.apply(net)[0].weight, before + 1)
    refused("tied in another way: 1.weight", plan.apply, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))


def shared():
    """Build a net with one batch norm in two places, and a buffer that is not saved."""
    net = build()
    net.append(net[1]).register_buffer("own", noise(4), persistent=False)
    return net


@pytest.mark.parametrize(
    ("make", "ops", "alone"),
    [
        (build, SEVERAL[:1] + SEVERAL[3:6], True),
        (build, [], True),
        (build, SEVERAL, False),
        (build, [mask(), mask(seed=3)], False),
        (shared, [Delta.set("1.running_mean", noise(4))], False),
        (shared, [Delta.set("6.bias", noise(4)), Delta.add("own", noise(4))], True),
    ],
)
def test_edits_of_tensors_are_looked_at_one_by_one_where_that_says_the_same(make, ops, alone, monkeypatch):
    net = make()
    assert (apart(ops, net) is not None) == alone
    if alone:
        for kind in (Mask, Delta):
            monkeypatch.setattr(kind, "apply", None)
    plan = Plan.of(net, ops)
    assert len(plan.diff(net).rows) == len(ops)
    plan.cost(net)
    monkeypatch.undo()
    assert Fingerprint.of(plan.apply(net)) == plan.after


def test_a_model_without_content_can_be_planned_for():
    with torch.device("meta"):
        ghost = build()
    plan = Plan.of(ghost, SEVERAL)
    assert plan.cost(ghost).kept == Plan.of(build(), SEVERAL).cost(build()).kept
    assert [row.kept for row in plan.diff(ghost).rows] == [row.kept for row in plan.diff(build()).rows]
    assert torch.equal(plan.apply(build())(X), Plan.of(build(), SEVERAL).apply(build())(X))


# Adding plans


def test_a_plan_made_after_another_is_added():
    net = build()
    first = Plan.of(net, [mask()], method="first")
    first.apply(net)
    second = Plan.of(net, [Delta.low_rank("4.weight", noise(6, 1), noise(1, 36)), Bypass("5")], method="second")
    both = first + second
    expected = second.apply(net)(X)
    again = build()
    assert torch.equal(both.apply(again)(X), expected)
    assert Fingerprint.of(again) == both.after
    assert Fingerprint.of(both.undo(again)) == Fingerprint.of(build())
    assert both.made_by["method"] == "first + second"
    refused("neither on the model that the first, second, makes", lambda: second + first)


def test_plans_for_different_places_of_one_model_are_added():
    net = build()
    one, two = Plan.of(net, [mask()]), Plan.of(net, [mask("0.weight", (4, 2, 3, 3)), Bypass("5")])
    for both in (one + two, two + one):
        assert Fingerprint.of(both.apply(build())) == both.after


@pytest.mark.parametrize("second", [mask(seed=3), Bypass("4"), Delta.set("4.weight", noise(6, 36))])
def test_plans_that_contradict_each_other_are_not_added(second):
    one, two = Plan.of(build(), [mask()], method="one"), Plan.of(build(), [second])
    refused("made on the same weights and both change 4", lambda: one + two)
    refused("made on the same weights and both change 4", lambda: two + one)


def test_plans_for_different_models_are_not_added():
    first, second = (Plan.of(build(seed), [mask()], method="halves") for seed in (0, 1))
    refused("the second plan, halves, was made neither on the model that the first, halves,", lambda: first + second)


# Showing and costing


def test_a_diff_shows_each_edit_on_the_model_as_it_then_is(tmp_path):
    net, keep = build(), noise(6, 36) > 0
    before, weight = Fingerprint.of(net), net[4].weight.detach().clone()
    twice = [Mask("4.weight", keep), Mask("4.weight", torch.zeros_like(keep)), Bypass("5")]
    diff = Plan.of(net, twice, method="halves").diff(net)
    assert Fingerprint.of(net) == before
    first, second, third = diff.rows
    assert (first.weights, first.kept, first.shape) == (216, int(keep.sum()), (6, 36))
    assert first.norm == pytest.approx(float(weight[~keep].norm()))
    assert second.norm == pytest.approx(float(weight[keep].norm()))
    assert (third.removed, third.share) == (42, 1.0)
    assert diff.removed == sum(row.removed for row in diff.rows)
    assert {"halves:", "4.weight", "bypass", "216"} <= set(printed(diff.table()).split())
    assert str(diff) == printed(diff.table())
    plan = Plan.of(net, twice, method="halves")
    assert (repr(plan), repr(plan.ops[2])) == ("Plan(halves, 3 edits)", "Bypass(5)")
    assert repr(before).startswith("Fingerprint(11 tensors, ")
    diff.plot(tmp_path / "diff.png")
    assert (tmp_path / "diff.png").stat().st_size > 1000
    with pytest.raises(OutputError):
        diff.plot(tmp_path / "diff.png")


def test_an_empty_plan_shows_nothing(tmp_path):
    plan = Plan.of(build(), [])
    plan.save(tmp_path)
    diff = Plan.load(tmp_path).diff(build())
    assert (diff.rows, diff.share) == ((), 0.0)
    diff.table()
    diff.plot(tmp_path / "none.png")
    assert plan.cost(build()).parameters == plan.cost(build()).kept


def test_cost_counts_parameters_flops_and_bytes():
    net, keep = build(), torch.zeros(6, 36, dtype=torch.bool)
    keep[:, :9] = True
    before = Fingerprint.of(net)
    plan = Plan.of(net, [Mask("4.weight", keep), Bypass("5")])
    cost = plan.cost(net, (X[:1],))
    assert Fingerprint.of(net) == before
    parameters = sum(p.numel() for p in net.parameters())
    assert (cost.parameters, cost.kept) == (parameters, parameters - 42 - 162)
    assert (cost.flops - cost.flops_after) == 2 * (36 + 162)
    assert cost.dense - cost.dense_after == 4 * 42
    assert cost.dense_after - cost.sparse_after == 4 * 216 - (216 // 8 + 4 * 54)
    assert "1 MAC = 2 FLOPs" in cost.convention
    assert "FLOPs" in printed(cost.table())
    assert plan.cost(net).flops is None


def test_weights_that_a_later_edit_brings_back_count_as_kept():
    revived = [mask(), Delta.add("4.weight", noise(6, 36))]
    assert Plan.of(build(), revived).masks() == {}
    assert Plan.of(build(), [mask(), Bypass("4")]).masks() == {}
    both = Plan.of(build(), [mask(), mask(seed=3)]).masks()["4.weight"]
    assert torch.equal(both, (noise(6, 36) > 0) & (noise(6, 36, seed=3) > 0))


# Disk


@pytest.fixture
def folder(tmp_path):
    Plan.of(build(), SEVERAL, method="several", seed=3).save(tmp_path / "plan")
    return tmp_path / "plan"


def test_a_plan_comes_back_and_its_bytes_are_always_the_same(folder, tmp_path):
    plan = Plan.load(folder)
    assert plan.made_by == {"method": "several", "seed": 3}
    assert torch.equal(plan.apply(build())(X), Plan.of(build(), SEVERAL).apply(build())(X))
    plan.save(tmp_path / "again")
    for name in os.listdir(folder):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        plan.save(folder)
    plan.save(folder, overwrite=True)


def test_a_mask_takes_one_bit_a_weight_on_disk(tmp_path):
    net = nn.Linear(800, 1000)
    Plan.of(net, [Mask("weight", noise(1000, 800) > 0)]).save(tmp_path)
    assert (tmp_path / "plan.safetensors").stat().st_size < 800 * 1000 / 8 + 200


def test_replay_in_a_fresh_process_gives_the_same_bits(folder):
    script = (
        "import sys, torch; from torch import nn; from efface.core.plan import Plan\n"
        f"torch.set_num_threads(int(sys.argv[2])); torch.manual_seed(0); net = {BUILD}.eval()\n"
        "x = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(2))\n"
        "print(Plan.load(sys.argv[1]).apply(net)(x).view(-1).view(torch.int32).tolist())"
    )
    command = [sys.executable, "-c", script, str(folder), str(torch.get_num_threads())]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    expected = Plan.of(build(), SEVERAL).apply(build())(X)
    assert json.loads(printed) == expected.view(-1).view(torch.int32).tolist()


@pytest.mark.parametrize("name", ["plan.json", "plan.safetensors"])
def test_a_damaged_byte_is_noticed_or_changes_nothing(folder, name):
    whole, expected = (folder / name).read_bytes(), Plan.load(folder).apply(build())(X)
    for at in range(0, len(whole), 61):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        (folder / name).write_bytes(damaged)
        try:
            plan = Plan.load(folder)
        except (PlanError, WeightsError):
            continue
        assert torch.equal(plan.apply(build())(X), expected)


def rewrite(**changes):
    def change(folder):
        content = json.loads((folder / "plan.json").read_text()) | changes
        (folder / "plan.json").write_text(json.dumps(content))

    return change


def truncate(name):
    def change(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])

    return change


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda f: (f / "plan.json").unlink(), "has no plan.json, so it is incomplete"),
        (lambda f: (f / "plan.safetensors").unlink(), "the weights are missing"),
        (truncate("plan.json"), "is not a plan"),
        (truncate("plan.safetensors"), "not the one its card describes"),
        (rewrite(format=2), "the plan has form 2, and this version reads up to 1"),
        (rewrite(format=2, ops=[{"op": "drop"}]), "Install a newer version"),
        (rewrite(ops=[]), "the plan is damaged"),
        (rewrite(made_by=None), "the plan is damaged"),
        (lambda f: (f / "plan.json").write_text("[]"), "is not a plan"),
    ],
)
def test_a_plan_that_is_not_whole_is_refused(folder, damage, match):
    damage(folder)
    with pytest.raises(EffaceError, match=match) as caught:
        Plan.load(folder)
    assert isinstance(caught.value, (PlanError, WeightsError))
    assert caught.value.fix


def test_what_is_no_plan_is_refused(tmp_path):
    save_weights(tmp_path, {"a": torch.ones(1)}, {"method": "some"})
    for path in (tmp_path, tmp_path / "card.json"):
        with pytest.raises(WeightsError):
            Plan.load(path)
    with pytest.raises(UsageError, match="no such folder"):
        Plan.load(tmp_path / "nowhere")


def test_a_plan_is_found_by_its_file_and_in_the_folder_of_its_model(tmp_path):
    plan = Plan.of(build(), [mask()])
    plan.save(tmp_path / "plan")
    for place in (tmp_path, tmp_path / "plan", tmp_path / "plan/plan.json"):
        assert Plan.load(place).after == plan.after


def test_facts_that_are_no_json_are_refused_before_anything_is_written(tmp_path):
    plan = Plan.of(build(), [], device=torch.device("cpu"))
    refused("is not JSON", plan.save, tmp_path / "plan")
    assert not (tmp_path / "plan").exists()
