"""DeepEraser: its size, its arithmetic beside a plain form, its windows, its losses, its official names."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from efface.core.method import Step
from efface.parts.masks import Box
from efface.parts.nn.recurrent import SepConvGRU, sequence_loss
from efface.parts.nn.residual import instance_norm
from efface.parts.windows import crop, windows
from efface.pictures.deeperaser import EDGE, DeepEraser
from efface.verbs.convert import convert


def method(**params):
    return DeepEraser(**{**DeepEraser.small, **params})


def network(params):
    torch.manual_seed(0)
    return params.build().eval()


def picture(height=64, width=96, count=1):
    torch.manual_seed(1)
    mask = torch.zeros(count, 1, height, width)
    mask[..., 8:16, 8:24] = 1
    return torch.rand(count, 3, height, width), mask


def plain(net, x, mask, iterations):
    """Refine the whole picture with the equations of the paper, one convolution after another."""
    stride, width = net.method.stride, net.method.hidden
    first = F.pixel_unshuffle(x, stride)
    features = net.encoder(torch.cat([first, F.pixel_unshuffle(mask, stride)], 1))
    hidden, context, current, iterates = features[:, :width].tanh(), features[:, width:].relu(), first, []
    for _ in range(iterations):
        inputs = torch.cat([context, net.progress(current), current], 1)
        for z, r, q in (
            (net.gru.convz1, net.gru.convr1, net.gru.convq1),
            (net.gru.convz2, net.gru.convr2, net.gru.convq2),
        ):
            both = torch.cat([hidden, inputs], 1)
            update, reset = z(both).sigmoid(), r(both).sigmoid()
            candidate = q(torch.cat([reset * hidden, inputs], 1)).tanh()
            hidden = (1 - update) * hidden + update * candidate
        current = first + net.head(hidden)
        iterates.append(F.pixel_shuffle(current, stride))
    return iterates


@pytest.mark.parametrize(
    ("params", "low", "high"),
    [
        ({}, 1_438_512, 1_438_512),
        ({"stride": 4, "stem": 64, "encoder": (64, 64), "out_act": "none"}, 1_400_000, 1_600_000),
    ],
    ids=["published", "for a CPU"],
)
def test_number_of_parameters(params, low, high):
    with torch.device("meta"):
        net = DeepEraser(**params).build()
    assert low <= sum(p.numel() for p in net.parameters()) <= high


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_every_iterate_equals_the_plain_form(stride):
    net = network(method(stride=stride))
    x, mask = picture(count=2)
    with torch.no_grad():
        for ours, theirs in zip(net(x, mask, 3), plain(net, x, mask, 3), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(37, 53), (1, 40), (41, 3)])
def test_odd_sizes(height, width):
    params = method()
    x, mask = torch.rand(1, 3, height, width), torch.ones(1, 1, height, width)
    assert params.run(network(params), x, mask=mask).shape == x.shape


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("marks", [[(60, 64, 70, 74)], [(0, 3, 150, 160), (100, 110, 20, 60)], [(5, 115, 5, 155)]])
def test_windows_hold_what_the_whole_picture_would(stride, marks):
    params = method(stride=stride)
    net, (x, mask) = network(params), (torch.rand(2, 3, 120, 160), torch.zeros(2, 1, 120, 160))
    for top, bottom, left, right in marks:
        mask[0, :, top:bottom, left:right] = 1
    with torch.no_grad():
        whole = torch.stack(net(x, mask, 2)).clamp(0, 1)
    ours = params.run(net, x, mask=mask, stop_when=0, return_all=True)
    near = F.max_pool2d(mask, 2 * EDGE + 1, stride=1, padding=EDGE).expand_as(x).bool()
    torch.testing.assert_close(ours[:, near], whole[:, near], rtol=0, atol=1e-5)
    assert torch.equal(ours[-1, 1], x[1])  # nothing is marked there


def test_zeroed_head_returns_the_input():
    params = method()
    net, (x, mask) = network(params), picture()
    torch.nn.init.zeros_(net.head[2].weight)
    torch.nn.init.zeros_(net.head[2].bias)
    assert torch.equal(params.run(net, x, mask=mask), x)


def test_fewer_iterations_are_the_first_of_more():
    params = method(iterations=8)
    net, (x, mask) = network(params), picture()
    iterates = params.run(net, x, mask=mask, return_all=True, stop_when=0)
    assert iterates.shape == (8, *x.shape)
    for count in (1, 5):
        fewer = params.run(net, x, mask=mask, iterations=count, stop_when=0)
        near = mask.expand_as(x).bool()
        torch.testing.assert_close(fewer[near], iterates[count - 1][near], rtol=0, atol=1e-5)


def test_stops_once_a_window_is_still(monkeypatch):
    params = method(iterations=8)
    net, (x, mask) = network(params), picture()
    steps = []
    step = net._step
    monkeypatch.setattr(net, "_step", lambda *given: steps.append(1) or step(*given))
    exact = params.run(net, x, mask=mask, return_all=True, stop_when=0)
    change = (exact[1:] - exact[:-1]).abs().amax((1, 2, 3, 4))
    steps.clear()
    early = params.run(net, x, mask=mask, return_all=True, stop_when=change[2].item() * 1.01)
    assert 2 <= len(steps) <= 4
    assert all(torch.equal(early[k], early[len(steps) - 1]) for k in range(len(steps), 8))
    steps.clear()
    params.run(net, x, mask=mask, stop_when=1e-9)
    assert len(steps) == 8


def test_recomputing_leaves_the_gradients():
    x, mask = picture(24, 24)
    batch = {"picture": x, "mask": mask, "target": torch.rand_like(x)}
    gradients = []
    for recompute in (False, True):
        params = method(recompute=recompute, iterations=3)
        net = network(params).train()
        params.loss(net, batch, Step())["total"].backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    assert all(g is not None for g in gradients[0].values())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_loss_weighs_the_mask_and_later_iterates():
    class Constant(torch.nn.Module):
        def forward(self, x, mask, iterations):
            return [x + mask, x + 0.5 * mask]

    x, mask = picture(32, 32)
    batch = {"picture": x, "mask": mask, "target": x}
    share = mask.mean().item()
    for weight in (0.0, 20.0):
        losses = method(mask_weight=weight, loss_decay=0.5).loss(Constant(), batch, Step())
        inside = share * (1 + weight) / (1 + share * weight)
        assert losses["first"].item() == pytest.approx(inside)
        assert losses["total"].item() == pytest.approx(0.5 * inside + 0.5 * inside)
    assert sequence_loss([torch.tensor(1.0)] * 3, 0.5).item() == pytest.approx(1.75)


@pytest.mark.parametrize(
    ("ramp", "counts"), [(0.0, [4] * 8), (0.5, [1, 2, 3, 4, 4, 4, 4, 4]), (1.0, [1, 1, 2, 2, 3, 3, 4, 4])]
)
def test_iterations_rise_in_training(ramp, counts):
    class Counting(torch.nn.Module):
        def forward(self, x, mask, iterations):
            seen.append(iterations)
            return [x]

    seen, (x, mask) = [], picture(32, 32)
    for step in range(8):
        method(iterations=4, ramp=ramp).loss(
            Counting(), {"picture": x, "mask": mask, "target": x}, Step(step=step, total=8)
        )
    assert seen == counts


def test_result_is_a_picture_and_iterates_are_not_clamped():
    params = method(out_act="none")
    net, (x, mask) = network(params), picture()
    with torch.no_grad():
        net.head[2].bias.fill_(3.0)
        assert net(x, mask, 1)[0].max() > 1
    out = params.run(net, x, mask=torch.ones_like(mask))
    assert out.min() >= 0
    assert out.max() <= 1


def test_darkening_is_damped_by_the_published_activation_alone():
    x, mask = picture()
    changes = {}
    for act in ("lrelu0.2", "none"):
        net = network(method(out_act=act))
        with torch.no_grad():
            net.head[2].weight.zero_()
            net.head[2].bias.fill_(-0.5)
            changes[act] = (net(x, mask, 1)[0] - x).mean().item()
    assert changes == pytest.approx({"lrelu0.2": -0.1, "none": -0.5}, abs=1e-6)


def test_gru_reach_is_what_it_says():
    torch.manual_seed(0)
    gru = SepConvGRU(4, 2, 3)
    hidden, moving, static = torch.randn(1, 4, 21, 21), torch.randn(1, 3, 21, 21), torch.randn(1, 2, 21, 21)
    with torch.no_grad():
        terms = gru.static_terms(static)
        before = gru(hidden, moving, terms)
        moving[..., 10, 10] += 1
        hidden[..., 10, 10] += 1
        rows, columns = (gru(hidden, moving, terms) - before).abs().amax((0, 1)).nonzero(as_tuple=True)
    assert max((rows - 10).abs().max(), (columns - 10).abs().max()) == SepConvGRU.reach


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_instance_norm(dtype, tolerance):
    x = (3 * torch.randn(2, 5, 150, 170) + 2).contiguous(memory_format=torch.channels_last)
    ours = instance_norm(x.to(dtype))
    torch.testing.assert_close(ours.float(), F.instance_norm(x), rtol=tolerance, atol=tolerance)
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([], []),
        ([(5, 5, 4, 2)], [(3, 3, 8, 6)]),
        ([(0, 0, 1, 1), (90, 90, 10, 10)], [(0, 0, 3, 3), (88, 88, 12, 12)]),
        ([(10, 10, 2, 2), (15, 10, 2, 2)], [(8, 8, 11, 6)]),
        ([(10, 10, 2, 2), (30, 10, 2, 2)], [(8, 8, 26, 6)]),
    ],
    ids=["none", "one", "two corners", "touching once grown", "cheaper together"],
)
def test_windows(marks, expected):
    mask = np.zeros((100, 100), bool)
    for mark in marks:
        mask[Box(*mark).slices] = True
    assert windows(mask, edge=2, reach=10, iterations=4) == [Box(*box) for box in expected]


def test_crops_of_crops():
    x, region = torch.arange(100).view(10, 10), Box(3, 2, 6, 6)
    assert torch.equal(crop(crop(x, region), Box(5, 4, 3, 2), region), x[4:6, 5:8])


def official(key):
    """Return what the published code calls our ``key``."""
    parts = key.split(".")
    if parts[0] == "encoder":
        if parts[1] == "stages":
            parts[1:3] = [f"layer{int(parts[2]) + 1}"]
        return ".".join(["fnet", *parts[1:]]).replace("skip", "downsample.0")
    if parts[0] == "progress":
        return f"update_block.encoder.convf{int(parts[1]) // 2 + 1}.{parts[2]}"
    if parts[0] == "head":
        return f"update_block.pre_head.conv{int(parts[1]) // 2 + 1}.{parts[2]}"
    return f"update_block.{key}"


def test_official_checkpoints_convert(tmp_path):
    from safetensors.torch import load_file

    net = network(DeepEraser())
    names = {official(key) for key in net.state_dict()}
    assert {
        "fnet.conv1.weight",
        "fnet.layer1.0.conv1.weight",
        "fnet.layer6.0.downsample.0.bias",
        "update_block.encoder.convf2.weight",
        "update_block.gru.convq2.bias",
        "update_block.pre_head.conv2.weight",
    } <= names
    torch.save({f"module.{official(key)}": value for key, value in net.state_dict().items()}, tmp_path / "official.pth")
    folder = convert(tmp_path / "official.pth", method="deeperaser", out=tmp_path / "converted")
    converted = load_file(folder / "weights.safetensors")
    assert converted.keys() == net.state_dict().keys()
    assert all(torch.equal(converted[key], value) for key, value in net.state_dict().items())
