"""Concepts are taken out of pipelines by small edits that are applied, undone, stacked, exported, and refused."""

import copy
import json
from pathlib import Path

import diffusers
import pytest
import torch
from families import fixed_noise, long_prompts, tiny_flux, tiny_xl
from tiny import tiny

from efface.core.eraser import Concepts, Eraser, check_concepts, editable, edited
from efface.core.fingerprint import Fingerprint
from efface.core.hub import open_pipeline
from efface.core.method import Work
from efface.core.ops import Delta, Map
from efface.core.plan import Plan
from efface.core.textmap import TextMap
from efface.errors import EffaceError, OutputError, PlanError, UnknownNameError, UsageError, WeightsError
from efface.parts.concepts.attention import cross_attention
from efface.parts.diffusion.pipelines import conditions
from efface.verbs.export import export
from efface.verbs.forget import forget

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore::FutureWarning")  # of diffusers
NEAR = {"atol": 1e-5, "rtol": 0}


@pytest.fixture
def turned(install):
    """Install the eraser `turn`, and return what it makes of a pipeline."""
    install((Path(__file__).parent / "turn.py").read_text("utf-8"), "turn")

    def make(pipe, remove="circle", instead="square", **given):
        return forget(pipe, remove=remove, instead=instead, method="turn", device="cpu", **given)

    return make


def noise_found(pipe, prompt="a red circle"):
    with torch.no_grad():
        return pipe.unet(fixed_noise(), 400, conditions(pipe, [prompt] * 2)).sample


def print_of(pipe):
    return Fingerprint.of(editable(pipe))


def low_rank(pipe, name, rank=2, seed=0):
    """Return a plan that adds a product of low rank to a layer."""
    generator = torch.Generator().manual_seed(seed)
    weight = editable(pipe).get_parameter(f"{name}.weight")
    up = 0.1 * torch.randn(len(weight), rank, generator=generator)
    down = torch.randn(rank, *weight.shape[1:], generator=generator)
    op = Delta.low_rank(f"{name}.weight", up, down, 0.5)
    return Plan.of(editable(pipe), [op], method="adapter", whole=False)


def test_an_edit_leaves_the_pipeline_alone_until_it_is_applied_and_after_it_is_undone(turned):
    pipe = tiny()
    before, shown = print_of(pipe), noise_found(pipe)
    forgotten = turned(pipe, keep=["a star", "a cross"])
    assert print_of(pipe) == before
    forgotten.apply()
    assert not torch.allclose(noise_found(pipe), shown, atol=1e-3)
    forgotten.undo()
    assert print_of(pipe) == before
    assert torch.equal(noise_found(pipe), shown)


def test_the_report_says_what_was_done(turned):
    report = turned(tiny(), ["circle", "ring"], ["square", "star"], keep=["a cross"], seed=3).report
    assert report.erases == ({"remove": "circle", "instead": "square"}, {"remove": "ring", "instead": "star"})
    assert (report.keep, report.seed, report.method, report.params) == (1, 3, "turn", {"noise": 0.01})
    assert report.layers == len(cross_attention(tiny().unet))
    assert report.size == 4 * 2 * 2 * 32
    assert report.norm > 0
    json.dumps(report.as_dict())


def test_a_saved_edit_is_a_plan_with_its_report(turned, tmp_path):
    forgotten = turned(tiny())
    forgotten.save(tmp_path / "edit")
    assert sorted(path.name for path in (tmp_path / "edit").iterdir()) == [
        "plan.json", "plan.safetensors", "report.json"
    ]  # fmt: skip
    with edited(pipe := tiny(), [Plan.load(tmp_path / "edit")]):
        expected = noise_found(pipe)
    assert torch.equal(noise_found(forgotten.apply()), expected)
    with pytest.raises(OutputError, match="exists already"):
        forgotten.save(tmp_path / "edit")
    forgotten.save(tmp_path / "edit", overwrite=True)


