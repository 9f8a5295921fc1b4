"""Classifiers: as many parameters as their papers say, the names others know, and nothing that depends on the size."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from efface.errors import UsageError
from efface.parts.nn.classifiers import conv246, convnet, lenet_300_100, mlp, mobilenet_v1, vgg19_bn
from efface.parts.nn.modes import mode
from efface.parts.nn.resnets import resnet50, resnet_cifar, wide_resnet

SMALL, LARGE = (3, 32, 32), (3, 224, 224)
pad = partial(resnet_cifar, shortcut="pad")


def prunable(net):
    return sum(p.numel() for p in net.parameters() if p.ndim >= 2)


@pytest.mark.parametrize(
    ("build", "shape", "classes", "parameters"),
    [
        (lenet_300_100, (1, 28, 28), 10, 266_610),
        (convnet, SMALL, 10, 72_954),
        (partial(convnet, 8, depth=1, channels=1, classes=4), (1, 17, 9), 4, 6_076),
        (partial(convnet, separable=True), SMALL, 10, 11_226),
        (partial(conv246, 2), SMALL, 10, 4_301_642),
        (partial(conv246, 4), SMALL, 10, 2_425_930),
        (partial(conv246, 6), SMALL, 10, 2_262_602),
        (partial(conv246, 4, side=16, channels=1), (1, 16, 16), 10, 851_914),
        (vgg19_bn, SMALL, 10, 20_035_018),
        (mobilenet_v1, LARGE, 1000, 4_231_976),
        (partial(resnet_cifar, 8), SMALL, 10, 78_042),
        (resnet_cifar, SMALL, 10, 272_474),
        (pad, SMALL, 10, 269_722),
        (partial(pad, 32, 32), SMALL, 10, 1_849_898),
        (partial(pad, 56), SMALL, 10, 853_018),
        (partial(pad, 110), SMALL, 10, 1_727_962),
        (resnet50, LARGE, 1000, 25_557_032),
        (partial(resnet50, widen=2), LARGE, 1000, 68_883_240),
        (partial(resnet50, large=False, classes=10), SMALL, 10, 23_520_842),
        (wide_resnet, SMALL, 10, 23_354_842),
    ],
)
def test_parameters_and_logits(build, shape, classes, parameters):
    with torch.device("meta"):
        net = build()
        assert net(torch.empty(2, *shape)).shape == (2, classes)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_the_small_convnet_has_the_weights_that_its_figures_are_told_for():
    assert prunable(convnet()) == 72_496


def test_resnet50_has_the_names_of_torchvision():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in resnet50().state_dict().items()}
    assert len(shapes) == 320
    known = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_mean": (64,),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.num_batches_tracked": (),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer3.5.bn3.bias": (1024,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "fc.weight": (1000, 2048),
    }
    assert known.items() <= shapes.items()
    assert "layer1.1.downsample.0.weight" not in shapes


@pytest.mark.parametrize("build", [lenet_300_100, convnet, partial(resnet_cifar, 8), partial(wide_resnet, 10, 1)])
def test_first_weights_come_from_the_current_generator_and_keep_the_variance(build):
    def drawn(seed):
        torch.manual_seed(seed)
        return build()

    a, b, c = (drawn(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    for name, weight in a.items():
        if weight.ndim >= 2:
            assert not torch.equal(weight, c[name])
            assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.25)
        elif name.endswith("bias"):
            assert not weight.any()


@pytest.mark.parametrize(
    "build", [convnet, partial(convnet, separable=True), partial(pad, 8), partial(wide_resnet, 10, 1)]
)
def test_every_weight_learns(build):
    net = build()
    net(torch.rand(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_activations_are_modules_that_hooks_can_see():
    """Each layer of the perceptron and each convolution but a block's shortcut is followed by a ReLU module."""
    seen = []
    for net in (mlp((16, 8, 8, 3)), resnet_cifar(8, 4)):
        for module in net.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(lambda *_: seen.append(1))
        net(torch.rand(2, 1, 4, 4) if isinstance(net, nn.Sequential) else torch.rand(2, 3, 8, 8))
    assert len(seen) == 2 + 7


def test_zeros_of_the_short_cut_lie_around_its_channels():
    block = pad(8, 4).layer2[0]
    x = torch.rand(1, 4, 6, 6)
    assert torch.equal(
        block.downsample(x), torch.cat([x.new_zeros(1, 2, 3, 3), x[..., ::2, ::2], x.new_zeros(1, 2, 3, 3)], 1)
    )


@pytest.mark.parametrize(("build", "depth"), [(resnet_cifar, 18), (resnet_cifar, 2), (wide_resnet, 26)])
def test_depths_that_do_not_exist(build, depth):
    with pytest.raises(UsageError, match="Take 6n"):
        build(depth)


def test_mode_gives_every_module_its_own_back():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3)))
    net[1].eval()
    before = [module.training for module in net.modules()]
    for training in (True, False):
        with mode(net, training=training):
            assert {module.training for module in net.modules()} == {training}
        assert [module.training for module in net.modules()] == before
