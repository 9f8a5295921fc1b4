"""Every slot of a prompt is known for what it is, whatever the tokenizer's habits."""

import pytest
import torch
from tiny import tiny
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from efface.errors import UsageError
from efface.parts.concepts.slots import aligned, encode, kinds, last_words, slots, word_tokens
from efface.parts.worlds.pipeline import SLOTS


@pytest.fixture
def pipe():
    return tiny()


class Tokens:
    """Stands for a tokenizer that starts with 8, ends with 9, and pads with ``pad``."""

    bos_token_id, eos_token_id = 8, 9


@pytest.mark.parametrize("pad", [9, 0])
@pytest.mark.parametrize("words", [0, 1, 3, 6])
def test_kinds_of_both_paddings_of_clip(pad, words):
    ids = torch.tensor([[8, *range(1, words + 1), 9, *[pad] * (6 - words)]])
    found = kinds(Tokens(), ids)
    assert sum(mask.int() for mask in found.values()).eq(1).all()
    assert found["start"].nonzero()[:, 1].tolist() == [0]
    assert found["words"].sum() == words
    assert found["first_end"].nonzero()[:, 1].tolist() == [words + 1]
    assert found["pad"].sum() == 6 - words


def test_kinds_without_a_start():
    class Bare(Tokens):
        bos_token_id = None

    assert not kinds(Bare(), torch.tensor([[3, 4, 9, 0]]))["start"].any()


@pytest.mark.parametrize(("text", "words"), [("", 0), ("circle", 1), ("half moon", 2), ("zebra", 5)])
def test_encode_finds_the_end_after_words_of_any_number_of_tokens(pipe, text, words):
    found = encode(pipe, [text])
    assert found.embeds.shape == (1, SLOTS, 32)
    assert found.words.sum() == words == len(word_tokens(pipe, text))
    assert found.first_end.nonzero()[:, 1].item() == words + 1
    assert last_words(pipe, [text]) == [words]


def test_a_prompt_that_fills_the_slots_still_ends(pipe):
    found = encode(pipe, ["circle " * 40])
    assert found.first_end[0, -1]
    assert not found.pad.any()
    assert slots(pipe) == SLOTS
    assert len(word_tokens(pipe, "circle " * 40)) == 40


def test_encoding_does_not_depend_on_the_batch(pipe):
    texts = ["red circle", "", "half moon"]
    together, apart = encode(pipe, texts), encode(pipe, texts, batch=1)
    torch.testing.assert_close(together.embeds, apart.embeds)
    assert not together.embeds.requires_grad


def test_two_encoders_lie_side_by_side(pipe):
    count = len(pipe.tokenizer)
    config = CLIPTextConfig(
        vocab_size=count, hidden_size=16, intermediate_size=16, projection_dim=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=SLOTS, eos_token_id=count - 1,
    )  # fmt: skip
    pipe.tokenizer_2, pipe.text_encoder_2 = pipe.tokenizer, CLIPTextModelWithProjection(config).eval()
    found = encode(pipe, ["red circle", "star"])
    assert found.embeds.shape == (2, SLOTS, 48)
    assert found.pooled.shape == (2, 24)
    old, new = aligned(pipe, "circle", "")
    assert old.shape == new.shape == (SLOTS - 1, 48)


def test_aligned_meets_at_the_last_words(pipe):
    old, new = aligned(pipe, "half moon", "star", ("{}", "a photo of {}"))
    concept, guide = encode(pipe, ["half moon"]).embeds[0], encode(pipe, ["star"]).embeds[0]
    torch.testing.assert_close(old[: SLOTS - 2], concept[2:])
    torch.testing.assert_close(new[: SLOTS - 2], guide[1:-1])
    assert len(old) == len(new) == SLOTS - 2 + SLOTS - 5


def test_aligned_gives_a_place_to_every_row(pipe):
    old, new = aligned(pipe, "star", "half moon")
    guide = encode(pipe, ["half moon"]).embeds[0]
    assert len(old) == SLOTS - 1
    torch.testing.assert_close(new, torch.cat([guide[2:], guide[-1:]]))


@pytest.mark.parametrize(("rows", "meets"), [("all", [0, 1, 1, *range(2, 15)]), ("content", [1, 1, *range(2, 15)])])
def test_aligned_takes_the_words_before_the_last_as_well(pipe, rows, meets):
    old, new = aligned(pipe, "half moon", "star", rows=rows)
    torch.testing.assert_close(old, encode(pipe, ["half moon"]).embeds[0, -len(meets) :])
    torch.testing.assert_close(new, encode(pipe, ["star"]).embeds[0, meets])


def test_aligned_finds_a_concept_in_the_middle(pipe):
    old, _ = aligned(pipe, "circle", "star", ("a {} on white",))
    torch.testing.assert_close(old, encode(pipe, ["a circle on white"]).embeds[0, 2:])


@pytest.mark.parametrize(("template", "slot"), [("{}", 1), ("a photo of {}", 4)])
def test_for_nothing_stands_the_slot_behind_the_words_before(pipe, template, slot):
    _, new = aligned(pipe, "circle", "", (template,))
    torch.testing.assert_close(new, encode(pipe, [template.replace("{}", "")]).embeds[0, slot:])


def test_a_pipeline_without_text_is_refused():
    with pytest.raises(UsageError, match="no text encoders"):
        encode(object(), ["circle"])
