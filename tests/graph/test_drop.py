"""Edits that drop channels can be applied, undone, stored and replayed, with all that belongs to the channels."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F

from efface.core.ops.drop import Drop, carrying
from efface.core.ops.mask import Mask
from efface.core.plan import Plan
from efface.core.removal import plan_removal
from efface.core.trial import trial
from efface.errors import PlanError, UnknownNameError
from efface.parts.graph import channel_graph, keep_best
from efface.parts.nn.resnets import resnet_cifar

X = zoo.pictures(2, 3, 8, 8)


def small() -> nn.Module:
    torch.manual_seed(0)
    return resnet_cifar(8, 8).eval()


@pytest.fixture(scope="module")
def plan() -> Plan:
    net = small()
    graph = channel_graph(net, (X,))
    keep = {n: keep_best(g, np.arange(g.size), 0.5, multiple_of=2) for n, g in graph.groups.items()}
    return Plan.of(net, plan_removal(graph, keep), method="test")


def test_plan_makes_a_smaller_network_that_trains(plan: Plan) -> None:
    net = plan.apply(small())
    assert sum(p.numel() for p in net.parameters()) < 0.3 * sum(p.numel() for p in small().parameters())
    assert net.conv1.out_channels == 4 == net.bn1.num_features
    assert net.fc.in_features == 16 == net.fc.weight.shape[1]
    net.train()
    F.cross_entropy(net(X), torch.tensor([0, 1])).backward()
    assert all(p.grad.shape == p.shape for p in net.parameters())


def test_undo_is_bit_equal_in_both_memory_formats(plan: Plan) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        net, twin = small().to(memory_format=layout), small()
        identities = [id(p) for p in net.parameters()]
        plan.undo(plan.apply(net))
        assert identities == [id(p) for p in net.parameters()]
        assert all(
            torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True)
        )
        assert net.conv1.weight.is_contiguous(memory_format=layout)
        assert (net.conv1.out_channels, net.fc.in_features) == (8, 32)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_optimizer_and_gradients_follow(plan: Plan, kind: type[torch.optim.Optimizer]) -> None:
    net = small()
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(net.parameters(), lr=0.0, weight_decay=0.0, **options)
    F.cross_entropy(net(X), torch.tensor([0, 1])).backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    grads = [p.grad.clone() for p in net.parameters()]
    with carrying(optimizer):
        plan.apply(net)
    for p in net.parameters():
        assert p.grad.shape == p.shape
        assert {v.shape for v in optimizer.state[p].values() if isinstance(v, torch.Tensor) and v.ndim} == {p.shape}
    plan.undo(net)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(a, b.grad) for a, b in zip(grads, net.parameters(), strict=True))
    for number, state in before.items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[number][key]))


def test_saved_plan_replays_in_a_fresh_process(plan: Plan, tmp_path) -> None:
    plan.save(tmp_path / "plan")
    code = (
        "import sys, torch\nfrom efface.core.plan import Plan\nfrom efface.parts.nn.resnets import resnet_cifar\n"
        "torch.manual_seed(0)\nnet = Plan.load(sys.argv[1]).apply(resnet_cifar(8, 8).eval())\n"
        "torch.save(net(torch.ones(1, 3, 8, 8)), sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "plan"), str(tmp_path / "out.pt")], check=True)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(found, plan.apply(small())(torch.ones(1, 3, 8, 8)))


def test_cost_and_diff_count_what_goes(plan: Plan) -> None:
    net = small()
    cost = plan.cost(net, (X,))
    smaller = plan.apply(small())
    assert cost.kept == sum(p.numel() for p in smaller.parameters())
    assert cost.flops_after is not None
    assert cost.flops_after < 0.4 * cost.flops
    assert all(0 < row.kept < row.weights and row.norm > 0 for row in plan.diff(net).rows)


def test_another_network_is_refused(plan: Plan) -> None:
    wider = resnet_cifar(8, 12).eval()
    with pytest.raises(PlanError, match="another model"):
        plan.apply(wider)
    for op in plan.ops:
        assert isinstance(op, Drop)
    with pytest.raises(PlanError, match="the edit is for 8 indices"):
        plan.ops[0].check(wider)
    net = small()
    net.conv1.out_channels = 9
    with pytest.raises(PlanError, match="out_channels = 8, and the module has 9"):
        plan.ops[0].check(net)


@pytest.mark.parametrize("damage", ["unsorted", "outside", "all", "too many", "dimension"])
def test_damaged_edits_are_refused(plan: Plan, damage: str) -> None:
    op = plan.ops[0]
    values, tensors = copy.deepcopy(op.values()), {"indices": op.tensors()["indices"].clone()}
    match damage:
        case "unsorted":
            tensors["indices"] = tensors["indices"].flip(0)
        case "outside":
            tensors["indices"][3] += 99
        case "all":
            values["cuts"][0][2] = values["cuts"][0][3]
        case "too many":
            tensors["indices"] = torch.cat([tensors["indices"], tensors["indices"][:1]])
        case "dimension":
            values["cuts"][0][1] = -1
    with pytest.raises(ValueError, match="indices"):
        Drop.read(op.target, values, tensors)


def test_masks_are_checked() -> None:
    graph = channel_graph(small(), (X,))
    with pytest.raises(PlanError, match="nothing of the group would be left"):
        plan_removal(graph, {"conv1": np.zeros(8)})
    with pytest.raises(PlanError, match="3 entries and the group 8 classes"):
        plan_removal(graph, {"conv1": np.ones(3)})
    with pytest.raises(UnknownNameError, match="conv1"):
        plan_removal(graph, {"conv": np.ones(8)})
    assert plan_removal(graph, {"conv1": np.ones(8)}) == []


def test_masks_follow_what_is_dropped_after_them() -> None:
    net = small()
    masks = [Mask(f"{name}.weight", torch.rand(net.get_submodule(name).weight.shape) < 0.5) for name in ("conv1", "fc")]
    with trial(masks, net):
        graph = channel_graph(net, (X,))
        drops = plan_removal(graph, {n: keep_best(g, np.arange(g.size), 0.5) for n, g in graph.groups.items()})
    both = Plan.of(net, [*masks, *drops], method="both")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cost = both.cost(net, (X,))
    smaller = both.apply(net)
    weights, alive = dict(net.named_parameters()), both.masks()
    assert alive.keys() == {"conv1.weight", "fc.weight"}
    for name, mask in alive.items():
        assert mask.shape == weights[name].shape
        assert not weights[name][~mask].any()
    zeros = sum(int((~mask).sum()) for mask in alive.values())
    assert cost.kept == sum(p.numel() for p in smaller.parameters()) - zeros
    both.undo(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