def test_edits_stack_in_strengths_and_leave_no_trace(turned):
    pipe = tiny()
    before = print_of(pipe)
    one, two = turned(pipe).plan, low_rank(pipe, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    three = turned(pipe, "ring", "star").plan
    made = []
    for plans in ([], [one], [one, two], [one, three], [one.scaled(0.5)], [one.scaled(0.0)]):
        with edited(pipe, plans):
            made.append(noise_found(pipe))
        assert print_of(pipe) == before
    assert torch.allclose(made[0], made[5], **NEAR)
    assert len({round(float(out.norm()), 4) for out in made[:5]}) == 5
    up, down = one.ops[0].up, one.ops[0].down
    half = Plan.of(editable(pipe), [Map("unet", one.ops[0].layers, up / 2, down)])
    with edited(pipe, [half]):
        assert torch.allclose(noise_found(pipe), made[4], **NEAR)


def test_an_edit_knows_only_what_it_edits(turned):
    plan, other = turned(tiny()).plan, tiny()
    assert set(plan.base.tensors) == {f"unet.{name}.weight" for name in cross_attention(other.unet)}
    with torch.no_grad():
        other.unet.conv_in.weight.add_(1)
        other.text_encoder.get_parameter("embeddings.token_embedding.weight").mul_(2)
    with edited(other, [plan]):
        pass


def test_an_edit_for_another_base_is_refused_but_siblings_take_it_on_purpose(turned):
    plan, other = turned(tiny()).plan, tiny()
    with torch.no_grad():
        next(iter(cross_attention(other.unet).values())).weight[0, 0] += 1
    before = print_of(other)
    with pytest.raises(PlanError, match="other weights"), edited(other, [plan]):
        pass
    with edited(other, [plan], strict=False):
        assert print_of(other) != before
    assert print_of(other) == before
    for strict in (True, False):
        with pytest.raises(PlanError, match="another model"), edited(tiny_xl(), [plan], strict=strict):
            pass


def test_a_concept_is_taken_out_once(turned, tmp_path):
    pipe = tiny()
    forgotten = turned(pipe)
    forgotten.export(tmp_path / "baked")
    with pytest.raises(PlanError, match="is given twice"), edited(pipe, [forgotten.plan, turned(pipe).plan]):
        pass
    forgotten.apply()
    edit = print_of(pipe)
    with pytest.raises(PlanError, match="applied"):
        forgotten.apply()
    with pytest.raises(UsageError, match="'circle' has been taken out of this pipeline before"):
        turned(pipe)
    with pytest.raises(UsageError, match="'CIRCLE' has been taken out of this pipeline before"):
        turned(tmp_path / "baked", ["star", "CIRCLE"], "ring")
    assert print_of(pipe) == edit
    assert turned(tmp_path / "baked", "star").report.pipeline == str(tmp_path / "baked")


def test_values_that_two_edits_decide_are_refused(turned):
    pipe = tiny()
    first = turned(pipe).plan
    name = next(iter(first.base.tensors))
    values = editable(pipe).get_parameter(name) + 1
    second = Plan.of(editable(pipe), [Delta.set(name, values)], method="tuned", whole=False)
    for plans in ([first, second], [second, first]):
        with pytest.raises(PlanError, match=f"both decide the values of {name}"), edited(pipe, plans):
            pass
    with edited(pipe, [second.scaled(0.25)]):
        assert torch.allclose(editable(pipe).get_parameter(name), values - 0.75)


BAD = {
    "nothing to remove": ({"remove": ""}, "no concept is named"),
    "nothing at all": ({"remove": []}, "no concept is named"),
    "spaces": ({"remove": "  "}, "no concept is named"),
    "one twice": ({"remove": ["circle", "Circle"]}, "is named twice"),
    "itself": ({"instead": "circle"}, "replaced by itself"),
    "the same tokens": ({"remove": "circle", "instead": "circle\u3000"}, "replaced by itself|are the same tokens"),
    "other numbers": ({"remove": ["circle", "ring"], "instead": ["a", "b", "c"]}, "2 concepts are to go and 3"),
    "to keep as well": ({"keep": ["a star", "Circle "]}, "'Circle' is to go and to stay"),
    "too many words": ({"remove": "red " * 15}, "takes 15 tokens, and 14 fit"),
    "too many words to keep": ({"keep": ["red " * 15]}, "takes 15 tokens, and 14 fit"),
    "too many words instead": ({"instead": "red " * 15}, "takes 15 tokens, and 14 fit"),
    "an unknown setting": ({"params": {"noisy": 1}}, "noisy"),
    "a setting out of bounds": ({"params": {"noise": -1}}, "outside"),
}


@pytest.mark.parametrize("case", BAD)
def test_concepts_that_cannot_be_are_refused(turned, case):
    given, match = BAD[case]
    pipe = tiny()
    before = print_of(pipe)
    with pytest.raises(UsageError, match=match):
        turned(pipe, **given)
    assert print_of(pipe) == before


def test_a_word_that_leaves_no_token_is_refused():
    pipe = tiny()
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Replace("circle", "")
    with pytest.raises(UsageError, match="'circle' is no word for the tokenizer"):
        check_concepts(pipe, Concepts.of("circle"))


def test_both_tokenizers_of_sdxl_are_asked():
    pipe = tiny_xl()
    pipe.tokenizer_2.model_max_length = 3
    with pytest.raises(UsageError, match="takes 2 tokens, and 1 fit"):
        check_concepts(pipe, Concepts.of("red circle"))


def test_prompts_of_77_slots_are_edited(turned):
    pipe = long_prompts()
    turned(pipe, "red " * 75).apply()
    with pytest.raises(UsageError, match="takes 76 tokens, and 75 fit"):
        turned(pipe, "red " * 76)


def test_pipelines_that_do_not_attend_or_are_none_are_refused(turned):
    pipe = tiny()
    pipe.unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=8, out_channels=8, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=8,
    )  # fmt: skip
    with pytest.raises(UsageError, match="no cross-attention"):
        turned(pipe)
    fused = tiny()
    fused.unet.fuse_qkv_projections()
    with pytest.raises(UsageError, match="fused"):
        turned(fused)
    with pytest.raises(UsageError, match="no denoiser"):
        turned(torch.nn.Linear(1, 1))


