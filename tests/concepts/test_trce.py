"""Stage one maps ends alone, stage two moves visual layers alone, and neither sees a wrong slot or time."""

import dataclasses
import json

import pytest
import torch
from tiny import WIDTH, tiny

from efface.concepts.trce import Trce, hinge, paired, steering
from efface.core.eraser import Concepts, editable
from efface.core.knowledge import Knowledge
from efface.core.method import Work
from efface.core.ops import Map
from efface.errors import DataError, UsageError, WeightsError
from efface.parts.concepts.attention import cross_attention
from efface.parts.concepts.maps import CrossAttnEdit, mapped
from efface.parts.concepts.phrases import everyday, filled, read_pairs
from efface.parts.concepts.rollout import trajectories
from efface.parts.concepts.slots import encode
from efface.parts.diffusion.adapters import Process, levels

TEXT = {"stages": "text", "templates": ("a photo of {}", "{} on white"), "common": False}
PAIR = Concepts.of("circle", "square", ("a red cross", "a blue star"))


@pytest.fixture(scope="module")
def pipe():
    return tiny()


def matrix(pipe, concepts=PAIR, **params):
    op = Trce(**TEXT | params).plan(pipe, concepts, Work()).ops[0]
    assert isinstance(op, Map)
    assert set(op.layers) == set(cross_attention(pipe.unet))
    return op.matrix


@pytest.mark.parametrize("word", ["circle", "half moon", "zq", "q" * 12])
def test_ends_are_found_for_any_number_of_pieces(pipe, word):
    text = encode(pipe, [word, "square"])
    old, new = paired(pipe, [(word, "square")], ["{}"], "eos")
    assert old.equal(text.embeds[0][text.first_end[0]])
    assert new.equal(text.embeds[1][text.first_end[1]])
    assert len(paired(pipe, [(word, "square")], ["{}"], "word")[0]) == text.words[0].sum()


@pytest.mark.parametrize(("slots", "count"), [("eos", 1), ("last", 1), ("word", 2), ("eos+pad", 12), ("all", 15)])
def test_slots_are_those_that_are_asked_for(pipe, slots, count):
    old, new = paired(pipe, [("half moon", "")], ["a {}"], slots)
    assert old.shape == new.shape == (count, WIDTH)
    behind = {"eos": 2, "word": 2, "last": 15, "eos+pad": 13, "all": 13}  # as far behind the end as two words before
    assert new[-1].equal(encode(pipe, ["a"]).embeds[0, behind[slots]])


def test_sentences_that_are_cut_off_are_left_out(pipe):
    fills, pair = "red " * 13 + "{}", ("circle", "square")
    assert len(paired(pipe, [pair], [fills], "all")[0]) == 15  # the end is in the last slot
    assert paired(pipe, [pair], ["{}", f"red {fills}"], "eos")[0].equal(paired(pipe, [pair], ["{}"], "eos")[0])
    for longer in (("half moon", "circle"), ("circle", "half moon")):
        with pytest.raises(UsageError, match="no sentence fits"):
            paired(pipe, [longer], [fills], "eos")


def test_the_map_is_the_closed_form(pipe):
    eta, ridge = 0.3, 1e-6
    old, new = paired(pipe, PAIR.pairs, TEXT["templates"], "eos")
    known = encode(pipe, ["", *PAIR.keep]).embeds.flatten(0, 1).double()
    knowledge = eta * known.T @ known / len(known)
    old, new = old.double(), new.double()
    left = new.T @ old / len(old) + knowledge
    right = old.T @ old / len(old) + knowledge
    pull = ridge * right.trace() / len(right) * torch.eye(len(right), dtype=torch.float64)
    expected = (left + pull) @ torch.linalg.inv(right + pull)
    torch.testing.assert_close(matrix(pipe, eta=eta, ridge=ridge), expected, rtol=0, atol=1e-4)
    nothing = CrossAttnEdit(WIDTH).replace(old[:0], new[:0])
    assert nothing.solve(ridge).equal(torch.eye(WIDTH, dtype=torch.float64))


def test_the_end_becomes_that_of_the_safe_phrase_and_words_stay(pipe):
    edit = matrix(pipe, eta=1e-3, ridge=1e-6)
    text = encode(pipe, ["a photo of circle", "a photo of square", "a red cross"])
    moved = mapped(text.embeds, edit)
    end = text.first_end
    assert (moved[0][end[0]] - text.embeds[1][end[1]]).norm() < 0.1 * (moved[0] - text.embeds[0])[end[0]].norm()
    assert (moved[2] - text.embeds[2]).norm() < 0.1 * text.embeds[2].norm()


