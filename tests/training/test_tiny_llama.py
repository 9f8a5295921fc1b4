"""The tiny language model trains by a recipe and becomes an ordinary folder of transformers."""

import pytest
import torch

from efface.core.models import open_model
from efface.core.run import Run
from efface.errors import DataError, EffaceError
from efface.parts.data.language import ALPHABET
from efface.parts.language.tiny import LENGTH, SHIPPED, tiny_corpus
from efface.training.language import assemble
from efface.training.recipe import Recipe, Train
from efface.verbs.fit import fit
from efface.verbs.shrink import shrink

SMALL = {"blocks": 2, "width": 16, "ffn": 24, "heads": 2, "kv_heads": 1, "context": 16}


def test_a_text_is_trained_on_and_the_folder_is_that_of_transformers(tmp_path):
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 20)
    recipe = Recipe(method="tiny-llama", params=SMALL, data={"length": 12}, train=Train(steps=12, batch=4, lr=1e-2))
    run: Run = fit(recipe, out=tmp_path / "run", data=tmp_path / "text.txt", device="cpu", progress=None)
    net = assemble(run.weights, tmp_path / "model")
    opened = open_model(tmp_path / "model")
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert opened.model(ids).logits.equal(net(ids).logits)
    assert opened.model.config.vocab_size == len(ALPHABET)
    params = {"rows": 2, "length": 8, "count": 2, "exclude": 0.0}
    shrunk = shrink(tmp_path / "model", method="finercut", data=tmp_path / "text.txt", params=params, device="cpu")
    small = open_model(shrunk.save(tmp_path / "small")).model
    with torch.no_grad():
        assert small(ids).logits.equal(shrunk.model(ids).logits)
    assert (tmp_path / "small/tokenizer.json").is_file()
    params = {"rows": 2, "length": 8, "multiple": 8}
    twice = shrink(tmp_path / "small", method="cfsp", data=tmp_path / "text.txt", params=params, device="cpu")
    smaller = open_model(twice.save(tmp_path / "smaller")).model
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in small.parameters())
    with torch.no_grad():
        assert smaller(ids).logits.equal(twice.model(ids).logits)


@pytest.mark.parametrize(
    ("model", "data", "what"),
    [(SHIPPED, None, "needs data"), (SHIPPED, "short.txt", "3 tokens"), (SHIPPED, "none.txt", "no such file")],
)
def test_text_that_is_missing_or_too_short_is_told(model, data, what, tmp_path):
    (tmp_path / "short.txt").write_text("hi\n")
    with pytest.raises(EffaceError, match=what):
        shrink(model, method="finercut", data=data and tmp_path / data, device="cpu")


def test_the_shipped_model_reads_what_it_writes_better_than_chance():
    model = open_model(SHIPPED).model
    corpus = tiny_corpus(model, None, 0, windows=4)
    assert len(corpus.train.ids) == 4 * LENGTH
    score = corpus.score(model)
    assert score.loss < 2.2
    assert score.accuracy > 0.4


def test_a_recipe_without_text_says_so(tmp_path):
    recipe = Recipe(method="tiny-llama", params=SMALL, data={"length": 12})
    with pytest.raises(DataError, match="no such file"):
        fit(recipe, out=tmp_path / "run", data=tmp_path / "none.txt", progress=None)
