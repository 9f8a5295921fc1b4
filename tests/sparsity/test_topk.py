from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efface.errors import UnknownNameError, UsageError, WeightsError
from efface.parts.sparsity import topk
from efface.parts.sparsity.topk import feasible_floor, keep_global, keep_layerwise
from efface.seeds import torch_generator

# Few distinct values make many ties; signs of zero, infinities and denormals are in.
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, float("inf"), -float("inf")]), st.floats(-4, 4, width=16)
)
LAYERS = st.lists(st.lists(VALUES, max_size=30), min_size=1, max_size=4).map(
    lambda layers: {f"layer{i}": torch.tensor(layer, dtype=torch.float32) for i, layer in enumerate(layers)}
)


def first_largest(scores: dict[str, Tensor], keep: int) -> dict[str, Tensor]:
    """Return what a stable sort of everything keeps."""
    flat = torch.cat([score.flatten() for score in scores.values()]).double()
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[flat.sort(descending=True, stable=True).indices[:keep]] = True
    parts = mask.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def with_floors(scores: dict[str, Tensor], keep: int, floors: dict[str, int]) -> dict[str, Tensor]:
    """Return the fixed point of Global MP: whoever falls below its floor is held there, the others compete again."""
    held: dict[str, Tensor] = {}
    while True:
        free = {name: score for name, score in scores.items() if name not in held}
        masks = first_largest(free, keep - sum(int(mask.sum()) for mask in held.values())) if free else {}
        low = {name for name, mask in masks.items() if mask.sum() < floors[name]}
        if not low:
            return {name: held[name] if name in held else masks[name] for name in scores}
        held |= {name: first_largest({name: scores[name]}, floors[name])[name] for name in low}


def same(masks, expected) -> bool:
    return list(masks) == list(expected) and all(torch.equal(masks[name], expected[name]) for name in expected)


def noise(*shape: int, name: str = "scores") -> Tensor:
    return torch.randn(shape, generator=torch_generator(0, name))


@pytest.fixture
def sampled(monkeypatch):
    """Let small layers go the way of large ones: bracketed by a sample, in several chunks."""
    monkeypatch.setattr(topk, "CHUNK", 64)
    monkeypatch.setattr(topk, "STRIDE", 7)


