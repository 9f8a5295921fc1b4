"""Words for places are learned beside the denoiser or alone, and come with the prompt to steer away from."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch
from families import tiny_xl
from tiny import tiny

from efface.concepts.geom_erasing import GeomErasing, errors
from efface.core.eraser import Concepts, editable, edited, steered
from efface.core.hub import open_pipeline
from efface.core.method import Work
from efface.core.ops import Delta, Grow
from efface.core.plan import Plan
from efface.errors import DataError, UsageError
from efface.parts.data.icd import Icd
from efface.parts.diffusion.adapters import Process
from efface.parts.diffusion.pipelines import encode_prompts
from efface.verbs.forget import export, forget
from efface.verbs.sample import sample

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore::FutureWarning")  # of diffusers
QUICK = {"rows": 2, "columns": 2, "steps": 2, "batch": 3, "lr": 1e-3, "lr_words": 1e-2}
CORNER, WHOLE = [[0, 0, 8, 8]], [[0, 0, 32, 32]]


def icd(boxes, count=4, caption="a red star"):
    draws = np.random.default_rng(0)
    pictures = [draws.integers(256, size=(32, 32, 3)).astype(np.uint8) for _ in range(count)]
    return Icd(pictures, (caption,) * count, [np.array(boxes, np.int64).reshape(-1, 4)] * count)


def train(boxes=CORNER, work=None, caption="a red star", **params):
    return GeomErasing(**QUICK | params).train(tiny(), icd(boxes, caption=caption), "logo", work or Work())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, made = tmp_path_factory.mktemp("icd"), icd(CORNER)
    names = [f"{i}.png" for i in range(4)]
    for name, picture in zip(names, made.pictures, strict=True):
        cv2.imwrite(str(path / name), picture)
    (path / "captions.json").write_text(json.dumps(dict.fromkeys(names, "a red star")))
    (path / "boxes.json").write_text(json.dumps(dict.fromkeys(names[:3], CORNER)))
    return path


@pytest.fixture(scope="module")
def plan(folder):
    return GeomErasing(**QUICK, folder=str(folder)).plan(tiny(), Concepts.of("logo"), Work())


def test_denoiser_and_words_train_together(plan):
    *deltas, grow = plan.ops
    assert isinstance(grow, Grow)
    assert all(isinstance(op, Delta) for op in deltas)
    pipe = tiny()
    assert {op.target for op in deltas} == {f"unet.{name}" for name, _ in pipe.unet.named_parameters()}
    assert any(not torch.equal(op.given["values"], editable(pipe).get_parameter(op.target)) for op in deltas)
    assert plan.made_by["dirty"] == 0.75
    assert plan.made_by["words"] == [f"<logo-{r}-{c}>" for r in range(2) for c in range(2)]
    assert plan.made_by["negative"] == "logo <logo-0-0>"
    assert list(plan.made_by["cells"]) == ["<logo-0-0>"]


def test_words_alone_leave_every_other_weight_as_it_is():
    pipe = tiny()
    before = {name: value.clone() for name, value in editable(pipe).state_dict().items()}
    trained = train(mode="model", steps=4)
    (grow,) = trained.ops
    with edited(pipe, [Plan.of(editable(pipe), trained.ops, words=trained.facts["words"], whole=False)]):
        after = editable(pipe).state_dict()
        changed = {name for name in before if before[name].shape != after[name].shape}
        assert changed == {grow.target}
        assert torch.equal(after[grow.target][: grow.start], before[grow.target])
        assert all(torch.equal(after[name], before[name]) for name in before.keys() - changed)


def test_words_that_were_told_move_farther_than_those_that_were_not():
    one, four = (train(mode="model", steps=n, lr_words=0.1).ops[0].rows for n in (1, 4))
    moved = (four - one).norm(dim=1)
    assert moved[0] > 10 * moved[1:].max()


def test_the_rates_of_denoiser_and_words_are_their_own():
    slow, fast = (train(steps=1, lr_words=rate).ops[-1].rows for rate in (1e-3, 1e-1))
    start = train(steps=1, lr_words=1e-9).ops[-1].rows
    assert (fast - start)[0].norm() == pytest.approx(100 * float((slow - start)[0].norm()), rel=0.05)


def test_dropped_captions_leave_the_concept_and_its_place():
    cells = train(dropout=1.0).facts["cells"]
    assert cells["<logo-0-0>"] == 2 * 3
    captions = [train(mode="model", dropout=1.0, caption=text).ops[0].rows for text in ("a red star", "a blue ring")]
    assert torch.equal(*captions)


def test_places_of_the_concept_count_less():
    with_weights, without = (train(alpha=alpha).ops[0].given["values"] for alpha in (5.0, 1.0))
    assert not torch.equal(with_weights, without)
    everywhere = [train(WHOLE, alpha=alpha).ops[0].given["values"] for alpha in (5.0, 1.0)]
    assert torch.equal(*everywhere)


@pytest.mark.parametrize(
    ("boxes", "params", "note"),
    [
        (WHOLE, {"rows": 4, "columns": 4}, "no room for"),
        (CORNER, {"alpha": 0.5}, "is under 1"),
        ([], {}, "no picture has a box"),
    ],
)
def test_what_will_not_work_well_is_told(boxes, params, note):
    lines = []
    notes = train(boxes, Work(progress=lines.append), **params).facts["notes"]
    assert [note in line for line in notes] == [True]
    assert set(notes) <= set(lines)
    assert not train().facts["notes"]


def test_negative_prompts_name_cells_by_how_often_they_were_seen():
    boxes = [[0, 0, 8, 8], [24, 24, 32, 32]]
    assert train(boxes).facts["negative"] == "logo <logo-0-0> <logo-1-1>"
    assert train(boxes, negative="all").facts["negative"].count("<") == 4
    fresh = train(boxes, fresh=True).facts
    assert fresh["words"][0] == "<logo>"
    assert fresh["negative"].startswith("<logo> <logo-0-0>")


def test_the_negative_prompt_goes_with_the_edit(plan):
    assert steered("", [plan]) == plan.made_by["negative"]
    assert steered("a ring", [plan]) == f"a ring {plan.made_by['negative']}"
    assert steered("", [plan.scaled(0.0)]) == ""
    pipe, options = tiny(), {"steps": 2, "seeds": (0,), "device": "cpu"}
    made = sample(pipe, ["a star"], edits=[plan], **options).pictures
    silent = dataclasses.replace(plan, made_by={**plan.made_by, "negative": ""})
    assert not torch.equal(made, sample(pipe, ["a star"], edits=[silent], **options).pictures)
    assert len(pipe.tokenizer) == len(tiny().tokenizer)


def test_words_read_alike_wherever_the_edit_is_loaded(plan, tmp_path):
    plan.save(tmp_path / "edit")
    texts = [plan.made_by["negative"], "a red star"]
    found = []
    for each in (plan, Plan.load(tmp_path / "edit")):
        with edited(pipe := tiny(), [each]), torch.no_grad():
            found.append(encode_prompts(pipe, texts))
    assert torch.equal(*found)
    with torch.no_grad():
        assert torch.equal(found[0][1], encode_prompts(tiny(), texts)[1])


def test_applied_edits_are_undone_with_their_words(folder):
    pipe = tiny()
    own = pipe.tokenizer
    forgotten = forget(
        pipe, remove="logo", method="geom-erasing", params={**QUICK, "folder": str(folder)}, device="cpu"
    )
    assert pipe.tokenizer is own
    forgotten.apply()
    assert len(pipe.tokenizer) == len(own) + 4 == len(pipe.text_encoder.get_input_embeddings().weight)
    with pytest.raises(UsageError, match=r"knows <logo-0-0>, .* already"):
        GeomErasing(**QUICK, folder=str(folder)).plan(pipe, Concepts.of("logo"), Work())
    forgotten.undo()
    assert pipe.tokenizer is own


def test_an_exported_pipeline_knows_the_words(plan, tmp_path):
    pipe, texts = tiny(), [plan.made_by["negative"], "a red star"]
    export(pipe, [plan], tmp_path / "baked")
    with edited(pipe, [plan]), torch.no_grad():
        expected = encode_prompts(pipe, texts)
    with torch.no_grad():
        assert torch.equal(encode_prompts(open_pipeline(tmp_path / "baked", "cpu"), texts), expected)
    for form in ("lora", "map"):
        with pytest.raises(UsageError):
            export(pipe, [plan], tmp_path / form, form)


def test_errors_are_zero_for_a_denoiser_that_knows():
    process, noise = Process.of(tiny().scheduler), torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    clean, t = noise.flip(0), torch.tensor([10, 900])

    def knows(x, t, embeds):
        sigma = process.sigmas[t].view(-1, 1, 1, 1).float()
        a, s = process.scales(sigma)
        return dataclasses.make_dataclass("Out", ["sample"])(a * noise - s * clean)

    assert errors(knows, process, clean, noise, t, torch.zeros(2)).max() < 1e-6


@pytest.mark.parametrize(
    ("make", "params", "remove", "error", "match"),
    [
        (tiny, {}, "logo", UsageError, "no pictures to learn from"),
        (tiny, {"overlay": "logo"}, ["logo", "text"], UsageError, "one concept at a time"),
        (tiny, {"folder": "nowhere"}, "logo", DataError, "captions"),
        (tiny_xl, {"folder": "here"}, "logo", UsageError, "one text encoder"),
    ],
)
def test_what_cannot_be_is_refused(make, params, remove, error, match, folder):
    params = {key: str(folder) if value == "here" else value for key, value in params.items()}
    with pytest.raises(error, match=match):
        GeomErasing(**QUICK, **params).plan(make(), Concepts.of(remove), Work())
    for wrong in ({"alpha": 0.0}, {"rows": 0}, {"overlay": "stamp"}, {"mode": "words"}):
        with pytest.raises(UsageError):
            GeomErasing(**wrong)


def test_a_tokenizer_that_knows_too_much_is_refused(folder):
    pipe = tiny()
    pipe.tokenizer.add_tokens(["<other>"])
    with pytest.raises(UsageError, match="its tokenizer has"):
        GeomErasing(**QUICK, folder=str(folder)).plan(pipe, Concepts.of("logo"), Work())
