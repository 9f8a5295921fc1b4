"""A descent finds a lower loss, hands it back, and leaves the model as it was, whatever happens."""

import pytest
import torch
from tiny import tiny
from torch import nn

from efface.core.eraser import Concepts, editable
from efface.core.method import Work
from efface.core.plan import Plan
from efface.errors import EffaceError, UsageError
from efface.parts.concepts.attention import cross_attention
from efface.parts.concepts.slots import encode
from efface.training.baselines import esd, uce
from efface.training.descent import Descended, Rival, copies, descend, load, swapped
from efface.training.recipe import Train

WORK = Work()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).train()


def towards_one(net):
    def loss(step):
        x = torch.randn(16, 3, generator=step.generator("x"))
        error = (net(x) - 1).square().mean()
        return {"total": error, "half": error / 2}

    return loss


def weights(net):
    return {name: weight for name, weight in net.named_parameters() if name.startswith("2.")}


def run(net, steps=20, **more):
    return descend(net, weights(net), towards_one(net), Train(steps=steps, lr=0.05, **more), WORK)


def test_it_descends_and_leaves_no_trace(net):
    before, random = copies(net.state_dict()), torch.random.get_rng_state()
    net[0].weight.grad = marked = torch.ones(4, 3)
    net[2].bias.requires_grad_(False)
    found = run(net)
    assert found.history[-1]["total"] < found.history[0]["total"] / 2
    assert found.history[0]["half"] == pytest.approx(found.history[0]["total"] / 2)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert found.values.keys() == {"2.weight", "2.bias"}
    assert not any(torch.equal(value, before[name]) for name, value in found.values.items())
    assert net.training
    assert net[0].weight.grad is marked
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, False]
    assert net[2].weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), random)


def test_the_same_seed_gives_the_same_bytes(net):
    one, two, other = run(net), run(net), run(net, seed=1)
    assert all(torch.equal(value, two.values[name]) for name, value in one.values.items())
    assert one.history == two.history
    assert not torch.equal(one.values["2.weight"], other.values["2.weight"])


@pytest.mark.parametrize("broken", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_model_as_it_was(net, broken):
    before, fine = copies(net.state_dict()), towards_one(net)

    def loss(step):
        if step.step == 3:
            raise broken
        return fine(step)

    with pytest.raises(broken):
        descend(net, weights(net), loss, Train(steps=5), WORK)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_a_loss_that_is_never_finite_is_given_up(net):
    with pytest.raises(EffaceError, match="not finite"):
        descend(net, weights(net), lambda step: {"total": net[2].bias.sum() / 0}, Train(steps=30), WORK, name="esd")


def test_what_cannot_be_trained_is_refused(net):
    with pytest.raises(UsageError, match="no weights"):
        descend(net, {}, towards_one(net), Train(), WORK)
    with pytest.raises(UsageError, match="float16, in which small steps"):
        descend(net.half(), weights(net), towards_one(net), Train(), WORK)


def test_a_rival_learns_by_its_own_loss_alone_and_steps_first(net):
    rival = nn.Linear(1, 1)
    before, seen = copies(dict(rival.named_parameters())), []

    def own(step):
        seen.append("rival")
        return {"total": (rival.weight - 5).square().sum()}

    def loss(step):
        seen.append("main")
        x = torch.randn(16, 3, generator=step.generator("x"))
        return {"total": rival(net(x)).square().mean()}  # would pull the rival's weights to 0

    against = Rival(rival, own, {"lr": 0.5})
    found = descend(net, weights(net), loss, Train(steps=3, lr=0.05), WORK, rival=against)
    assert seen == ["rival", "main"] * 3
    assert torch.equal(rival.bias, before["bias"])
    assert rival.weight.item() == pytest.approx(before["weight"].item() + 1.5, abs=0.05)  # Adam goes lr a step
    assert found.history[0].keys() >= {"total", "rival/total"}
    assert not torch.equal(found.values["2.weight"], net[2].weight)


def test_the_ending_is_the_mean_of_the_last_tenth_that_was_not_skipped():
    lines = tuple({"total": 9.0, "a": float(i), "rival/total": 1.0, "lr/main": 0.1} for i in range(19))
    assert Descended({}, (*lines, {})).ending() == {"a": 17.5, "rival/total": 1.0}


def test_swapped_weights_come_back_and_loaded_ones_stay(net):
    own, other = weights(net), {name: weight.detach() + 1 for name, weight in weights(net).items()}
    before, place = copies(own), net[2].weight.data_ptr()
    with swapped(own, other):
        assert torch.equal(net[2].weight, before["2.weight"] + 1)
    assert torch.equal(net[2].weight, before["2.weight"])
    assert net[2].weight.data_ptr() == place
    load(own, other)
    assert torch.equal(net[2].weight, before["2.weight"] + 1)


def test_uce_puts_the_guide_in_the_place_of_the_concept_and_keeps_the_rest():
    pipe = tiny()
    concepts = Concepts.of("circle", "square", keep=["star", "red cross"])
    plan = Plan.of(editable(pipe), uce(pipe, concepts, ridge=1e-6), method="uce")
    layer = next(iter(cross_attention(pipe.unet).values()))
    rows = encode(pipe, ["circle", "square", "star"]).embeds[:, 1:]
    before = layer(rows)
    plan.apply(editable(pipe))
    after = layer(rows)
    assert (after[0] - before[1]).norm() < 0.5 * (before[0] - before[1]).norm()
    assert (after[2] - before[2]).norm() < 0.1 * before[2].norm()
    plan.undo(editable(pipe))
    assert torch.equal(layer(rows), before)


def test_esd_moves_cross_attention_alone():
    pipe = tiny()
    before = copies(pipe.unet.state_dict())
    found = esd(pipe, Concepts.of(["circle", "red"]), WORK, steps=2, rollout_steps=3, lr=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert {op.target for op in found} == {f"unet.{n}" for n, _ in pipe.unet.named_parameters() if ".attn2." in n}
    again = esd(pipe, Concepts.of(["circle", "red"]), WORK, steps=2, rollout_steps=3, lr=1e-3)
    assert all(torch.equal(a.given["values"], b.given["values"]) for a, b in zip(found, again, strict=True))
