"""Erasers are scored beside the original, on the same noise, and nothing is left changed."""

from __future__ import annotations

import contextlib
import csv
import io
import json

import numpy as np
import pytest
import torch
from tiny import tiny

from efface.core.eraser import editable
from efface.core.erasure import score_erasure
from efface.core.erasure_models import Negative
from efface.core.ops import Map
from efface.core.plan import Plan
from efface.errors import DataError, UnknownNameError, UsageError
from efface.parts.concepts.attention import cross_attention
from efface.parts.concepts.clip_judge import clip_judge
from efface.parts.metrics.judged import Seen
from efface.parts.worlds.pipeline import tokenizer

PROMPTS = {"circle": ["a red circle", "a blue circle"], "ring": ["a red ring", "a blue ring"], "disc": ["a red disc"]}
SEEDS = (0, 1)
CLASSES = {"shape": ("circle", "ring", "none"), "colour": ("red", "blue", "none")}


def judge(pictures):
    """Stand for a judge: any function of the pictures will do."""
    means = pictures.flatten(2).mean(2)  # (b, 3)
    beliefs = {"shape": (40 * means).log_softmax(1).numpy(), "colour": (40 * means.flip(1)).log_softmax(1).numpy()}
    return Seen(CLASSES, beliefs, means.numpy())


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture(scope="module")
def plan(pipe):
    return made(pipe)


def made(pipe, **facts):
    width = pipe.text_encoder.config.hidden_size
    up, down = torch.randn(2, width, 4, generator=torch.Generator().manual_seed(0))
    op = Map("unet", tuple(cross_attention(pipe.unet)), up, down.T / 8)
    return Plan.of(editable(pipe), [op], method="mapped", whole=False, **facts)


def score(pipe, m, **changed):
    given = {"target": "circle", "keep": ["ring"], "judge": judge, "prompts": PROMPTS, "seeds": SEEDS, "steps": 1}
    return score_erasure(pipe, m, **{**given, **changed})


@pytest.fixture(scope="module")
def report(pipe, plan):
    before = {key: value.clone() for key, value in editable(pipe).state_dict().items()}
    found = score(pipe, {"mapped": plan, "negative prompt": Negative("circle"), "itself": pipe})
    assert all(torch.equal(before[key], value) for key, value in editable(pipe).state_dict().items())
    return found


def test_every_figure_has_its_count_and_the_original_beside_it(report):
    assert list(report.models) == ["original", "mapped", "negative prompt", "itself"]
    counts = {"acc_e": 4, "acc_g": 2, "acc_g:disc": 2, "ira": 4, "acc:ring": 4, "cra": 4, "cra_all": 10, "h_o": 2}
    for scored in report.models.values():
        assert {name: scored[name].n for name in counts} == counts
        assert scored.figures.keys() == report["original"].figures.keys()
        assert scored["ua"].value == 1 - scored["acc_e"].value
        assert sum(figure.value for figure in scored.shows.values()) == pytest.approx(1)


def test_the_original_beside_itself_has_not_drifted(report):
    for name, figure in report["itself"].figures.items():
        assert figure.value == pytest.approx(report["original"][name].value), name
        if name.startswith("drift"):
            assert figure.value == pytest.approx(0, abs=1e-9)
        if figure.each:
            assert report.difference("itself", "original", name).mean == 0


def test_edits_and_negative_prompts_change_pictures(report):
    for name in ("mapped", "negative prompt"):
        assert report[name]["drift_e:mse"].value > 0
        assert report[name]["drift_u:features"].value > 0


def test_a_judge_that_misses_what_the_original_draws_is_not_trusted(pipe, report):
    def perfect(pictures):
        return next(answers)

    answers = iter([["circle"] * 4, ["ring"] * 4, ["circle"] * 2] * 2)
    trusted = score(pipe, pipe, judge=perfect)
    assert trusted.trusted
    assert trusted.require_trust() is trusted
    assert "cra" not in trusted["original"].figures  # it sees one factor alone
    assert not report.trusted
    with pytest.raises(DataError, match="judge not trustworthy"):
        report.require_trust()


def test_held_out_pictures_test_the_judge(pipe):
    renders = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    right = judge(renders).names("shape")
    good, bad = (score(pipe, pipe, renders=(renders, labels)).doubts for labels in (right, ["nothing"] * 4))
    assert len(bad) == len(good) + 1
    assert "held-out" in bad[0]


def test_pictures_that_show_nothing_are_no_erasure(pipe):
    def lost(pictures):
        return Seen(CLASSES, {name: np.full((len(pictures), 3), -np.log(3)) for name in CLASSES})

    scored = score(pipe, pipe, judge=lost)["edited"]
    assert scored.collapsed
    assert scored["entropy"].value == pytest.approx(np.log(3))
    assert "drift_u:features" not in scored.figures


