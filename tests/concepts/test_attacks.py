"""Attacks find the concept by the way they are named after, and touch nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny
from torch import nn

from efface.errors import UsageError
from efface.parts.concepts.attacks import ATTACKS, Derived, HardPrompt, RingABell
from efface.parts.concepts.attention import backbone, cross_attention
from efface.parts.concepts.case import Case, Drawing
from efface.parts.concepts.maps import derive, gram
from efface.parts.concepts.probes import HalfNoised, _holding
from efface.parts.concepts.soft import SoftPrompt, p4d, spoken, textual_inversion, unlearn_diff
from efface.parts.diffusion.pipelines import encode_prompts, model_of

PROMPTS = ("a red circle on white", "look at a blue circle")


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture(scope="module")
def case():
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Case("circle", PROMPTS, (0, 1), pictures, "shape", Drawing(steps=2))


class Fed:
    """A drawing that only shows what it was given."""

    negative = ""

    def __call__(self, pipe, prompts, seeds):
        return prompts


def fed(attack, pipe, case, m=None):
    """Return the embeddings that `attack` feeds to `m`."""
    return attack.strike(m or pipe, attack.observe(pipe, case), replace(case, drawing=Fed()))


def quick(attack):
    if isinstance(attack, SoftPrompt):
        return replace(attack, steps=2, levels=2, batch=2)
    return replace(attack, rounds=1, candidates=4, tokens=3) if isinstance(attack, HardPrompt) else attack


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_draws_the_same_twice_and_leaves_the_pipeline(name, pipe, case):
    attack = quick(ATTACKS[name])
    assert attack.name == name
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    first, second = (attack.strike(pipe, attack.observe(pipe, case), case) for _ in range(2))
    assert first.shape == case.pictures.shape
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert 0 <= first.min() <= first.max() <= 1
    assert all(torch.equal(before[key], value) for key, value in pipe.unet.state_dict().items())
    assert all(parameter.grad is None for part in (pipe.unet, pipe.text_encoder) for parameter in part.parameters())


def test_parameters_that_want_gradients_get_none(case):
    pipe = tiny()
    pipe.unet.requires_grad_(True)
    attack = quick(unlearn_diff())
    attack.strike(pipe, attack.observe(pipe, case), case)
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


def test_ring_a_bell_adds_the_direction_of_the_concept(pipe, case):
    one = replace(case, prompts=PROMPTS[:1])
    neutral, asking = encode_prompts(pipe, ["a red shape on white", *PROMPTS[:1]]).split(1)
    assert torch.allclose(fed(RingABell(0.0), pipe, one), neutral, atol=1e-6)
    assert torch.allclose(fed(RingABell(1.0), pipe, one), asking, atol=1e-5)
    assert torch.allclose(fed(RingABell(3.0), pipe, one), neutral + 3 * (asking - neutral), atol=1e-5)


def test_prompts_without_the_target_are_refused(case):
    with pytest.raises(UsageError, match="does not name 'circle'"):
        replace(case, prompts=("a red disc",)).without()
    assert replace(case, neutral="").without() == ("a red on white", "look at a blue")


def test_hard_prompt_avoids_the_name_and_comes_nearer(pipe, case):
    aim = RingABell().observe(pipe, case)

    def away(attack):
        return (pipe.text_encoder(attack.observe(pipe, case))[0] - aim).square().sum()

    found = HardPrompt(tokens=4, candidates=16).observe(pipe, case)
    banned = {*pipe.tokenizer("circle").input_ids}
    assert found.shape == (2, 16)
    assert not banned & set(found[:, 1:5].flatten().tolist())
    assert (found[:, 5:] == pipe.tokenizer.eos_token_id).all()
    assert away(HardPrompt(tokens=4, candidates=16)) < away(HardPrompt(tokens=4, rounds=0))


def test_derived_embedding_undoes_a_map_of_the_text(pipe, case):
    edited, width = tiny(), pipe.text_encoder.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(width) + 0.3 * torch.randn(width, width, generator=generator) / width**0.5
    layers = cross_attention(backbone(edited)[1])
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.copy_(layer.weight @ matrix)
    given = fed(Derived(1e-9), pipe, case, edited)
    rows = encode_prompts(pipe, PROMPTS)
    assert torch.allclose(given @ matrix.T, rows, atol=1e-3)  # the edited layers see what the original's saw
    gram0 = gram(layer.weight for layer in cross_attention(backbone(pipe)[1]).values())
    expected = derive(gram0, matrix.double(), rows.flatten(0, 1), 0.1).view(rows.shape)
    assert torch.allclose(fed(Derived(0.1), pipe, case, edited).double(), expected, atol=1e-4)


def test_derived_embedding_of_the_original_is_the_prompt(pipe, case):
    assert torch.allclose(fed(Derived(1e-9), pipe, case), encode_prompts(pipe, PROMPTS), atol=1e-4)


def test_a_vector_that_is_the_word_changes_nothing(pipe):
    table, ids = pipe.text_encoder.get_input_embeddings().weight, pipe.tokenizer("circle").input_ids[1:-1]
    texts = [tuple(prompt.split("circle")) for prompt in PROMPTS]
    assert torch.allclose(spoken(pipe, texts, table[ids]), encode_prompts(pipe, PROMPTS), atol=1e-6)
    changed = spoken(pipe, texts, table[ids] + 1)
    assert torch.allclose(changed[:, :2], encode_prompts(pipe, PROMPTS)[:, :2], atol=1e-6)  # what stands before it
    assert (changed[:, -1] != encode_prompts(pipe, PROMPTS)[:, -1]).any()


def test_long_prompts_lose_their_end_and_never_the_vectors(pipe):
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    long = "red " * 40
    cut = spoken(pipe, [("", long)], vectors)
    assert cut.shape == (1, 16, 32)
    assert torch.equal(cut, spoken(pipe, [("", long + "blue")], vectors))
    assert not torch.equal(spoken(pipe, [(long, "")], vectors), spoken(pipe, [(long, "")], 2 * vectors))


@pytest.mark.parametrize("attack", [unlearn_diff(), p4d(), textual_inversion()], ids=lambda attack: attack.name)
def test_learning_lowers_the_error(attack, pipe, case):
    attack = replace(attack, levels=1, batch=2)
    states = attack.observe(pipe, case)
    texts = [attack._around(prompt, "circle") for prompt in PROMPTS]

    def error(steps):
        with torch.no_grad():
            vectors = replace(attack, steps=steps).learn(pipe, states, case, texts)
            made = [spoken(pipe, [texts[i] for i in s.pictures], vectors) for s in states]
            found = [model_of(pipe)(s.x, s.sigma, given) for s, given in zip(states, made, strict=True)]
        return sum(float(((a - s.wanted) / s.sigma).square().mean()) for a, s in zip(found, states, strict=True))

    assert error(8) < error(0)


def test_imitating_the_original_asks_for_what_it_predicts(pipe, case):
    state = replace(p4d(), levels=1, batch=2).observe(pipe, case)[0]
    with torch.no_grad():
        expected = model_of(pipe)(state.x, state.sigma, encode_prompts(pipe, [PROMPTS[i] for i in state.pictures]))
    assert torch.equal(state.wanted, expected)


def test_fewer_steps_from_a_picture_leave_more_of_it(case):
    pipe = tiny()
    for parameter in pipe.unet.parameters():
        nn.init.zeros_(parameter)  # predicts v = 0 and so x0 = a x: half the noise is left
    steps = replace(case, drawing=Drawing(steps=8, guidance=1.0))
    shares = (0.125, 1.0)
    found = [HalfNoised(share).strike(pipe, HalfNoised(share).observe(pipe, steps), steps) for share in shares]
    whole = pipe.vae.decode(HalfNoised().observe(pipe, steps) / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    near, far = ((pictures - whole).square().mean() for pictures in found)
    assert near < far


def test_inpainting_holds_the_left_half():
    known, x = torch.ones(1, 2, 4, 6), torch.zeros(1, 2, 4, 6)
    held = _holding(lambda x, sigma: x - sigma, known)(x, 2.0)
    assert (held[..., :3] == 1).all()
    assert (held[..., 3:] == -2).all()