def test_the_networks_of_a_pipeline_are_one_module_as_long_as_they_are_the_same():
    pipe = tiny()
    box = editable(pipe)
    assert box is editable(pipe)
    assert [name for name, _ in box.named_children()] == ["unet", "text_encoder"]
    pipe.unet = copy.deepcopy(pipe.unet)
    assert editable(pipe) is not box
    assert editable(pipe)["unet"] is pipe.unet


def test_methods_of_other_subjects_are_refused(turned):
    with pytest.raises(UnknownNameError, match="takes concepts out"):
        forget(tiny(), remove="circle", method="strokefill")


def test_other_families_are_edited_through_what_reads_the_text(turned):
    xl, flux = tiny_xl(), tiny_flux()
    plan = turned(xl).plan
    assert plan.ops[0].up.shape == (64, 1)
    plan.apply(editable(xl))
    plan = turned(flux).plan
    assert plan.ops[0].layers == ("context_embedder",)
    bias = flux.transformer.context_embedder.bias.clone()
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    expected = flux.transformer.context_embedder(rows @ plan.ops[0].matrix.float().T)
    plan.apply(editable(flux))
    assert torch.allclose(flux.transformer.context_embedder(rows), expected, **NEAR)
    assert torch.equal(flux.transformer.context_embedder.bias, bias)
    size = {"height": 16, "width": 16, "num_inference_steps": 1, "output_type": "latent", "guidance_scale": 0.0}
    made = flux("a circle", **size, generator=torch.Generator().manual_seed(0)).images
    plan.undo(editable(flux))
    with TextMap.of(flux, [plan]).acting(flux):
        again = flux("a circle", **size, generator=torch.Generator().manual_seed(0)).images
    assert torch.allclose(again, made, **NEAR)


def test_a_baked_folder_is_an_ordinary_pipeline(turned, tmp_path):
    forgotten = turned(tiny())
    before = print_of(forgotten.pipe)
    forgotten.export(tmp_path / "baked")
    assert print_of(forgotten.pipe) == before
    plain = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "baked")
    assert torch.equal(noise_found(plain), noise_found(forgotten.apply()))
    assert print_of(open_pipeline(tmp_path / "baked")) == print_of(forgotten.pipe)


