"""What Spm promises beyond the contract."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from efface.concepts.spm import Spm, anchored
from efface.core.contract.erasers import tiny
from efface.core.eraser import Concepts, editable, edited
from efface.core.method import Work
from efface.core.ops import Delta
from efface.parts.concepts.gate import facilitation
from efface.parts.concepts.lora import hosts
from efface.parts.concepts.slots import encode

QUICK = {"steps": 2, "rollout_steps": 3, "anchors": 2, "lr": 1e-2}


@pytest.fixture(scope="module")
def plan():
    return Spm(**QUICK).plan(tiny(), Concepts.of("circle"), Work())


def test_every_layer_of_the_transformers_gets_one_dimension_and_nothing_else_is_touched(plan):
    box = editable(tiny())
    names = {f"unet.{name}.weight" for name in hosts(box["unet"])}
    assert {op.target for op in plan.ops} == names
    for op in plan.ops:
        assert isinstance(op, Delta)
        assert op.given["down"].shape[0] == op.given["up"].shape[1] == 1
    before = {name: value.clone() for name, value in box.state_dict().items()}
    plan.apply(box)
    assert {name for name, value in box.state_dict().items() if not torch.equal(value, before[name])} <= names


def test_stable_diffusion_gets_424_thousand_weights():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        net = diffusers.UNet2DConditionModel(cross_attention_dim=768)
    found = hosts(net)
    assert len(found) == 192
    assert sum(host.weight.shape[0] + host.weight.shape[1] for host in found.values()) == 423_936


def test_concepts_take_turns_and_share_an_adapter():
    both = Spm(**QUICK).plan(tiny(), Concepts.of(["circle", "star"], ["square", ""]), Work())
    assert len(both.ops) == len({op.target for op in both.ops})
    assert [one["remove"] for one in both.made_by["erases"]] == ["circle", "star"]
    assert both.made_by["gate"] is True


def test_without_anchoring_another_edit_is_learned(plan):
    free = Spm(**QUICK, anchoring=0.0).plan(tiny(), Concepts.of("circle"), Work())
    assert any(not torch.equal(a.given["up"], b.given["up"]) for a, b in zip(plan.ops, free.ops, strict=True))


def test_adapters_stack_as_their_sum_and_fit_a_sibling(plan):
    other = Spm(**QUICK).plan(tiny(), Concepts.of("star"), Work(seed=1))
    pipe, sibling = tiny(), tiny()
    with torch.no_grad():
        sibling.unet.conv_in.weight += 0.1
        for op in plan.ops:
            editable(sibling).get_parameter(op.target).add_(0.01)
    name = plan.ops[0].target
    own = editable(pipe).get_parameter(name).clone()
    moves = []
    for plans in ([plan], [other], [plan, other]):
        with edited(pipe, plans):
            moves.append(editable(pipe).get_parameter(name) - own)
    assert torch.allclose(moves[0] + moves[1], moves[2], atol=1e-6)
    with edited(sibling, [plan], strict=False):
        assert torch.allclose(editable(sibling).get_parameter(name) - own - 0.01, moves[0], atol=1e-6)


def test_facilitation_is_one_for_a_prompt_with_the_concept():
    pipe = tiny()
    gamma = facilitation(pipe, ["circle", "a red circle", "a star", ""], ["circle", "red circle"])
    assert gamma.shape == (4, 2)
    assert torch.allclose(gamma[0, 0], torch.ones(()))
    assert gamma[1].tolist() == pytest.approx([1, 1])
    named = facilitation(pipe, ["circle", "a red circle", "a star", ""], ["circle", "red circle"], mode="tokens")
    assert named.tolist() == [[1.0, 0.5], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert (gamma >= named - 1e-6).all()
    assert gamma.max() <= 1 + 1e-6


def test_anchors_have_about_the_length_of_the_concept():
    text = encode(tiny(), ["circle"])
    around = anchored(text, 5, torch.Generator().manual_seed(0))
    length = around.embeds.flatten(1).norm(dim=1) / text.embeds.norm()
    assert ((length > 0.79) & (length < 1.21)).all()
    assert torch.equal(around.ids, text.picked([0] * 5).ids)


def test_states_vary_in_size_between_half_and_the_whole():
    spm, generator = Spm(batch=2), torch.Generator().manual_seed(0)
    config = dataclasses.make_dataclass("Config", ["sample_size", "in_channels"])(64, 4)
    seen = {spm._shape(config, generator) for _ in range(200)}
    assert {shape[:2] for shape in seen} == {(2, 4)}
    assert {side for shape in seen for side in shape[2:]} == {32, 40, 48, 56}
    assert Spm(dynamic=False)._shape(config, generator) == (1, 4, 64, 64)