def test_phrases_of_a_file_are_erased_as_well(pipe, tmp_path):
    (path := tmp_path / "phrases.json").write_text(json.dumps([["a disc", "a cross"]]))
    assert not matrix(pipe, phrases=str(path)).allclose(matrix(pipe))
    both = Concepts.of(("circle", "a disc"), ("square", "a cross"), PAIR.keep)
    assert matrix(pipe, phrases=str(path)).allclose(matrix(pipe, both))
    for wrong in ("[]", "{", '[["one"]]', '[["a", 2]]'):
        path.write_text(wrong)
        with pytest.raises(DataError, match=r"phrases\.json"):
            read_pairs(path)


def test_phrases_that_hold_what_goes_and_templates_without_a_place_are_refused(pipe):
    for wrong, concepts in (({}, Concepts.of("circle", "a red Circle")), ({"templates": ("a red",)}, PAIR)):
        with pytest.raises(UsageError, match=r"holds it|no single place"):
            matrix(pipe, concepts, **wrong)
    for wrong in ({"early": 1.0}, {"slots": "some"}, {"ridge": 0.0}, {"stages": "none"}):
        with pytest.raises(UsageError):
            Trce(**wrong)


def test_everyday_captions_leave_out_what_goes():
    assert len(everyday()) == 288
    assert len(everyday(["Dog"])) == 288 - 12
    assert len(everyday(["do", ""])) == 288
    assert filled([("circle", "")], ["two of {}"]) == [("two of circle", "two of")]


def test_knowledge_is_saved_and_refused_by_another_encoder(pipe, tmp_path):
    known = Knowledge.of(pipe, ["", *PAIR.keep])
    known.save(tmp_path / "known")
    again = Knowledge.load(tmp_path / "known")
    assert again.gram.equal(known.gram)
    assert again.captions == 3
    torch.testing.assert_close(matrix(pipe, knowledge=str(tmp_path / "known")), matrix(pipe), rtol=0, atol=1e-6)
    other = tiny()
    other.text_encoder.requires_grad_(False)
    next(other.text_encoder.parameters()).add_(1)
    with pytest.raises(WeightsError, match="another text encoder"):
        matrix(other, knowledge=str(tmp_path / "known"))


def test_steering_moves_visual_layers_and_leaves_keys_and_values(pipe):
    made = Trce(**{**TEXT, **Trce.small, "stages": "both"}).plan(pipe, PAIR, Work())
    _, *deltas = made.ops
    assert {op.target for op in deltas} == {f"unet.{name}" for name in steering(pipe.unet)}
    assert all(".attn1." in op.target or ".attn2.to_q." in op.target for op in deltas)
    before = {name: value.clone() for name, value in editable(pipe).state_dict().items()}
    made.apply(editable(pipe))
    changed = {name for name, value in editable(pipe).state_dict().items() if not value.equal(before[name])}
    made.undo(editable(pipe))
    touched = {f"unet.{name}.weight" for name in cross_attention(pipe.unet)}
    assert touched <= changed <= touched | {op.target for op in deltas}
    assert made.made_by["loss"].keys() == {"erase", "preserve"}


def test_without_a_learning_rate_steering_changes_nothing(pipe):
    made = Trce(**{**Trce.small, "stages": "steer", "lr": 0.0}).plan(pipe, PAIR, Work())
    assert all(op.given["values"].equal(editable(pipe).get_parameter(op.target)) for op in made.ops)
    assert made.made_by["loss"]["preserve"] == 0


def test_steering_makes_predictions_safe_and_they_stay_so(pipe):
    # what a text adds to the noise shrinks with the share of the picture in a state, and the margin is to be below it
    method = Trce(**{**Trce.small, "stages": "steer", "steps": 8, "early": 0.0, "margin": 1e-4, "kept": 0.0})
    first, last = (
        dataclasses.replace(method, lr=lr).plan(pipe, PAIR, Work()).made_by["loss"]["erase"] for lr in (0.0, 3e-3)
    )
    assert first > 0
    assert last == 0


def test_what_is_safe_already_gives_no_gradient():
    safe, harmful = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    found = torch.stack([safe + 0.1, safe - 0.2]).requires_grad_()
    hinge(found, safe, harmful, 0.01).backward()
    assert not found.grad.any()
    assert hinge(torch.stack([harmful]), safe, harmful, 0.01) == pytest.approx(1.01)


def test_states_carry_the_times_at_which_the_sampler_took_them(pipe):
    text, empty = encode(pipe, ["a circle"]), encode(pipe, [""])
    noise = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    states, times = trajectories(pipe, text, empty, noise, steps=4, guidance=1.0)
    process, sigmas = Process.of(pipe.scheduler), levels(pipe.scheduler, 4)
    for i, t in enumerate(times.tolist()):
        assert t == process.time(sigmas[i].item())
    scheduler = pipe.scheduler
    scheduler.set_timesteps(4)
    with torch.no_grad():
        found = pipe.unet(states[1], float(times[1]), text.embeds).sample
    stepped = scheduler.step(found, int(scheduler.timesteps[1]), states[1]).prev_sample
    torch.testing.assert_close(stepped, states[2], rtol=0, atol=2e-2)
