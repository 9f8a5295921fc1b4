"""The maths of STE: its space of styles, rewards, losses, networks, and the text that it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from efface.core.method import Step
from efface.errors import DataError, UnknownNameError, UsageError, WeightsError
from efface.parts.data.boxed import MOST, BoxedPictures, HiddenStyle, read_boxes, text_mask
from efface.parts.losses import perceptual
from efface.parts.losses.dice import dice
from efface.parts.losses.triplet import triplet_erasure
from efface.parts.nn import spectral
from efface.parts.nn.discriminator import TwoTowers, hinge
from efface.parts.nn.erasenet import EraseNet, MaskDecoder
from efface.parts.nn.reinforce import Controller, reinforce
from efface.parts.text.copy import copy_text, letters
from efface.parts.text.render import draw
from efface.parts.text.space import DECISIONS, NAMES, Context, StyleSpace
from efface.parts.text.style import BLACK, WHITE, Style
from efface.parts.text.synth import TextSynth, difference_mask, free_spot, palette
from efface.pictures.ste import Ste, difficulty_reward
from efface.seeds import numpy_generator, torch_generator

SPACE = StyleSpace()
SWITCHES = sorted({d.parent for d in DECISIONS if d.parent})


def action(**options):
    return np.asarray([options.get(d.name, d.default) for d in DECISIONS])


def textured(height=128, width=128, seed=0):
    coarse = numpy_generator(seed, "texture").random((height // 8, width // 8, 3)).astype(np.float32)
    return np.kron(coarse * 0.4 + 0.3, np.ones((8, 8, 1), np.float32))


def photos(count=3):
    return [np.round(textured(160, 160, seed) * 255).astype(np.uint8) for seed in range(count)]


def below(switch):
    direct = [d.name for d in DECISIONS if d.parent == switch]
    return {name for child in direct for name in {child, *below(child)}}


# Space of styles


def test_there_are_18_decisions_with_68_options():
    assert len(SPACE.sizes) == 18
    assert sum(SPACE.sizes) == 68


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_that_is_off_silences_all_below_it(switch):
    on = dict.fromkeys(SWITCHES, 1)
    counts = SPACE.counts(np.stack([action(**on), action(**on | {switch: 0})]))
    assert counts[0].all()
    assert {n for n, c in zip(NAMES, counts[1], strict=True) if not c} == below(switch)


def test_stroke_width_is_silent_without_stroke():
    counts = SPACE.counts(action(stroke=0, shadow=1)[None])[0]
    assert [counts[NAMES.index(n)] for n in ("stroke_width", "stroke_colour", "direction")] == [0, 0, 1]


def test_a_smaller_space_keeps_defaults_and_mask_rule():
    space = StyleSpace(names=("stroke_width", "stroke"))
    assert space.sizes == (2, 4)
    assert space.counts(np.asarray([[0, 3], [1, 3]])).tolist() == [[1, 0], [1, 1]]
    assert space.options(np.asarray([1, 3]))["source"] == 1


@pytest.mark.parametrize(("names", "error"), [(("blurr",), UnknownNameError), (("alpha",), UsageError)])
def test_bad_spaces_are_refused(names, error):
    with pytest.raises(error):
        StyleSpace(names=names)


def test_actions_become_styles():
    context = Context(40, [(0.9, 0.9, 0.9), (0.1, 0.1, 0.1)], (0.2, 0.4, 0.6))
    options = action(colour=2, stroke=1, stroke_width=1, shadow=1, direction=3, alpha=4, blur=2, italic=1)
    style = SPACE.style(options, context, numpy_generator(0, "style"))
    assert (style.size, style.outline, style.colour) == (40, 5, (0.1, 0.1, 0.1))
    assert style.outline_colour == WHITE
    assert style.shadow is not None
    assert min(style.shadow) > 0, "south-east"
    assert (style.shadow_colour, style.shadow_alpha, style.shadow_blur) == (BLACK, 0.3, 1.5)
    assert style.italic > 0
    plain = SPACE.style(options, Context(19, context.palette, context.background), numpy_generator(0, "style"))
    assert plain.outline == 0
    assert plain.shadow is None


# Policy


def test_a_bandit_is_learned():
    torch.manual_seed(0)
    policy = Controller([3], feature=None)
    optimiser, generator = torch.optim.Adam(policy.parameters(), lr=0.05), torch_generator(0, "bandit")
    for _ in range(25):
        chosen = policy(32, generator=generator)
        loss = reinforce(chosen, (chosen.actions[:, 0] == 2).float(), torch.ones(32, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (policy(200, generator=generator).actions == 2).float().mean() > 0.9


def test_silent_decisions_get_no_gradient():
    policy = Controller([2, 3], feature=None)
    chosen = policy(4, generator=torch_generator(0, "x"))
    reinforce(chosen, torch.ones(4), torch.tensor([[1.0, 0.0]] * 4)).backward()
    assert policy.heads[0].weight.grad.abs().sum() > 0
    assert policy.heads[1].weight.grad.abs().sum() == 0


def test_a_policy_can_depend_on_features():
    policy = Controller([4, 4], feature=10)
    features = torch.randn(1, 10) * 50
    given, none = (policy(1, generator=torch_generator(0, "x"), features=f).log_probs for f in (features, None))
    assert given.shape == (1, 2)
    assert not torch.equal(given, none)


def test_difficulty_is_rewarded_most_at_twice_the_mean():
    mean = torch.tensor(0.03)
    reward = difficulty_reward(torch.linspace(0, 0.2, 2001), mean)
    assert reward.argmax() == 600
    assert reward.max() == pytest.approx(5, abs=1e-4)
    wild = difficulty_reward(torch.tensor(255.0), mean)
    assert wild == pytest.approx(5 * (2 - math.e**3))


# Losses


def test_dice():
    a = torch.tensor([[0.0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    b = torch.tensor([[0.0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    assert dice(a, b).tolist() == pytest.approx([0, 1, 1], abs=1e-3)
    assert dice(a[:1] / 2, b[:1]).item() == pytest.approx(1 - 2 / 2.5, abs=1e-3)


def test_triplet_loss():
    truth, coarse = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    assert triplet_erasure(truth, truth, truth) == 0
    assert triplet_erasure(truth, truth, coarse) == 0, "the positive is the truth"
    assert triplet_erasure(coarse, truth, coarse) == pytest.approx(1, abs=1e-5)
    assert triplet_erasure(coarse / 2, truth, coarse) == pytest.approx(0.25 / (0.25 + 50 * 0.0625), rel=1e-4)


def test_triplet_gradient_leaves_the_coarse_picture_alone():
    refined, coarse = (torch.full((1, 3, 4, 4), v, requires_grad=True) for v in (0.3, 0.6))
    triplet_erasure(refined, torch.zeros(1, 3, 4, 4), coarse).backward()
    assert coarse.grad is None
    assert (refined.grad > 0).all(), "towards the truth and away from the coarse picture"


def test_gram_is_computed_in_float32():
    maps = torch.full((1, 2, 4, 4), 1e-4)
    expected = torch.full((1, 2, 2), 1e-8 * 16 / 32)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.float16):
            gram = perceptual.gram(maps.to(dtype))
            assert gram.dtype == torch.float32
            torch.testing.assert_close(gram, expected, rtol=1e-2, atol=0)


def test_random_features_are_seeded_and_frozen():
    x = torch.rand(1, 3, 32, 32)
    one, two, other = (perceptual.random_features(seed)(x) for seed in (0, 0, 1))
    assert [tuple(m.shape) for m in one] == [(1, 16, 16, 16), (1, 32, 8, 8), (1, 64, 4, 4)]
    assert all(map(torch.equal, one, two))
    assert not torch.equal(one[0], other[0])
    assert perceptual.perceptual(one, two) == perceptual.style(one, two) == 0
    assert perceptual.perceptual(one, other) > 0


def test_vgg_weights_of_the_user_are_taken(tmp_path):
    from safetensors.torch import save_file

    net = perceptual.Features()
    names = [f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14)]
    state = {
        f"{n}.{k}": getattr(conv, k) for n, conv in zip(names, net.layers, strict=True) for k in ("weight", "bias")
    }
    save_file(state, tmp_path / "vgg.safetensors")
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(perceptual.vgg16_features(tmp_path / "vgg.safetensors")(x)[2], net(x)[2])
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for bad in ("other.safetensors", "missing.safetensors"):
        with pytest.raises(WeightsError, match="not the weights of a VGG-16"):
            perceptual.vgg16_features(tmp_path / bad)


# Networks


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(scope="module")
def eraser():
    with torch.device("meta"):
        return EraseNet()


def test_networks_have_the_published_sizes(eraser):
    with torch.device("meta"):
        assert parameters(eraser) == 19_737_615
        assert parameters(eraser.refine) == 1_713_059
        assert parameters(eraser.mark) == 1_954_595
        assert parameters(TwoTowers()) == 7_618_945
        assert parameters(MaskDecoder(32, joined=False)) == 1_171_235
        assert parameters(Controller(SPACE.sizes)) == 94_676


def test_shapes_at_full_size(eraser):
    with torch.device("meta"):
        x = torch.empty(1, 3, 128, 128)
        skips, feature = eraser.encode(x)
        out = eraser(x)
        assert MaskDecoder(32, joined=False)(feature).shape == (1, 3, 128, 128)
    assert [tuple(s.shape[1:]) for s in skips] == [(32, 64, 64), (64, 32, 32), (128, 16, 16), (256, 8, 8)]
    assert {n: tuple(t.shape[1:]) for n, t in out._asdict().items()} == {
        "refined": (3, 128, 128),
        "coarse": (3, 128, 128),
        "half": (3, 64, 64),
        "quarter": (3, 32, 32),
        "mask": (3, 128, 128),
        "feature": (256, 8, 8),
    }


@pytest.mark.parametrize(("make", "axis"), [(spectral.conv, 0), (spectral.up, 1)])
def test_the_largest_singular_value_becomes_one(make, axis):
    layer = make(6, 10)[0]
    for _ in range(300):  # close singular values take long to tell apart
        layer.weight  # noqa: B018  each use in training is a power iteration
    matrix = layer.weight.detach().transpose(0, axis).flatten(1)
    assert torch.linalg.matrix_norm(matrix, 2) == pytest.approx(1, abs=1e-3)
    u = layer.eval().parametrizations.weight[0].u.clone()
    assert torch.equal(layer.weight, layer.weight)
    assert torch.equal(layer.parametrizations.weight[0].u, u)


@pytest.mark.parametrize("size", [(8, 8), (32, 48), (64, 64), (130, 70), (256, 256)])
def test_the_discriminator_takes_any_size(size):
    net = TwoTowers(2)
    x, mask = torch.rand(2, 3, *size), torch.ones(2, 1, *size)
    assert net(x, mask).shape == (2,)
    assert not torch.equal(net(x, mask), net(x, 0 * mask))


def test_hinge():
    assert hinge(torch.tensor([2.0]), torch.tensor([-2.0])) == 0
    assert hinge(torch.tensor([0.0, 2.0]), torch.tensor([1.0])) == 2.5


# Text that is written


@pytest.fixture(scope="module")
def with_text():
    drawn = draw(textured(), ["REAL"], Style(size=36, colour=BLACK, outline=1, spacing=4), font=None, at=(64, 30))
    assert drawn is not None
    box = np.concatenate([drawn.box.min(0), drawn.box.max(0)]).astype(np.int64)
    return drawn.picture, box, text_mask(box[None], 128, 128)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("source", [0, 1])
def test_text_changes_pixels_in_its_mask_alone(with_text, source, seed):
    picture, box, taken = with_text
    generator = numpy_generator(seed, "write")
    chosen = SPACE.random(1, generator)[0]
    chosen[[NAMES.index("source"), NAMES.index("poisson")]] = source, 0  # blended gradients may be too faint to count
    written = TextSynth(StyleSpace(scale=0.25)).draw(picture, taken, box[None], chosen, generator)
    assert written is not None
    out, mask = written
    assert mask.any()
    assert not (mask & taken).any()
    np.testing.assert_array_equal(out[~mask], picture[~mask])
    assert (np.abs(out - picture).max(2) > 0)[mask].any()


def test_copied_letters_leave_their_source_alone(with_text):
    picture, box, _ = with_text
    x0, y0, x1, y1 = box
    shape = letters(picture, box)
    dark = picture[y0:y1, x0:x1].mean(2) < 0.1
    assert (shape & dark).sum() > 0.5 * dark.sum(), "letters are found"
    out = copy_text(picture, box, shape, (5, 70))
    np.testing.assert_array_equal(out[y0:y1, x0:x1], picture[y0:y1, x0:x1])
    np.testing.assert_array_equal(out[70 : 70 + y1 - y0, 5 : 5 + x1 - x0][shape], picture[y0:y1, x0:x1][shape])
    out[70 : 70 + y1 - y0, 5 : 5 + x1 - x0][shape] = picture[70 : 70 + y1 - y0, 5 : 5 + x1 - x0][shape]
    np.testing.assert_array_equal(out, picture)


def test_where_there_is_no_room_nothing_is_written(with_text):
    picture, box, _ = with_text
    full = np.ones((128, 128), bool)
    assert TextSynth(SPACE).draw(picture, full, box[None], action(), numpy_generator(0, "full")) is None


def test_difference_mask_ignores_specks_and_small_changes():
    before = np.full((40, 40, 3), 0.5, np.float32)
    after = before.copy()
    after[5, 5] = 1
    after[30:36] += 0.05
    assert not difference_mask(before, after).any()
    after[10:20, 12:15] = after[10:20, 22:25] = 0.9
    expected = np.zeros((40, 40), bool)
    expected[9:21, 11:16] = expected[9:21, 21:26] = True
    np.testing.assert_array_equal(difference_mask(before, after), expected)


def test_the_nearest_free_spot_is_found():
    taken = np.zeros((20, 30), bool)
    taken[:, :10] = True
    assert free_spot(taken, (5, 4), (0, 10)) == (10, 8)
    assert free_spot(taken, (20, 20), (0, 0)) == (10, 0)
    assert free_spot(taken, (21, 4), (0, 0)) is None
    assert free_spot(taken, (5, 21), (0, 0)) is None


def test_palette_begins_with_what_stands_out():
    picture = np.full((10, 10, 3), 0.5, np.float32)
    picture[:2], picture[2:5] = 1, 0.3
    assert palette(picture, (0.5, 0.5, 0.5))[0] == (1, 1, 1)
    assert len(palette(np.zeros((4, 4, 3), np.float32), BLACK)) == 1


# Pictures with boxes


@pytest.fixture
def folder(tmp_path):
    for i, photo in enumerate(photos()):
        Image.fromarray(photo).save(tmp_path / f"{i}.png")
    (tmp_path / "boxes.json").write_text(json.dumps({f"{i}.png": [[20, 30, 90, 50]] for i in range(3)}))
    return tmp_path


def test_crops_carry_their_boxes(folder):
    source = BoxedPictures(folder=folder, boxes=folder / "boxes.json", size=96)
    batch = source.batch(0, 0, 8)
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "picture": (8, 3, 96, 96),
        "mask": (8, 1, 96, 96),
        "boxes": (8, MOST, 4),
    }
    for mask, boxes in zip(batch["mask"], batch["boxes"].numpy(), strict=True):
        np.testing.assert_array_equal(mask[0] > 0, text_mask(boxes[boxes[:, 0] >= 0], 96, 96))
    assert (batch["boxes"][:, 0, 0] >= 0).any()
    assert all(torch.equal(batch[k], v) for k, v in source.batch(0, 0, 8).items())
    assert not torch.equal(batch["picture"], source.batch(0, 1, 8)["picture"])


@pytest.mark.parametrize(
    ("boxes", "size", "what"),
    [
        ({"0.png": []}, 96, "no entry for 2 pictures"),
        ({f"{i}.png": [[0, 0, 0, 5]] for i in range(3)}, 96, "box is empty"),
        ({f"{i}.png": [[0, 0, 5]] for i in range(3)}, 96, "not a file of boxes"),
        ([1, 2], 96, "not a file of boxes"),
        ({f"{i}.png": [[150, 0, 170, 5]] for i in range(3)}, 96, "leave the picture of 160x160"),
        ({f"{i}.png": [[0, 0, 160, 158]] for i in range(3)}, 96, "leaves no room"),
        ({f"{i}.png": [] for i in range(3)}, 200, "160x160 is smaller than 200"),
    ],
)
def test_bad_boxes_are_refused(folder, boxes, size, what):
    (folder / "boxes.json").write_text(json.dumps(boxes))
    with pytest.raises(DataError, match=what):
        BoxedPictures(folder=folder, boxes=folder / "boxes.json", size=size).batch(0, 0, 1)


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(DataError, match="no pictures"):
        BoxedPictures(folder=tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        BoxedPictures(folder=tmp_path / "none")
    with pytest.raises(DataError, match="not a file of boxes"):
        read_boxes(Path(tmp_path / "none.json"))


def test_a_hidden_style_changes_its_box_alone():
    source = HiddenStyle(photos=photos(), options={"stroke": 1, "shadow": 1}, scale=0.3)
    batch = source.batch(0, 0, 4)
    outside = (batch["mask"] == 0).expand_as(batch["picture"])
    assert torch.equal(batch["picture"][outside], batch["target"][outside])
    assert (batch["picture"] != batch["target"]).flatten(1).any(1).all()


# The method


@pytest.fixture(scope="module")
def batch():
    return HiddenStyle(photos=photos(), options={"stroke": 1}, scale=0.25).batch(0, 0, 3)


def test_prepared_pictures_are_their_own_truth(batch):
    method = Ste(**Ste.small)
    torch.manual_seed(0)
    net = method.build()
    ready = method.prepare(net, batch, Step())
    inside = (ready["mask"] > 0).expand_as(ready["picture"])
    assert torch.equal(ready["picture"][~inside], ready["target"][~inside])
    assert torch.equal(ready["target"], batch["picture"][ready["row"]]), "the truth holds the real text"
    assert (ready["mask"] * ready["real"]).sum() == 0
    again = method.prepare(net, batch, Step())
    assert all(torch.equal(ready[k], again[k]) for k in ready)


def test_pictures_without_room_are_left_out(batch):
    method = Ste(**Ste.small | {"synthesis": "plain"})
    some = {k: v.clone() for k, v in batch.items()}
    some["mask"][1] = 1
    assert method.prepare(method.build(), some, Step())["row"].tolist() == [0, 2]
    some["mask"][:] = 1
    with pytest.raises(DataError, match="has room for text"):
        method.prepare(method.build(), some, Step())


def test_phases_follow_the_hyper_parameters():
    assert list(Ste().phases()) == ["eraser", "discriminator", "detector", "policy"]
    assert list(Ste(synthesis="random", adversarial=0.0).phases()) == ["eraser"]
    assert (Ste().phases()["policy"].every, Ste().phases()["policy"].updates) == (10, 3)


def test_the_triplet_loss_can_be_switched_off(batch):
    losses = {}
    for use in (True, False):
        method = Ste(**Ste.small | {"use_triplet": use, "synthesis": "plain"})
        torch.manual_seed(0)
        net = method.build()
        losses[use] = method.loss(net, method.prepare(net, batch, Step()), Step())
    assert losses[True].keys() - losses[False].keys() == {"triplet"}
    torch.testing.assert_close(losses[True]["total"], losses[False]["total"] + losses[True]["triplet"])


def test_the_policy_and_its_means_are_in_the_checkpoint(batch):
    method = Ste(**Ste.small)
    torch.manual_seed(0)
    net = method.build()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    phase = method.phases()["policy"]
    losses = phase.loss(net, method.prepare(net, batch, Step()), Step())
    losses["total"].backward()
    torch.optim.Adam(phase.parameters(net), lr=1e-2).step()
    state = net.state_dict()
    changed = {k for k in state if not torch.equal(state[k], before[k])}
    assert {"error_mean", "miss_mean", "updates", "policy.lstm.weight_ih_l0"} <= changed
    assert not any(k.startswith("eraser.") for k in changed), (
        "trying styles changes nothing else, running means included"
    )
    assert net.training
    other = method.build()
    other.load_state_dict(state)
    ready, same = (method.prepare(n, batch, Step(step=1)) for n in (net, other))
    assert torch.equal(ready["picture"], same["picture"])


def test_erasing_stays_in_the_mask_and_works_without():
    method = Ste(**Ste.small)
    net = method.build().eval()
    x, mask = torch.rand(1, 3, 45, 70), torch.zeros(1, 1, 45, 70)
    mask[..., 10:20, 10:30] = 1
    with torch.inference_mode():
        out, found = method.run(net, x, mask=mask), method.run(net, x)
    assert out.shape == found.shape == x.shape
    outside = (mask == 0).expand_as(x)
    assert torch.equal(out[outside], x[outside])
    assert not torch.equal(out, x)