class Stub:
    """An attack that tells what it is given."""

    name = "stub"

    def __init__(self):
        self.seen = []

    def observe(self, m0, case):
        self.seen.append(("observed", case.without()))
        return "found"

    def strike(self, m, found, case):
        assert found == "found"
        self.seen.append((m.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.sum().item(),
                          case.drawing.negative))  # fmt: skip
        return case.pictures


def test_attacks_look_at_the_original_once_and_strike_every_model(pipe, plan):
    attack = Stub()
    report = score(pipe, {"mapped": plan, "negative prompt": Negative("circle")}, attacks=[attack], neutral="shape")
    assert attack.seen[0] == ("observed", ("a red shape",) * 2 + ("a blue shape",) * 2)
    (first, _), (mapped, _), (same, negative) = attack.seen[1:]
    assert first == same != mapped
    assert negative == "circle"
    for scored in report.models.values():
        assert scored["asr:stub"].n == 4
        assert scored["asr:stub"].value == report["original"]["acc_e"].value


def test_gated_plans_act_on_prompts_about_their_target_alone(pipe, monkeypatch):
    from efface.core import gating

    def facilitation(pipe, prompts, concepts, **_):
        assert concepts == ["circle"]
        return torch.tensor([[1.0 if "circle" in text else 0.0] for text in prompts])

    monkeypatch.setattr(gating, "facilitation", facilitation)
    gated = score(pipe, made(pipe, gate=True, erases=[{"remove": "circle", "instead": ""}]))["mapped"]
    whole = score(pipe, made(pipe))["mapped"]
    assert gated["drift_e:mse"].value == pytest.approx(whole["drift_e:mse"].value, rel=1e-4)
    assert gated["drift_u:mse"].value == 0 < whole["drift_u:mse"].value


def test_whatever_opens_a_pipeline_is_a_model(pipe, plan):
    @contextlib.contextmanager
    def opening():
        box = editable(pipe)
        plan.apply(box)
        yield pipe
        plan.undo(box)

    assert score(pipe, opening)["edited"]["drift_e:mse"] == score(pipe, plan)["mapped"]["drift_e:mse"]


def test_frechet_distances_have_a_floor(pipe, plan):
    report = score(pipe, plan, frechet=3)
    assert report["original"]["frechet_u"].n == 3
    assert report["original"]["frechet_u"].value > 0
    assert report["mapped"]["frechet_e"].value > 0
    with pytest.raises(UsageError, match="no features"):
        score(pipe, plan, frechet=3, judge=lambda pictures: ["circle"] * len(pictures))


def test_a_judge_that_fails_leaves_the_pipeline_as_it_was(pipe, plan):
    before, calls = {key: value.clone() for key, value in pipe.unet.state_dict().items()}, []

    def failing(pictures):
        calls.append(pictures)
        if len(calls) > 3:
            raise RuntimeError("broken")
        return judge(pictures)

    with pytest.raises(RuntimeError, match="broken"):
        score(pipe, plan, judge=failing)
    assert all(torch.equal(before[key], value) for key, value in pipe.unet.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"keep": ["circle"]}, "does not go with"),
        ({"keep": []}, "does not go with"),
        ({"keep": "ring"}, "does not go with"),
        ({"keep": ["ring", "ring"]}, "does not go with"),
        ({"keep": ["star"]}, "no prompts"),
        ({"seeds": ()}, "none are given"),
        ({"seeds": (1, 1)}, "one twice"),
        ({"prompts": {**PROMPTS, "ring": ["a ring", "a ring"]}}, "one twice"),
        ({"target": "star", "prompts": {**PROMPTS, "star": ["a star"]}}, "nothing that the judge can see"),
    ],
)
def test_calls_that_make_no_sense_are_refused(pipe, changed, message):
    with pytest.raises(UsageError, match=message):
        score(pipe, pipe, **changed)


def test_reports_are_saved_and_shown(report, tmp_path):
    stored = json.loads(report.to_json())
    assert stored["models"]["mapped"]["figures"]["ua"].keys() == {"value", "low", "high", "n"}
    assert stored["settings"]["prompts"] == PROMPTS
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert len(rows) == sum(len(scored.figures) for scored in report.models.values())
    report.save(tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text("utf-8") == report.to_csv()
    with pytest.raises(UsageError, match=r"\.json or \.csv"):
        report.save(tmp_path / "r.txt")
    assert report.table().row_count == len(report["original"].figures) + 1
    for missing in (lambda: report["rece"], lambda: report["mapped"]["acc"]):
        with pytest.raises(UnknownNameError):
            missing()


def test_clip_judges_concepts_by_name(tmp_path):
    import transformers

    words = tokenizer()
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": len(words) - 2,
            "eos_token_id": len(words) - 1}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    seen = clip_judge(tmp_path, ["circle", "ring"])(torch.rand(3, 3, 40, 40))
    assert seen.classes["concept"] == ("circle", "ring", "none")
    assert np.exp(seen.log_probs["concept"]).sum(1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert seen.features.shape == (3, 8)
