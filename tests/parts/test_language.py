"""Decoders of every architecture lose parts, run piece by piece, and are saved and built again."""

import contextlib
import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "networks"))
from decoders import EVERY, IDS, MIXTURES, continued, decoder, logits

from efface.core.models import open_model
from efface.errors import DataError, UsageError, WeightsError
from efface.parts.data.language import ALPHABET, Corpus, Tokens, characters, encode, read_text, sampled
from efface.parts.graph.remove import remove as cut
from efface.parts.language.blocks import idle, sublayers
from efface.parts.language.distances import compare, js, kl, released
from efface.parts.language.ffn import down_columns, ffns, removal, up_rows
from efface.parts.language.folders import load_pruned, padded, save_pruned
from efface.parts.language.passes import block_by_block, block_outputs, hidden, logits_from
from efface.parts.language.silence import remove, without

PLAIN = [name for name in EVERY if name not in MIXTURES]
each = pytest.mark.parametrize("name", EVERY)
each_plain = pytest.mark.parametrize("name", PLAIN)
CHOICES = (("A0",), ("A1", "M0"), ("A0", "M0", "A1", "A2"), ("A0", "M0", "A1", "M1", "A2", "M2"))


def chosen(model, labels):
    return [sublayer for sublayer in sublayers(model) if sublayer.label in labels]


def zeroed(module, inputs, output):
    return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)


def narrowed(model):
    """Take channels out, other ones in each block."""
    for ffn in ffns(model)[1:]:
        cut(model, removal(model, ffn, np.arange(ffn.block, ffn.width, 2)))
    return model


@each
def test_a_branch_that_is_gone_adds_nothing_and_its_weights_and_norms_go(name):
    model = decoder(name)
    assert [s.label for s in sublayers(model)] == ["A0", "M0", "A1", "M1", "A2", "M2"]
    before = copy.deepcopy(model.state_dict())
    for labels in CHOICES:
        gone = chosen(model, labels)
        reference = copy.deepcopy(model)
        behind = [h for s in gone for h in s.helpers if "post" in h and "Olmo2 Gemma2 Gemma3Text Glm4".find(name) >= 0]
        for branch in [*behind, *(s.branch for s in gone)]:
            reference.get_submodule(branch).register_forward_hook(zeroed)
        unused = idle(sublayers(model), gone)
        expected = {n for n in before if not n.startswith(tuple(f"{m}." for m in [*unused, *(s.branch for s in gone)]))}
        with without(model, gone):
            if name != "Glm4" or not behind:
                torch.testing.assert_close(logits(model), logits(reference), atol=1e-5, rtol=1e-5)
            assert set(model.state_dict()) == expected
        assert all(v.equal(before[n]) for n, v in model.state_dict().items())


@each
@pytest.mark.parametrize("labels", CHOICES, ids="-".join)
def test_writing_with_and_without_a_cache_agrees(name, labels):
    model = decoder(name)
    whole = continued(model)
    with without(model, chosen(model, labels)):
        assert continued(model, use_cache=True).equal(continued(model, use_cache=False))
    assert continued(model).equal(whole)


def test_slots_of_the_cache_close_up_and_open_again():
    model = decoder()
    first = remove(model, chosen(model, ("A0",)))
    second = remove(model, chosen(model, ("A2",)))
    assert model.model.layers[1].self_attn.layer_idx == 0
    cache = model(IDS, use_cache=True).past_key_values
    assert cache.get_seq_length() == IDS.shape[1]
    second(model)
    first(model)
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1, 2]


def test_the_norm_before_two_branches_goes_with_the_second():
    model = decoder("Phi")
    attention, ffn = sublayers(model)[:2]
    assert idle(sublayers(model), [attention]) == []
    assert idle(sublayers(model), [attention, ffn]) == ["model.layers.0.input_layernorm"]
    remove(model, [attention])
    assert idle(sublayers(model), [ffn]) == ["model.layers.0.input_layernorm"]


@each
def test_passes_from_a_block_on_equal_whole_ones_bit_by_bit(name):
    model = decoder(name)
    whole, outputs = block_outputs(model, IDS)
    assert whole.equal(logits(model))
    assert all(logits_from(model, IDS, outputs, start).equal(whole) for start in range(4))
    seen = []

    @contextlib.contextmanager
    def watch(number, block):
        hook = block.register_forward_hook(lambda module, inputs, output: seen.append(hidden(output)))
        yield
        hook.remove()

    block_by_block(model, [IDS, IDS.flip(1)], watch)
    assert len(seen) == 6
    assert all(a.equal(hidden(b)) for a, b in zip(seen[::2], outputs, strict=True))
    assert not any("forward" in vars(module) for module in model.modules())


@each_plain
def test_channels_that_are_gone_equal_channels_at_zero(name):
    model, reference = decoder(name), decoder(name)
    for ffn in ffns(model)[1:]:
        keep = np.arange(ffn.block, ffn.width, 2)
        rest = torch.ones(ffn.width, dtype=torch.bool)
        rest[keep] = False
        down_columns(reference, ffn)[:, rest] = 0
        before = [up.clone() for up in up_rows(model, ffn)]
        cut(model, removal(model, ffn, keep))
        assert all(a.equal(b[keep]) for a, b in zip(up_rows(model, ffns(model)[ffn.block]), before, strict=True))
    torch.testing.assert_close(logits(model), logits(reference), atol=1e-5, rtol=1e-5)


