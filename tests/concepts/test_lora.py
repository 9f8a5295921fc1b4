"""Adapters act while they are attached, leave nothing behind, add up, and survive files."""

import contextlib

import diffusers
import pytest
import torch
from tiny import tiny
from torch import nn

from efface.errors import UsageError, WeightsError
from efface.parts.concepts.lora import (
    adapters_of,
    attached,
    from_kohya,
    hosts,
    new_adapters,
    parameters,
    stacked,
    to_kohya,
    to_peft,
)
from efface.parts.concepts.slots import encode


@pytest.fixture
def pipe():
    return tiny()


def drawn(net, seed, rank=1, **more):
    made = new_adapters(hosts(net), rank, torch.Generator().manual_seed(seed), **more)
    for own in made.values():
        nn.init.normal_(own.up, std=0.1, generator=torch.Generator().manual_seed(seed))
    return made


def factors(made):
    return {f"unet.{name}": own.factors() for name, own in made.items()}


@torch.no_grad()
def output(pipe):
    x = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipe.unet(x, 500, encode(pipe, ["circle"]).embeds).sample


def test_new_adapters_change_nothing_and_leave_nothing(pipe):
    plain, state = output(pipe), {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with attached(pipe.unet, new_adapters(hosts(pipe.unet), 1, torch.Generator())):
        assert torch.equal(output(pipe), plain)
    with contextlib.suppress(RuntimeError), attached(pipe.unet, drawn(pipe.unet, 1)):
        assert not torch.equal(output(pipe), plain)
        raise RuntimeError
    assert torch.equal(output(pipe), plain)
    assert pipe.unet.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in pipe.unet.state_dict().items())
    assert not any(module._forward_hooks for module in pipe.unet.modules())


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_attached_equals_merged(pipe, alpha):
    made = drawn(pipe.unet, 1, rank=2, alpha=alpha)
    with attached(pipe.unet, made, strength=0.7):
        acting = output(pipe)
    for name, own in made.items():
        up, down, scale = own.factors()
        weight = pipe.unet.get_submodule(name).weight.data
        weight += 0.7 * scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    torch.testing.assert_close(acting, output(pipe), rtol=1e-4, atol=1e-5)


def test_convolutions_of_any_kernel_are_hosts():
    net = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, groups=3))
    found = hosts(net, inside=("Sequential",))
    assert found.keys() == {"0"}
    made = new_adapters(found, 2, torch.Generator())
    nn.init.normal_(made["0"].up)
    x = torch.randn(1, 4, 9, 9)
    with attached(net, made):
        acting = net[0](x)
    up, down, _ = made["0"].factors()
    net[0].weight.data += (up.flatten(1) @ down.flatten(1)).view(net[0].weight.shape)
    torch.testing.assert_close(acting, net[0](x))


def test_a_stack_is_the_sum_of_its_adapters(pipe):
    one, two = drawn(pipe.unet, 1), drawn(pipe.unet, 2, rank=2, alpha=1.0)
    two.pop(next(iter(two)))
    with attached(pipe.unet, one, 0.3), attached(pipe.unet, two, -2.0):
        expected = output(pipe)
    with attached(pipe.unet, stacked([one, two], [0.3, -2.0])):
        torch.testing.assert_close(output(pipe), expected, rtol=1e-4, atol=1e-5)


def test_kohya_files_come_back_as_they_were(pipe):
    made = drawn(pipe.unet, 1, rank=2, alpha=0.5)
    tensors = to_kohya(factors(made))
    assert len(tensors) == 3 * len(made)
    assert all(key.startswith("lora_unet_") and key.count(".") <= 2 for key in tensors)
    back = from_kohya(tensors, nn.ModuleDict({"unet": pipe.unet}))
    for name, (up, down, scale) in factors(made).items():
        assert torch.equal(back[name][0], up)
        assert torch.equal(back[name][1], down)
        assert back[name][2] == pytest.approx(scale)
    again = adapters_of(nn.ModuleDict({"unet": pipe.unet}), back)
    with attached(nn.ModuleDict({"unet": pipe.unet}), again):
        acting = output(pipe)
    with attached(pipe.unet, made):
        assert torch.equal(acting, output(pipe))


def test_diffusers_reads_the_export(pipe):
    made = drawn(pipe.unet, 1, rank=2, alpha=0.5)
    with attached(pipe.unet, made):
        expected = output(pipe)
    pipe.load_lora_weights(to_peft(factors(made)))
    torch.testing.assert_close(output(pipe), expected, rtol=1e-4, atol=1e-5)


def test_files_of_other_models_are_refused_by_name(pipe):
    box = nn.ModuleDict({"unet": pipe.unet})
    tensors = to_kohya(factors(drawn(pipe.unet, 1)))
    first = next(iter(tensors)).partition(".")[0]
    with pytest.raises(WeightsError, match="1 layers are missing: lora_unet_elsewhere"):
        from_kohya({**tensors, "lora_unet_elsewhere.alpha": torch.ones(())}, box)
    with pytest.raises(WeightsError, match=f"{first}: is no pair"):
        from_kohya({key: value for key, value in tensors.items() if key != f"{first}.lora_up.weight"}, box)
    with pytest.raises(WeightsError, match="layers are missing: up"):
        adapters_of(box, {"up": (torch.ones(1, 1), torch.ones(1, 1), 1.0)})
    name = f"unet.{next(iter(hosts(pipe.unet)))}"
    with pytest.raises(WeightsError, match="has the shape"):
        adapters_of(box, {name: (torch.ones(3, 1), torch.ones(1, 3), 1.0)})


def test_hosts_are_chosen_by_class_and_name(pipe):
    every, keys = hosts(pipe.unet), hosts(pipe.unet, match=r"attn2\.to_[kv]$")
    assert keys.keys() == {name for name in every if name.endswith(("attn2.to_k", "attn2.to_v"))}
    assert len(parameters(new_adapters(keys, 1, torch.Generator()))) == 2 * len(keys)
    with pytest.raises(UsageError, match="has no layers of Nothing"):
        hosts(pipe.unet, inside=("Nothing",))


def test_every_adapter_of_stable_diffusion_is_counted():
    with torch.device("meta"):
        net = diffusers.UNet2DConditionModel(cross_attention_dim=768)
        found = hosts(net)
        made = [p for own in found.values() for p in (own.weight.shape[0], own.weight[0].numel())]
    assert len(found) == 192
    assert sum(made) == 423_936
