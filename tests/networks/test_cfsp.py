"""CFSP: budgets, scores, widths and the repair, and that what is left computes what zeroing would."""

import copy
import itertools

import pytest
import torch
from decoders import EVERY, MIXTURES, continued, decoder, logits
from hypothesis import given
from hypothesis import strategies as st

from efface.core.method import Work
from efface.core.models import open_model
from efface.core.plan import Plan
from efface.errors import UsageError
from efface.networks.cfsp import CFSP, keep_shares
from efface.parts.data.language import Corpus
from efface.parts.language.ffn import down_columns, ffns, up_rows
from efface.parts.language.folders import save_pruned

CORPUS = Corpus.of(torch.randint(40, (600,), generator=torch.Generator().manual_seed(0)), length=16)
QUICK = {"rows": 6, "length": 10, "multiple": 4}
PLAIN = [name for name in EVERY if name not in MIXTURES]


def plan(model, **options):
    return CFSP(**QUICK | options).plan(model, CORPUS, Work())


def widths(made):
    return [block["width"] for block in made.made_by["blocks"]]


def measured(model, rows, **options):
    method = CFSP(**QUICK | options)
    return method, method.measure(model, ffns(model), [rows], Work())


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_left_equals_channels_at_zero_and_is_a_plain_folder(name, tmp_path):
    model, reference = decoder(name), decoder(name)
    before = copy.deepcopy(model.state_dict())
    made = plan(model, keep=0.5)
    assert sum(widths(made)) < 0.6 * sum(ffn.width for ffn in ffns(model))
    assert all(v.equal(before[n]) for n, v in model.state_dict().items())
    whole = {f.down: (f, up_rows(reference, f)[0]) for f in ffns(reference)}
    made.save(tmp_path / "plan")
    Plan.load(tmp_path / "plan").apply(model)
    for ffn in ffns(model):
        old, rows = whole[ffn.down]
        kept = (up_rows(model, ffn)[0][:, None] == rows[None]).all(2).any(0)
        assert int(kept.sum()) == ffn.width
        down_columns(reference, old)[:, ~kept] = 0
    torch.testing.assert_close(logits(model), logits(reference), atol=1e-5, rtol=1e-5)
    save_pruned(model, tmp_path / "model")
    again = open_model(tmp_path / "model").model
    assert logits(again).equal(logits(model))
    assert continued(again, use_cache=True).equal(continued(model, use_cache=False))
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in again.parameters())


def test_keeping_all_changes_nothing():
    assert plan(decoder(), keep=1.0).ops == ()


@given(
    st.lists(st.floats(0.0, 1.0), min_size=2, max_size=12),
    st.floats(0.05, 0.99),
    st.floats(0.0, 50.0),
)
def test_shares_have_the_mean_that_is_asked_for_and_none_is_over_one(influence, keep, a):
    shares = keep_shares(CFSP(a=a).budgets(influence), keep)
    assert float(shares.mean()) == pytest.approx(keep, rel=1e-6)
    assert 0 <= float(shares.min()) <= float(shares.max()) <= 1 + 1e-9
    order = sorted(range(len(influence)), key=influence.__getitem__)
    assert all(shares[i] <= shares[j] + 1e-12 for i, j in itertools.pairwise(order))


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.77])
@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_widths_are_multiples_that_add_up(keep, multiple):
    found = widths(plan(decoder(), keep=keep, multiple=multiple))
    assert all(w % multiple == 0 and w >= multiple for w in found)
    assert abs(sum(found) - keep * 3 * 24) <= multiple / 2
    assert widths(plan(decoder(), keep=0.5, coarse="constant", multiple=4)) == [12, 12, 12]


def test_a_share_of_the_whole_model_is_met():
    model = decoder(tie_word_embeddings=False)
    before = sum(p.numel() for p in model.parameters())
    plan(model, keep=0.8, of="model", multiple=1).apply(model)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.8 * before, abs=2 * 48)
    with pytest.raises(UsageError, match="Keep more than"):
        plan(decoder(), keep=0.2, of="model")