@each
def test_a_folder_keeps_what_is_gone_and_pads_it_where_that_is_wanted(name, tmp_path):
    model = decoder(name)
    if name not in MIXTURES:
        narrowed(model)
    remove(model, chosen(model, ("A0", "M1", "A2")))
    expected = logits(model)
    save_pruned(model, tmp_path / "pruned")
    for again in (load_pruned(tmp_path / "pruned"), open_model(tmp_path / "pruned").model):
        assert type(again) is type(model)
        assert again.state_dict().keys() == model.state_dict().keys()
        assert logits(again).equal(expected)
        assert continued(again, use_cache=True).equal(continued(model, use_cache=False))
    padded(model).save_pretrained(tmp_path / "padded")
    stock = type(model).from_pretrained(tmp_path / "padded", local_files_only=True)
    assert sum(p.numel() for p in stock.parameters()) > sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(logits(stock), expected, atol=1e-5, rtol=1e-5)


def test_a_whole_model_is_saved_as_it_ever_was(tmp_path):
    save_pruned(decoder(), tmp_path)
    assert "removed_sublayers" not in (text := (tmp_path / "config.json").read_text())
    assert "ffn_widths" not in text
    assert logits(load_pruned(tmp_path)).equal(logits(decoder()))


@pytest.mark.parametrize("change", [{"ffn_widths": [24, 24]}, {"ffn_widths": [25, 24, 24]}, {"removed_sublayers": "x"}])
def test_a_configuration_that_does_not_fit_is_refused(change, tmp_path):
    model = decoder()
    for key, value in change.items():
        setattr(model.config, key, value)
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"config\.json"):
        open_model(tmp_path)


def test_models_that_are_no_plain_decoders_are_refused():
    import transformers

    bert = transformers.BertModel(transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=8))  # fmt: skip
    with pytest.raises(UsageError, match="no decoder"):
        sublayers(bert)
    with pytest.raises(UsageError, match="experts"):
        ffns(decoder("Mixtral"))
    with pytest.raises(UsageError, match="sum"):
        sublayers(decoder("OPT", do_layer_norm_before=False))
    model = decoder()
    model.model.layers[1].gadget = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="gadget"):
        sublayers(model)
    model = decoder()
    model._compiled_call_impl = model.forward
    with pytest.raises(UsageError, match="compiled"):
        sublayers(model)


def test_distances_are_what_they_are_called():
    p, q = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = p.softmax(1), q.softmax(1)
    middle = (a + b) / 2
    assert js(p, q).allclose(((a * (a / middle).log()).sum(1) + (b * (b / middle).log()).sum(1)) / 2)
    assert released(p, q).allclose(((middle * (middle.log() * 2 - a.log() - b.log())).sum(1)) / 22)
    assert kl(p, q).allclose((a * (a / b).log()).sum(1))
    far = 100 * torch.eye(2)
    assert js(far, far.flip(0)).allclose(torch.tensor(2.0).log())
    ids = torch.randint(11, (2, 3), generator=torch.Generator().manual_seed(1))
    whole, edited = p.view(2, 3, 11), q.view(2, 3, 11)
    for metric in ("js", "released", "kl", "angular", "norm", "ppl"):
        together = compare(metric, [(whole, edited, ids)])
        apart = compare(metric, [(whole[i : i + 1], edited[i : i + 1], ids[i : i + 1]) for i in (0, 1)])
        assert apart == pytest.approx(together)
        assert compare(metric, [(whole, whole, ids)])[0] == (pytest.approx(0, abs=1e-3) if metric != "ppl" else
            compare("js", [(whole, whole, ids)])[1])  # fmt: skip


def test_characters_go_there_and_back(tmp_path):
    tokenizer = characters()
    text = "To be,\n\n  or not: é \t~"
    ids = encode(tokenizer, text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == "".join(c if c in ALPHABET else ALPHABET[0] for c in text)
    import transformers

    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert again(text).input_ids == ids.tolist()
    assert again.decode(ids) == tokenizer.decode(ids)


def test_a_corpus_is_cut_into_a_part_to_learn_from_and_one_to_measure_on():
    corpus = Corpus.of(torch.arange(1000), length=20)
    assert corpus.train.ids.tolist() == list(range(900))
    assert corpus.val.ids[0] == 900
    batch = corpus.train.batch(0, 3, 5)["tokens"]
    assert batch.shape == (5, 20)
    assert (batch.diff(dim=1) == 1).all()
    assert batch.equal(corpus.train.batch(0, 3, 5)["tokens"])
    assert not batch.equal(corpus.train.batch(0, 4, 5)["tokens"])
    assert corpus.train.rows(2, 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(DataError, match="901"):
        corpus.train.rows(1, 901)
    with pytest.raises(DataError, match="windows"):
        Corpus.of(torch.arange(39), length=20)
    with pytest.raises(DataError, match="window"):
        Tokens(torch.arange(3), 4)


def test_a_corpus_scores_a_model_and_knows_whether_it_fits():
    model = decoder()
    model.lm_head.weight.data *= 3
    corpus = Corpus.of(sampled(model, 8, 40), length=20)
    score = corpus.score(model)
    assert 0 < score.loss < 3
    assert corpus.score(decoder("Qwen2")).loss > score.loss
    with pytest.raises(UsageError, match="beyond"):
        Corpus.of(torch.full((100,), 40), length=20).check(model)
    with pytest.raises(UsageError, match="language model"):
        corpus.check(torch.nn.Linear(2, 2))


def test_text_is_read_from_files_and_folders(tmp_path):
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.md").write_text("three")
    assert read_text(tmp_path) == "one\ntwo"
    assert read_text(tmp_path / "c.md") == "three"
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\x00")
    for path, what in (("d.txt", "UTF-8"), ("none", "no such"), (".", "UTF-8")):
        with pytest.raises(DataError, match=what):
            read_text(tmp_path / path)