class TestGlobal:
    @settings(max_examples=50)
    @given(LAYERS, st.data())
    def test_is_a_stable_sort(self, scores, data):
        keep = data.draw(st.integers(0, sum(score.numel() for score in scores.values())))
        masks = keep_global(scores, keep)
        assert masks.kept == keep
        assert same(masks, first_largest(scores, keep))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_takes_every_number_format_and_mixes_of_them(self, dtype):
        scores = {"a": noise(30, 20).to(dtype), "b": noise(50, name="b")}
        assert same(keep_global(scores, 100), first_largest(scores, 100))

    def test_tells_apart_what_float32_cannot(self):
        scores = {"a": torch.tensor([1e300, 3e300, 2e300, 1e-300], dtype=torch.float64)}
        assert keep_global(scores, 2)["a"].tolist() == [False, True, True, False]

    def test_takes_numbers_in_their_logical_order_whatever_lies_in_memory(self):
        scores = noise(6, 5, 3, 3).round()
        strange = scores.to(memory_format=torch.channels_last)
        assert torch.equal(keep_global({"a": strange}, 100)["a"], keep_global({"a": scores}, 100)["a"])

    def test_key_spares_a_copy_and_leaves_the_weights_alone(self):
        weights = {"a": noise(100), "b": -noise(50, name="b")}
        before = {name: weight.clone() for name, weight in weights.items()}
        expected = first_largest({name: weight.abs() for name, weight in weights.items()}, 40)
        assert same(keep_global(weights, 40, key=torch.abs), expected)
        assert same(keep_global(weights, 40, key=lambda x: x), first_largest(weights, 40))
        assert same(weights, before)

    def test_does_not_see_the_scale_of_all_but_of_one(self):
        scores = {"a": noise(80), "b": noise(80, name="b")}
        assert keep_global(scores, 60) == keep_global({name: 8 * score for name, score in scores.items()}, 60)
        assert keep_global(scores, 60) != keep_global(scores | {"a": 8 * scores["a"]}, 60)

    def test_parameters_need_no_detaching(self):
        weight = torch.nn.Parameter(noise(9))
        assert keep_global({"a": weight}, 4, key=torch.abs, min_keep=2).kept == 4

    @pytest.mark.parametrize("keep", [-1, 11])
    def test_refuses_counts_out_of_range(self, keep):
        with pytest.raises(UsageError, match=f"{keep} weights are to be kept of 10"):
            keep_global({"a": noise(10)}, keep)

    @pytest.mark.parametrize("keep", [0, 3, 20])
    def test_refuses_nan_and_names_the_layer(self, keep):
        scores = {"good": noise(10), "bad": noise(10)}
        scores["bad"][4] = torch.nan
        with pytest.raises(WeightsError, match="bad: the scores hold NaN"):
            keep_global(scores, keep, min_keep=keep // 20)

    def test_nothing_keeps_nothing(self):
        assert keep_global({}, 0).total == 0
        assert keep_global({"empty": noise(0, 3)}, 0)["empty"].shape == (0, 3)


ADVERSARIES = {
    "normal": lambda: noise(1000),
    "heavy": lambda: noise(1000).exp().exp(),
    "equal": lambda: torch.ones(1000),
    "nearly all zero": lambda: noise(1000).clamp_min(2) - 2,
    "one huge": lambda: torch.cat([noise(999) * 1e-30, torch.tensor([1e30])]),
    "denormal": lambda: noise(1000) * 1e-42,
    "infinite": lambda: noise(1000).masked_fill(noise(1000) > 0.5, torch.inf).masked_fill(noise(1000) < -1, -torch.inf),
    "sorted": lambda: torch.arange(1000.0),
    "misleading sample": lambda: noise(1000).masked_fill(torch.arange(1000) % 7 == 0, -100.0),
    "few values": lambda: noise(1000).mul(2).round(),
}


@pytest.mark.usefixtures("sampled")
class TestSampling:
    @pytest.mark.parametrize("make", ADVERSARIES.values(), ids=ADVERSARIES)
    @pytest.mark.parametrize("keep", [0, 1, 2, 10, 500, 857, 858, 990, 1019, 1020])
    def test_changes_nothing(self, make, keep):
        scores = {"large": make().view(50, 20), "small": noise(20, name="small")}
        masks = keep_global(scores, keep)
        assert same(masks, first_largest(scores, keep))

    def test_a_misleading_sample_costs_passes_and_not_exactness(self):
        passes = 0

        def counting(part: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            return part

        honest = {"a": noise(20_000)}
        misleading = {"a": honest["a"].masked_fill(torch.arange(20_000) % 7 == 0, -100.0)}
        keep_global(honest, 10_000, key=counting)
        usual, passes = passes, 0
        assert same(keep_global(misleading, 10_000, key=counting), first_largest(misleading, 10_000))
        assert passes > usual


class TestFloors:
    @settings(max_examples=50)
    @given(LAYERS, st.data())
    def test_hold_among_any_scores_and_keep_the_total(self, scores, data):
        floors, keep = self.possible(scores, data)
        masks = keep_global(scores, keep, min_keep=floors)
        assert masks.kept == keep
        assert all(kept >= floors[name] for name, (kept, _) in masks.per_layer().items())

    @settings(max_examples=50)
    @given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.data())
    def test_are_the_fixed_point_of_holding_layers_at_their_minimum(self, sizes, data):
        scores = {str(i): noise(size, name=str(i)) * 3**i for i, size in enumerate(sizes)}
        floors, keep = self.possible(scores, data)
        assert same(keep_global(scores, keep, min_keep=floors), with_floors(scores, keep, floors))

    def possible(self, scores: dict[str, Tensor], data) -> tuple[dict[str, int], int]:
        sizes = {name: score.numel() for name, score in scores.items()}
        floors = {name: data.draw(st.integers(0, size)) for name, size in sizes.items()}
        return floors, data.draw(st.integers(sum(floors.values()), sum(sizes.values())))

    def test_leave_a_layer_that_is_smaller_whole(self):
        masks = keep_global({"tiny": torch.zeros(3), "large": torch.ones(100)}, 20, min_keep=10)
        assert masks.per_layer() == {"tiny": (3, 3), "large": (17, 100)}

    def test_change_nothing_where_the_threshold_leaves_enough(self):
        scores = {"a": noise(50), "b": noise(50, name="b")}
        assert keep_global(scores, 40, min_keep=5) == keep_global(scores, 40)

    def test_hold_even_against_infinite_scores(self):
        masks = keep_global({"a": torch.full((5,), torch.inf), "b": torch.zeros(5)}, 3, min_keep={"b": 1})
        assert masks.per_layer() == {"a": (2, 5), "b": (1, 5)}
        assert keep_global({"a": torch.full((5,), -torch.inf), "b": noise(5)}, 6, min_keep=1).kept == 6

    def test_that_cannot_be_met_are_refused_with_those_that_can(self):
        scores = {"tiny": noise(2), "a": noise(50), "b": noise(50)}
        with pytest.raises(UsageError, match=r"add up to 42 weights, and 31.*Keep at least 42.*to 14 a layer"):
            keep_global(scores, 31, min_keep=20)
        assert keep_global(scores, 31, min_keep=14).kept == 31
        with pytest.raises(UsageError):
            keep_global(scores, 31, min_keep=15)
        with pytest.raises(UnknownNameError, match="Did you mean tiny"):
            keep_global(scores, 31, min_keep={"tinny": 1})

    @given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.data())
    def test_largest_feasible_one(self, sizes, data):
        keep = data.draw(st.integers(0, sum(sizes)))
        floor = feasible_floor({str(i): size for i, size in enumerate(sizes)}, keep)
        assert sum(min(floor, size) for size in sizes) <= keep
        assert floor >= max(sizes) or sum(min(floor + 1, size) for size in sizes) > keep


class TestLayerwise:
    @settings(max_examples=50)
    @given(LAYERS, st.data())
    def test_sorts_each_layer(self, scores, data):
        counts = {name: data.draw(st.integers(0, score.numel())) for name, score in scores.items()}
        masks = keep_layerwise(scores, counts)
        assert {name: kept for name, (kept, _) in masks.per_layer().items()} == counts
        assert same(masks, {name: first_largest({name: scores[name]}, counts[name])[name] for name in scores})

    def test_is_global_where_there_is_one_layer(self):
        scores = {"a": noise(40, 3)}
        assert keep_layerwise(scores, {"a": 17}, key=torch.abs) == keep_global(scores, 17, key=torch.abs)

    def test_refuses_counts_that_do_not_fit(self):
        scores = {"weight": noise(5)}
        with pytest.raises(UsageError, match="weight: 6 weights are to be kept"):
            keep_layerwise(scores, {"weight": 6})
        with pytest.raises(UsageError, match="weight: no count"):
            keep_layerwise(scores, {})
        with pytest.raises(UnknownNameError, match="Did you mean weight"):
            keep_layerwise(scores, {"weight": 1, "wieght": 1})
