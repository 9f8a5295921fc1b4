from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from efface.errors import OutputError, PlanError, UsageError, WeightsError
from efface.parts.sparsity.masks import BUFFERS, LayerCollapse, MaskSet
from efface.seeds import torch_generator

SHAPES = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4)


def random(shapes, density: float = 0.5, seed: int = 0) -> MaskSet:
    return MaskSet({
        f"layer{i}.weight": torch.rand(shape, generator=torch_generator(seed, i)) < density
        for i, shape in enumerate(shapes)
    })  # fmt: skip


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def half(net: nn.Module) -> MaskSet:
    return MaskSet({name: torch.rand(m.shape) < 0.5 for name, m in MaskSet.ones_like(net).items()})


def step(net: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
    optimizer.zero_grad()
    net(torch.rand(4, 2, 4, 4)).square().sum().backward()
    if clip:
        nn.utils.clip_grad_norm_(net.parameters(), clip)
    optimizer.step()


def pruned(net: nn.Module, masks: MaskSet, optimizer: torch.optim.Optimizer | None = None) -> list[Tensor]:
    """Return what the optimiser and the network hold at the places that are pruned."""
    found = []
    for name, mask in masks.items():
        weight = net.get_parameter(name)
        state = {} if optimizer is None else optimizer.state[weight]
        found += [tensor[~mask] for tensor in (weight, *(state.get(key) for key in BUFFERS)) if tensor is not None]
    return found


class TestCounts:
    def test_ones_keep_everything_on_the_weights_device_and_in_bytes(self):
        masks = MaskSet.ones_like(network())
        assert (masks.kept, masks.total, masks.density) == (72 + 48, 72 + 48, 1)
        assert all(mask.dtype == torch.bool and mask.element_size() == 1 for mask in masks.values())
        assert masks.per_layer() == {"0.weight": (72, 72), "3.weight": (48, 48)}

    def test_nothing_is_dense(self):
        assert MaskSet({}).density == 1
        MaskSet({}).apply_(network())

    def test_refuses_masks_that_are_not_bool(self):
        with pytest.raises(UsageError, match=r"a\.weight.*float32 instead of bool"):
            MaskSet({"a.weight": torch.ones(3)})

    def test_names_layers_that_collapse(self):
        masks = MaskSet({"thin": torch.arange(5) < 1, "tiny": torch.ones(2).bool(), "gone": torch.zeros(9).bool()})
        with pytest.raises(LayerCollapse, match="gone: 1 of 3 layers keep fewer than 1"):
            masks.check()
        with pytest.raises(LayerCollapse, match="thin, gone"):
            masks.check(min_kept=3)  # two of two weights are all that there are
        MaskSet({"tiny": torch.ones(2).bool()}).check(min_kept=100)


class TestAlgebra:
    @given(SHAPES)
    def test_and_or_and_overlap(self, shapes):
        a, b = random(shapes), random(shapes, seed=1)
        both, either = a & b, a | b
        assert both.kept + either.kept == a.kept + b.kept
        assert a.overlap(b) == pytest.approx(both.kept / either.kept if either.kept else 1)
        assert a.overlap(a) == 1
        assert a & a == a == a | a
        assert (a == b) == (a.digest() == b.digest())

    def test_refuses_masks_of_another_network(self):
        with pytest.raises(PlanError, match=r"layer0\.weight.*\(2, 3\).*\(3, 2\)"):
            random([(2, 3)]) & random([(3, 2)])
        with pytest.raises(PlanError, match=r"layer1\.weight.*no such mask"):
            random([(2, 3)]) | random([(2, 3), (4,)])
        assert random([(2, 3)]) != random([(3, 2)])

    def test_equality_goes_by_bits_and_not_by_order(self):
        a = random([(3, 3), (4, 4)])
        b = MaskSet(dict(reversed(list(a.items()))))
        assert a == b
        assert a.digest() == b.digest()
        b["layer0.weight"][0, 0] ^= True
        assert a["layer0.weight"] is b["layer0.weight"]  # masks are shared, and change in place
        c = copy.deepcopy(a)
        c["layer0.weight"][0, 0] ^= True
        assert a != c
        assert a.digest() != c.digest()
        assert a != {}


class TestShuffle:
    @given(SHAPES, st.integers(0, 99))
    def test_keeps_counts(self, shapes, seed):
        masks = random(shapes, 0.3)
        assert masks.random_like(seed).per_layer() == masks.per_layer()
        everywhere = masks.shuffle(seed, "global")
        assert (everywhere.kept, everywhere.total) == (masks.kept, masks.total)
        assert everywhere == masks.shuffle(seed, "global")

    def test_draws_anew_for_each_seed_and_layer_and_by_the_layers_name(self):
        same = torch.arange(64) < 32
        masks = MaskSet({"a": same, "b": same.clone()})
        drawn = [masks.random_like(seed) for seed in range(8)]
        assert all(not torch.equal(m["a"], m["b"]) for m in drawn)
        assert all(a != b for a, b in pairwise(drawn))
        assert torch.equal(MaskSet({"b": same}).random_like(0)["b"], drawn[0]["b"])

    def test_global_shuffle_moves_weights_between_layers(self):
        masks = MaskSet({"full": torch.ones(40).bool(), "empty": torch.zeros(40).bool()})
        kept = masks.shuffle(0, "global").per_layer()
        assert kept["full"][0] < 40
        assert kept["empty"][0] > 0


class TestFile:
    @settings(max_examples=20)
    @given(SHAPES)
    def test_holds_every_bit_in_an_eighth_of_the_bytes(self, tmp_path_factory, shapes):
        path = tmp_path_factory.mktemp("masks") / "m.safetensors"
        masks = MaskSet(random(shapes), {"tied": "layer0.weight"})
        masks.save(path)
        loaded = MaskSet.load(path)
        assert loaded == masks
        assert list(loaded) == list(masks)
        assert loaded["tied"] is loaded["layer0.weight"]
        assert loaded.digest() == masks.digest()

    def test_is_small(self, tmp_path):
        random([(1000, 80)]).save(tmp_path / "m.safetensors")
        assert (tmp_path / "m.safetensors").stat().st_size < 10_000 + 500

    def test_is_not_overwritten_by_accident(self, tmp_path):
        path = tmp_path / "m.safetensors"
        random([(3,)]).save(path)
        with pytest.raises(OutputError, match="exists"):
            random([(4,)]).save(path)
        random([(4,)]).save(path, overwrite=True)
        assert MaskSet.load(path).total == 4

    @pytest.mark.parametrize("length", [0, 4, 60, -1])
    def test_that_is_cut_short_is_refused(self, tmp_path, length):
        path = tmp_path / "m.safetensors"
        random([(30, 3)]).save(path)
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(WeightsError, match="does not hold masks"):
            MaskSet.load(path)

    @pytest.mark.parametrize(
        "facts",
        [
            None,
            {"form": "efface masks 2", "shapes": '{"a": [8]}', "aliases": "{}"},
            {"form": "efface masks 1", "shapes": '{"a": [9]}', "aliases": "{}"},
            {"form": "efface masks 1", "shapes": '{"a": [-1, -8]}', "aliases": "{}"},
            {"form": "efface masks 1", "shapes": '{"b": [8]}', "aliases": "{}"},
            {"form": "efface masks 1", "shapes": "{}", "aliases": "{}"},
            {"form": "efface masks 1", "shapes": '["a"]', "aliases": "{}"},
            {"form": "efface masks 1"},
        ],
    )
    def test_of_another_form_is_refused(self, tmp_path, facts):
        path = tmp_path / "m.safetensors"
        save_file({"a": torch.ones(1, dtype=torch.uint8)}, path, facts)
        with pytest.raises(WeightsError, match="does not hold masks"):
            MaskSet.load(path)

    def test_that_is_missing_or_pickled_is_refused(self, tmp_path):
        with pytest.raises(WeightsError):
            MaskSet.load(tmp_path / "none.safetensors")
        torch.save({}, tmp_path / "m.pt")
        with pytest.raises(WeightsError, match="pickled"):
            MaskSet.load(tmp_path / "m.pt")


class TestApply:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_zeroes_are_plain_zeroes_and_the_rest_is_untouched(self, dtype):
        net = nn.Linear(6, 1).to(dtype)
        given = torch.tensor([[1.5, -1.5, float("nan"), float("inf"), -0.0, 3]], dtype=dtype)
        net.weight.data.copy_(given)
        MaskSet({"weight": torch.tensor([[1, 0, 0, 0, 0, 1]]).bool()}).apply_(net)
        assert net.weight[0].tolist() == [1.5, 0, 0, 0, 0, 3]
        assert not net.weight.signbit().any()

    def test_works_on_any_memory_format(self):
        net = nn.Conv2d(4, 5, 3).to(memory_format=torch.channels_last)
        masks, before = half(net), net.weight.detach().clone()
        masks.apply_(net)
        assert torch.equal(net.weight, before * masks["weight"])

    def test_of_another_network_is_refused_and_changes_nothing(self):
        net = network()
        before = copy.deepcopy(net.state_dict())
        for name, shape in (("4.weight", (3, 3)), ("3.weight", (3, 15))):
            with pytest.raises(PlanError, match=name):
                MaskSet({"0.weight": torch.zeros(4, 2, 3, 3).bool(), name: torch.ones(shape).bool()}).apply_(net)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.1, amsgrad=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    "plain": lambda p: torch.optim.SGD(p, 0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
class TestAttach:
    def test_keeps_pruned_weights_and_their_buffers_at_zero(self, make):
        net = network()
        optimizer, masks = make(net.parameters()), half(net)
        masks.attach(net, optimizer)
        assert all((x == 0).all() for x in pruned(net, masks))  # from the start
        start = net[0].weight.detach().clone()
        for clip in (None, 0.1, None):
            step(net, optimizer, clip)
            assert all((x == 0).all() for x in pruned(net, masks, optimizer))
        assert (net[0].weight != start)[masks["0.weight"]].all()
        assert net[0].weight.grad[~masks["0.weight"]].any()  # dense, for growth

    def test_holds_after_resuming(self, make):
        net = network()
        optimizer, masks = make(net.parameters()), half(net)
        step(net, optimizer)  # its buffers are dense
        state, again = optimizer.state_dict(), copy.deepcopy(net)
        resumed = make(again.parameters())
        resumed.load_state_dict(state)
        masks.attach(again, resumed)
        assert all((x == 0).all() for x in pruned(again, masks, resumed))
        step(again, resumed)
        assert all((x == 0).all() for x in pruned(again, masks, resumed))

    def test_follows_masks_that_change_until_it_is_removed(self, make):
        net = network()
        optimizer, masks = make(net.parameters()), half(net)
        handle = masks.attach(net, optimizer)
        masks["3.weight"].logical_not_()
        step(net, optimizer)
        assert all((x == 0).all() for x in pruned(net, masks, optimizer))
        handle.remove()
        step(net, optimizer)
        assert all((x != 0).any() for x in pruned(net, masks))

    def test_freezes_gradients_before_they_are_clipped(self, make):
        net = network()
        optimizer, masks = make(net.parameters()), half(net)
        handle = masks.attach(net, optimizer, freeze_grad=True)
        net(torch.rand(4, 2, 4, 4)).sum().backward()
        for name, mask in masks.items():
            gradient = net.get_parameter(name).grad
            assert (gradient[~mask] == 0).all()
            assert gradient[mask].any()
        handle.remove()
        net(torch.rand(4, 2, 4, 4)).sum().backward()
        assert net[3].weight.grad[~masks["3.weight"]].any()


def test_attach_takes_mixed_number_formats_and_frozen_weights():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4))
    net[2].requires_grad_(False)
    masks = half(net)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 0.1)
    masks.attach(net, optimizer, freeze_grad=True)
    net[2](net[1](net[0](torch.ones(1, 4)).bfloat16()).float()).sum().backward()
    optimizer.step()
    assert all((x == 0).all() for x in pruned(net, masks, optimizer))
    assert optimizer.state[net[2].weight] == {}


def test_attach_goes_through_the_wrapper_of_accelerate():
    from accelerate import Accelerator

    net = network()
    masks = half(net)
    wrapped, optimizer = Accelerator(cpu=True).prepare(net, torch.optim.Adam(net.parameters(), 0.1))
    masks.attach(net, optimizer)
    step(wrapped, optimizer)
    assert all((x == 0).all() for x in pruned(net, masks))