def test_a_lora_file_does_what_the_edits_do(turned, tmp_path):
    pipe = tiny()
    layers = list(cross_attention(pipe.unet))
    block = layers[0].removesuffix(".attn2.to_k")
    plans = [
        low_rank(pipe, f"unet.{layers[0]}"),  # under the map
        turned(pipe).plan.scaled(0.7),
        low_rank(pipe, f"unet.{layers[0]}", 3, seed=1),  # and over it
        low_rank(pipe, f"unet.{block}.ff.net.2"),
        low_rank(pipe, f"unet.{block.partition('.transformer_blocks')[0]}.proj_in"),  # a convolution
    ]
    export(pipe, plans, tmp_path / "lora", "lora")
    with edited(pipe, plans):
        expected = noise_found(pipe)
    other = tiny()
    other.load_lora_weights(tmp_path / "lora", weight_name="pytorch_lora_weights.safetensors")
    assert torch.allclose(noise_found(other), expected, **NEAR)
    assert not torch.allclose(noise_found(tiny()), expected, atol=1e-3)


def test_a_map_of_embeddings_does_what_the_edit_does(turned, tmp_path):
    pipe = tiny()
    plans = [turned(pipe).plan, turned(pipe, "ring", "star").plan]
    export(pipe, plans, tmp_path / "map", "map")
    with edited(pipe, plans):
        expected = noise_found(pipe)
        pictures = pipe("a red circle", latents=fixed_noise(1), num_inference_steps=2, output_type="pt").images
    text_map, plain = TextMap.load(tmp_path / "map"), noise_found(pipe)
    embeds = text_map(conditions(pipe, ["a red circle"] * 2))
    with torch.no_grad():
        assert torch.allclose(pipe.unet(fixed_noise(), 400, embeds).sample, expected, **NEAR)
    with text_map.acting(pipe):
        assert torch.allclose(noise_found(pipe), expected, **NEAR)
        again = pipe("a red circle", latents=fixed_noise(1), num_inference_steps=2, output_type="pt").images
    assert torch.allclose(again, pictures, **NEAR)
    assert torch.equal(noise_found(pipe), plain)
    sibling = tiny()
    with torch.no_grad():
        sibling.unet.conv_in.weight.mul_(2)
    with text_map.acting(sibling):
        pass
    with torch.no_grad():
        sibling.text_encoder.get_parameter("embeddings.token_embedding.weight").mul_(2)
    with pytest.raises(PlanError, match="another text encoder"), text_map.acting(sibling):
        pass


def test_what_is_no_map_or_of_no_low_rank_is_not_exported_as_such(turned, tmp_path):
    pipe = tiny()
    adapter = low_rank(pipe, "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    dense = Delta.add("unet.conv_in.bias", torch.ones(8))
    dense_plan = Plan.of(editable(pipe), [dense], whole=False)
    for plans, form in (([adapter], "map"), ([dense_plan], "map"), ([dense_plan], "lora"), ([], "map")):
        with pytest.raises(UsageError):
            export(pipe, plans, tmp_path / "out", form)
    with pytest.raises(UnknownNameError, match="onnx"):
        turned(pipe).export(tmp_path / "out", "onnx")
    assert list(tmp_path.glob("o*")) == []


def test_folders_that_hold_no_pipeline_are_refused(turned, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/model_index.json").write_text("{")
    for spec in (tmp_path / "empty", tmp_path / "broken"):
        with pytest.raises(WeightsError):
            turned(spec)
    for spec in ("no/such-model", "no such: model", tmp_path / "missing"):
        with pytest.raises(UsageError, match="not in the cache"):
            turned(spec)


def test_an_edit_of_nothing_is_refused_by_the_base_class():
    with pytest.raises(NotImplementedError):
        Eraser().plan(None, Concepts.of("circle"), Work())
    with pytest.raises(EffaceError, match="strength"):
        Plan.of(editable(tiny()), [], whole=False).scaled(-1)
