"""Guidance of the concept becomes that of the alternative, and nothing else is asked to move."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny

from efface.concepts import surgical_erasing
from efface.concepts.surgical_erasing import SurgicalErasing, purify
from efface.core.eraser import Concepts, editable, edited
from efface.core.method import Step, Work
from efface.errors import PlanError, UsageError
from efface.parts.concepts.rollout import guidance_terms, predictions
from efface.parts.concepts.slots import encode
from efface.parts.concepts.trainable import trainable
from efface.parts.diffusion.adapters import Process
from efface.parts.diffusion.inversion import inverted, redrawn

PAIR = Concepts.of("circle", "square")
QUICK = {"steps": 3, "lr": 1e-2, "batch": 2, "rollouts": 4, "rollout_steps": 3}
STATE = (torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([400.0]))


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture(scope="module")
def plan(pipe):
    return SurgicalErasing(**QUICK).plan(pipe, PAIR, Work())


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    monkeypatch.setattr(surgical_erasing, "TEMPLATES", ("{}",))


def terms(pipe, concepts, *, moved=0.0, step=0, **params):
    """Return the parts of the loss at one state, when the weights have ``moved``."""
    weights = trainable(pipe.unet, "cross")
    method = SurgicalErasing(batch=1, **params)
    loss = method._loss(pipe, concepts, [STATE] * len(concepts.remove), weights)
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(moved * weight.sin())
    return {name: value.detach() for name, value in loss(Step(step=step)).items()}


def noise(pipe, *prompts):
    with torch.no_grad():
        return predictions(pipe, *STATE, encode(pipe, prompts))


def drift(pipe, plan, prompt=""):
    before = noise(pipe, prompt)
    with edited(pipe, [plan]):
        return float((noise(pipe, prompt) - before).norm() / before.norm())


def test_nothing_is_lost_at_first_on_a_concept_that_stands_for_itself(pipe):
    found = terms(pipe, Concepts(("circle",), ("circle",), ("a red star",)))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-9)


@pytest.mark.parametrize("anchor", ["moving", "fixed"])
@pytest.mark.parametrize(("other", "eta"), [("square", 1.0), ("", 1.0), ("", 0.0), ("", 2.5)])
def test_the_loss_is_as_written(anchor, other, eta):
    pipe = tiny()
    empty, circle, *alternative = noise(pipe, "", "circle", *filter(None, [other]))
    star = noise(pipe, "a star")[0] - empty
    found = terms(
        pipe, Concepts.of("circle", other, "a star"), moved=0.3, anchor=anchor, eta=eta, unconditional=0.7, kept=0.2
    )
    new_empty, new_circle, new_star = noise(pipe, "", "circle", "a star")
    target = alternative[0] - empty if other else -eta * (circle - empty)
    start = new_empty if anchor == "moving" else empty
    expected = {
        "erase": (new_circle - start - target).square().mean(),
        "unconditional": (new_empty - empty).square().mean(),
        "keep": (new_star - start - star).square().mean(),
    }
    expected["total"] = expected["erase"] + 0.7 * expected["unconditional"] + 0.2 * expected["keep"]
    assert all(value > 1e-4 for value in expected.values())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def slope(**params):
    """Return the gradient of the loss before any step."""
    weights = trainable((pipe := tiny()).unet, "cross")
    for weight in weights.values():
        weight.requires_grad_()
    loss = SurgicalErasing(batch=1, unconditional=0.0, **params)._loss(pipe, PAIR, [STATE], weights)
    grads = torch.autograd.grad(loss(Step())["total"], list(weights.values()))
    return torch.cat([grad.flatten() for grad in grads])


def test_the_difference_lets_no_gradient_through_to_the_empty_prompt():
    stopped = slope()
    torch.testing.assert_close(stopped, slope(anchor="fixed"), rtol=1e-3, atol=1e-6)
    assert (slope(through=True) - stopped).norm() > 0.1 * stopped.norm()


def test_concepts_take_turns(pipe):
    both = Concepts.of(["circle", "star"], ["square", "cross"])
    alone = Concepts.of("star", "cross")
    for step in (1, 3):
        torch.testing.assert_close(terms(pipe, both, step=step), terms(pipe, alone, step=step))
    made = SurgicalErasing(**QUICK).plan(pipe, both, Work())
    assert [one["remove"] for one in made.made_by["erases"]] == ["circle", "star"]


def test_the_empty_prompt_is_held(pipe):
    steps = {**QUICK, "steps": 15, "lr": 1e-3}
    held, free = (SurgicalErasing(**steps, unconditional=w).plan(pipe, PAIR, Work()) for w in (30.0, 0.0))
    assert drift(pipe, held) < drift(pipe, free) / 2
    small = SurgicalErasing(**{**QUICK, "lr": 1e-7}, unconditional=1e3).plan(pipe, PAIR, Work())
    assert 0 < drift(pipe, small) < 1e-4


def test_guidance_goes_to_that_of_the_alternative(pipe):
    made = SurgicalErasing(**{**QUICK, "steps": 15, "lr": 3e-3}).plan(pipe, PAIR, Work())
    empty, circle, square = noise(pipe, "", "circle", "square")
    with edited(pipe, [made]):
        new_empty, new_circle = noise(pipe, "", "circle")
    assert (new_circle - new_empty - (square - empty)).norm() < 0.8 * (circle - square).norm()
    assert set(made.made_by["loss"]) == {"erase", "unconditional", "keep"}


@pytest.mark.parametrize(("which", "part"), [("cross", ".attn2."), ("cross-kv", ".attn2.to_"), (r"conv_in", "conv_in")])
def test_only_the_chosen_weights_are_set(pipe, which, part):
    made = SurgicalErasing(**QUICK, weights=which).plan(pipe, PAIR, Work())
    names = {op.target for op in made.ops}
    assert names == {f"unet.{name}" for name in trainable(pipe.unet, which)}
    assert all(part in name for name in names)


@pytest.mark.parametrize(
    ("rollouts", "mix", "other", "expected"),
    [
        (20, (0.5, 0.25, 0.25), "square", (10, 5, 5)),
        (4, (0.5, 0.25, 0.25), "", (2, 0, 2)),
        (1, (0.5, 0.25, 0.25), "square", (1, 0, 0)),
        (3, (0.0, 2.0, 1.0), "square", (0, 2, 1)),
    ],
)
def test_samplings_are_shared_out(pipe, monkeypatch, rollouts, mix, other, expected):
    told = []

    def listen(pipe, prompts):
        told.append(list(prompts))
        return encode(pipe, prompts)

    monkeypatch.setattr(surgical_erasing, "encode", listen)
    method = SurgicalErasing(rollouts=rollouts, rollout_steps=2, mix=mix)
    states, times = method._states(pipe, ("circle", other), Work())
    asked = told[0]
    assert (asked.count("circle"), asked.count("square"), asked.count("")) == expected
    assert states.shape == (2 * rollouts, 8, 8, 8)
    assert times.shape == (2 * rollouts,)
    assert (times[:rollouts] == times[0]).all()


@pytest.mark.parametrize("wrong", [{"mix": (1.0, 1.0)}, {"mix": (0.0, 0.0, 0.0)}, {"weights": "nowhere"}])
def test_what_cannot_be_is_refused(pipe, wrong):
    with pytest.raises(UsageError):
        SurgicalErasing(**QUICK, **wrong).plan(pipe, PAIR, Work())


class Twin(torch.nn.Module):
    """Says as a velocity what a network says as noise."""

    def __init__(self, net, process):
        super().__init__()
        self.config, self.net, self.process = net.config, net, process

    def forward(self, x, t, embeds):
        sigma = float(self.process.sigmas[int(t[0])])
        a, s = self.process.scales(sigma)
        found = self.net(x, t, embeds).sample
        return type("Output", (), {"sample": a * found - s * (x - s * found) / a})


def test_guidance_does_not_depend_on_what_is_predicted():
    pipe = tiny()
    text = encode(pipe, ["", "circle", "square"])
    pipe.scheduler.register_to_config(prediction_type="epsilon")
    _, of_noise = guidance_terms(pipe, *STATE, text)
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    pipe.unet = Twin(pipe.unet, Process.of(pipe.scheduler))
    _, of_velocity = guidance_terms(pipe, *STATE, text)
    torch.testing.assert_close(of_velocity, of_noise, rtol=0, atol=1e-5)


@pytest.mark.parametrize("invert_with", ["original", "edited"])
def test_purifying_is_drawing_from_the_pictures_noise(pipe, plan, invert_with):
    pictures, prompts = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), ["circle", "a circle"]
    before = {name: value.clone() for name, value in editable(pipe).state_dict().items()}
    found = purify(pipe, pictures, prompts, [plan], invert_with=invert_with, steps=3, guidance=2.0)
    assert all(value.equal(before[name]) for name, value in editable(pipe).state_dict().items())
    with edited(pipe, [plan] if invert_with == "edited" else []):
        noisy = inverted(pipe, pictures, prompts, steps=3)
    assert not torch.equal(found, redrawn(pipe, noisy, prompts, steps=3, guidance=2.0))
    with edited(pipe, [plan]):
        assert torch.equal(found, redrawn(pipe, noisy, prompts, steps=3, guidance=2.0))


def test_purifying_refuses_what_it_cannot_do(pipe, plan):
    picture = torch.zeros(1, 3, 32, 32)
    with pytest.raises(UsageError, match="backwards"):
        purify(pipe, picture, ["circle"], [], invert_with="backwards")
    with pytest.raises(UsageError, match="2 prompts"):
        purify(pipe, picture, ["circle", "star"], [])
    other = tiny()
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight.add_(0.1)
    with pytest.raises(PlanError):
        purify(other, picture, ["circle"], [plan])