def test_twice_the_text_leaves_budgets_as_they_are():
    model, rows = decoder(), CORPUS.train.rows(4, 10)
    method, once = measured(model, rows)
    _, twice = measured(model, rows.repeat(2, 1))
    assert method.budgets([s.influence for s in twice]).allclose(method.budgets([s.influence for s in once]))
    assert all(b.activity.allclose(2**0.5 * a.activity, rtol=1e-4) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize("coarse", ["angular", "cosine", "mse", "mae"])
def test_a_block_that_does_nothing_has_no_influence(coarse):
    model = decoder()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        model.get_submodule(f"model.layers.1.{name}").weight.data.zero_()
    _, found = measured(model, CORPUS.train.rows(4, 10), coarse=coarse)
    influence = [s.influence for s in found]
    assert influence[1] == pytest.approx(0, abs=1e-3)
    assert min(influence[0], influence[2]) > influence[1]


def test_activity_is_the_norm_of_what_the_last_layer_is_given():
    model, rows, seen = decoder(), CORPUS.train.rows(4, 10), []
    hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda m, x: seen.append(x[0].detach()))
    model(rows)
    hook.remove()
    _, found = measured(model, rows)
    assert found[1].activity.allclose(seen[0].flatten(0, 1).norm(dim=0), rtol=1e-4)


def test_scores_are_the_formulas():
    model = decoder()
    ffn, s = ffns(model)[0], torch.rand(24, generator=torch.Generator().manual_seed(0)) + 0.1
    gate, up = (w.abs() for w in up_rows(model, ffn))
    down = down_columns(model, ffn).abs()
    row = (
        (down * s / (down * s).sum(1, keepdim=True)).mean(0) + (gate / gate.sum(0)).mean(1) + (up / up.sum(0)).mean(1)
    ) * s
    assert CFSP().scores(model, ffn, s).allclose(row)
    assert CFSP(norm="released").scores(model, ffn, s).allclose(3 / 16 * s)  # the weights say nothing
    assert CFSP(score="wanda").scores(model, ffn, s).allclose(down.mean(0) * s)
    assert CFSP(score="magnitude").scores(model, ffn, s).allclose(down.sum(0) + gate.sum(1) + up.sum(1))
    assert not CFSP(score="three_w_one_a").scores(model, ffn, s).allclose(row)


def test_ranks_add_up_to_the_same_and_follow_importance():
    u = torch.tensor([0.9, 0.1, 0.5, 0.5], dtype=torch.float64)
    found = {mode: CFSP(rank=4, rank_mode=mode).ranks(u) for mode in ("importance", "inverse", "uniform")}
    assert all(sum(ranks) == 16 and min(ranks) >= 1 for ranks in found.values())
    assert found["uniform"] == [4, 4, 4, 4]
    assert found["importance"][0] > found["importance"][2] > found["importance"][1]
    assert found["inverse"][0] < found["inverse"][2] < found["inverse"][1]


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_the_repair_is_merged_into_the_weights_and_lowers_the_loss(name):
    model = decoder(name)
    bare, repaired = (plan(model, keep=0.3, steps=steps, rank=2, lr=0.02, repair_batch=8) for steps in (0, 25))
    losses = []
    for made in (bare, repaired):
        made.apply(model)
        losses.append(CORPUS.score(model, "train").loss)
        assert not any("lora" in n for n, _ in model.named_modules())
        made.undo(model)
    assert losses[1] < losses[0]
    change = repaired.ops[-1].given
    assert change["up"].shape[-1] == change["down"].shape[0] >= 1


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(UsageError, match="text"):
        CFSP().plan(decoder(), None, Work())
    with pytest.raises(UsageError, match="experts"):
        plan(decoder("Mixtral"))
    with pytest.raises(UsageError, match="multiples"):
        plan(decoder(), multiple=128)
