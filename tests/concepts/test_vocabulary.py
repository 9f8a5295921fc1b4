"""A tokenizer learns words on a copy, and forgets them with it."""

import pytest
from tiny import tiny

from efface.errors import UsageError
from efface.parts.concepts.vocabulary import grown, taught, teach, unteach

WORDS = ("<logo-0-0>", "<logo-0-1>")


@pytest.fixture(scope="module")
def pipe():
    return tiny()


def test_each_word_is_one_token_and_old_texts_read_as_before(pipe):
    before = len(pipe.tokenizer)
    larger = grown(pipe.tokenizer, WORDS)
    assert larger.convert_tokens_to_ids(list(WORDS)) == [before, before + 1]
    assert larger("red <logo-0-1>", add_special_tokens=False).input_ids[-1] == before + 1
    for text in ("a red circle", "zq logo", ""):
        assert larger(text).input_ids == pipe.tokenizer(text).input_ids
    assert (len(pipe.tokenizer), len(larger)) == (before, before + 2)


def test_words_that_are_known_are_refused(pipe):
    with pytest.raises(UsageError, match="knows <logo-0-0> already"):
        grown(grown(pipe.tokenizer, WORDS[:1]), WORDS)


def test_the_pipeline_gets_its_own_tokenizer_back(pipe):
    own = pipe.tokenizer
    teach(pipe, WORDS[:1])
    with taught(pipe, WORDS[1:]):
        assert len(pipe.tokenizer) == len(own) + 2
    assert len(pipe.tokenizer) == len(own) + 1
    unteach(pipe)
    assert pipe.tokenizer is own
    with taught(pipe, ()):
        assert pipe.tokenizer is own
    with pytest.raises(ValueError, match="stop"), taught(pipe, WORDS):
        raise ValueError("stop")
    assert pipe.tokenizer is own
