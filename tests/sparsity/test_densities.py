from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.errors import UnknownNameError, UsageError
from efface.parts.sparsity.densities import RULES, densities, exact_counts, water_fill

Shapes = dict[str, tuple[int, ...]]
RESNET: Shapes = {
    "conv1.weight": (16, 3, 3, 3),
    **{f"layer{i}.{j}.weight": (16 * 2**i, 16 * 2**i, 3, 3) for i in range(3) for j in range(4)},
    "fc.weight": (10, 64),
}
NETS: dict[str, Shapes] = {
    "resnet": RESNET,
    "mlp": {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)},
    "depthwise": {"stem": (32, 3, 3, 3), "depth": (32, 1, 3, 3), "point": (64, 32, 1, 1), "head": (10, 64)},
    "one dimension and three": {"wave": (8, 1, 9), "volume": (6, 8, 3, 3, 3), "up": (6, 4, 2, 2), "out": (1, 24)},
    "transformer": {f"{i}.{n}": s for i in range(3) for n, s in (("qkv", (96, 32)), ("out", (32, 32)))},
}
DENSITIES = [0.02, 0.1, 0.2, 0.37, 0.5, 0.9, 1.0]
ANY_SHAPES = st.lists(st.lists(st.integers(1, 12), min_size=2, max_size=5).map(tuple), min_size=1, max_size=6).map(
    lambda shapes: {f"layer{i}": shape for i, shape in enumerate(shapes)}
)


def sizes_of(shapes: Shapes) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in shapes.items()}


def kept(found: dict[str, float], shapes: Shapes) -> float:
    return math.fsum(density * math.prod(shapes[name]) for name, density in found.items())


def published_erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Return Erdős-Rényi-Kernel densities as RigL finds them: by a scale, over and over, with full layers set aside."""
    dense: set[str] = set()
    while True:
        budget = density * sum(sizes_of(shapes).values()) - sum(math.prod(shapes[name]) for name in dense)
        raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items() if name not in dense}
        if not raw:
            return dict.fromkeys(shapes, 1.0)
        epsilon = budget / sum(ratio * math.prod(shapes[name]) for name, ratio in raw.items())
        largest = max(raw.values())
        if epsilon * largest <= 1 + 1e-12:
            return {name: 1.0 if name in dense else epsilon * raw[name] for name in shapes}
        dense |= {name for name, ratio in raw.items() if ratio == largest}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("density", DENSITIES)
def test_erk_is_the_published_one(net, density):
    assert densities("erk", NETS[net], density) == pytest.approx(published_erk(NETS[net], density), abs=1e-9)


class TestRules:
    @pytest.mark.parametrize("rule", RULES)
    @settings(max_examples=40)
    @given(ANY_SHAPES, st.floats(0.01, 1))
    def test_keep_what_is_asked_for_or_say_that_they_cannot(self, rule, shapes, density):
        sizes = sizes_of(shapes)
        try:
            found = densities(rule, shapes, density)
        except UsageError:
            assert rule.endswith("+")  # what these hold fixed may not fit
            return
        assert list(found) == list(shapes)
        assert all(0 < value <= 1 for value in found.values())
        wanted = density * sum(sizes.values())
        rounding = 0.5 if rule.endswith("+") and len(sizes) <= 2 else 0  # where nothing is left to make up for
        assert kept(found, shapes) == pytest.approx(wanted, rel=1e-9, abs=rounding)
        counts = exact_counts(found, sizes, min_kept=0)
        assert sum(counts.values()) == pytest.approx(wanted, abs=0.501 + rounding)
        assert all(0 <= counts[name] <= size for name, size in sizes.items())

    @pytest.mark.parametrize("rule", RULES)
    def test_keep_everything_at_density_one(self, rule):
        assert densities(rule, RESNET, 1.0) == pytest.approx(dict.fromkeys(RESNET, 1.0))

    def test_uniform_plus_holds_the_first_convolution_and_the_last_linear_layer(self):
        found = densities("uniform+", RESNET, 0.1)
        assert (found["conv1.weight"], found["fc.weight"]) == (1, 0.2)
        assert len({found[name] for name in RESNET if name.startswith("layer")}) == 1
        above = densities("uniform+", RESNET, 0.5)
        assert above["fc.weight"] == above["layer0.0.weight"] < 0.5
        assert densities("uniform+", NETS["mlp"], 0.1)["fc1.weight"] < 0.1  # a first layer that is no convolution

    def test_er_and_erk_differ_by_the_kernel(self):
        found = {rule: densities(rule, RESNET, 0.05) for rule in ("er", "erk")}
        a, b = "layer0.0.weight", "layer2.0.weight"
        assert found["er"][a] / found["er"][b] == pytest.approx((32 / 16**2) / (128 / 64**2))
        assert found["erk"][a] / found["erk"][b] == pytest.approx((38 / (9 * 16**2)) / (134 / (9 * 64**2)))
        assert densities("er", NETS["mlp"], 0.1) == densities("erk", NETS["mlp"], 0.1)

    def test_erk_plus_keeps_the_last_linear_layer(self):
        found, rest = densities("erk+", RESNET, 0.1), {n: s for n, s in RESNET.items() if n != "fc.weight"}
        assert found["fc.weight"] == 1
        assert found["conv1.weight"] == pytest.approx(
            densities("erk", rest, (kept(found, RESNET) - 640) / sum(sizes_of(rest).values()))["conv1.weight"]
        )

    def test_igq_evens_out_what_large_layers_keep(self):
        sizes = sizes_of(RESNET)
        found = densities("igq", RESNET, 0.01)
        force = {round((1 / value - 1) / sizes[name], 9) for name, value in found.items()}
        assert len(force) == 1
        large = [found[name] * sizes[name] for name in ("layer1.0.weight", "layer2.0.weight")]
        assert large[1] / large[0] < 1.2

    def test_balanced_keeps_as_many_weights_in_all_layers_that_have_them(self):
        sizes = sizes_of(RESNET)
        counts = {name: d * sizes[name] for name, d in densities("balanced", RESNET, 0.2).items()}
        most = max(counts.values())
        assert all(count == pytest.approx(min(sizes[name], most)) for name, count in counts.items())

    def test_fixed_layers_are_made_up_for(self):
        found = densities("erk", RESNET, 0.3, fixed={"conv1.weight": 1.0, "layer2.3.weight": 0.01})
        assert (found["conv1.weight"], found["layer2.3.weight"]) == (1.0, 0.01)
        assert kept(found, RESNET) == pytest.approx(0.3 * sum(sizes_of(RESNET).values()))
        assert densities("erk+", RESNET, 0.3, fixed={"fc.weight": 0.5})["fc.weight"] == 0.5

    @pytest.mark.parametrize("density", [0, -0.1, 1.01, float("nan"), float("inf")])
    def test_refuse_densities_out_of_range(self, density):
        with pytest.raises(UsageError, match="is not a density"):
            densities("erk", RESNET, density)
        with pytest.raises(UsageError, match=r"fc\.weight.*is not a density"):
            densities("erk", RESNET, 0.5, fixed={"fc.weight": density})

    def test_refuse_what_cannot_be(self):
        with pytest.raises(UnknownNameError, match=r"Did you mean .*erk"):
            densities("ekr", RESNET, 0.5)
        with pytest.raises(UnknownNameError, match=r"Did you mean fc\.weight"):
            densities("erk", RESNET, 0.5, fixed={"fc.wieght": 0.5})
        with pytest.raises(UsageError, match="no weights"):
            densities("erk", {"a": (3, 3), "b": (0, 3)}, 0.5)
        with pytest.raises(UsageError, match="no layers"):
            densities("erk", {}, 0.5)
        with pytest.raises(UsageError, match=r"layer2\.0\.weight keep 36864 weights"):
            densities("erk", RESNET, 0.05, fixed={"layer2.0.weight": 1.0})  # more than the budget
        with pytest.raises(UsageError, match=r"at most 55\.00 %"):
            densities("uniform", {"a": (10, 10), "b": (10, 10)}, 0.9, fixed={"a": 0.1})  # the other cannot hold it
        with pytest.raises(UsageError, match=r"at least 100\.00 %"):
            densities("erk+", {"only": (10, 10)}, 0.1)

    def test_the_least_share_that_is_named_works(self):
        with pytest.raises(UsageError, match=r"uniform\+: conv1") as refused:
            densities("uniform+", RESNET, 0.001)
        share = float(re.search(r"at least ([\d.]+) %", str(refused.value))[1]) / 100
        assert min(exact_counts(densities("uniform+", RESNET, share), sizes_of(RESNET)).values()) >= 1


class TestWaterFill:
    def test_fills_small_layers_first(self):
        ratios, sizes = {"a": 8.0, "b": 4.0, "c": 1.0}, {"a": 10, "b": 10, "c": 80}
        assert water_fill(ratios, sizes, 0.1) == pytest.approx({"a": 0.4, "b": 0.2, "c": 0.05})
        assert water_fill(ratios, sizes, 0.4) == pytest.approx({"a": 1, "b": 1, "c": 0.25})

    @given(
        st.lists(st.tuples(st.floats(1e-6, 1e6), st.integers(1, 10**9)), min_size=1, max_size=30), st.floats(1e-6, 1)
    )
    def test_meets_the_density_and_keeps_the_order_of_ratios(self, layers, density):
        ratios, sizes = ({str(i): layer[k] for i, layer in enumerate(layers)} for k in (0, 1))
        found = water_fill(ratios, sizes, density)
        assert math.fsum(found[n] * sizes[n] for n in sizes) == pytest.approx(density * sum(sizes.values()), rel=1e-9)
        order = sorted(ratios, key=ratios.__getitem__)
        assert all(found[a] <= found[b] for a, b in pairwise(order))


class TestCounts:
    @given(st.lists(st.tuples(st.floats(1e-3, 1), st.integers(1, 5000)), min_size=1, max_size=20), st.integers(0, 3))
    def test_add_up_and_hold_minima(self, layers, min_kept):
        found, sizes = ({str(i): layer[k] for i, layer in enumerate(layers)} for k in (0, 1))
        total = math.fsum(found[name] * sizes[name] for name in sizes)
        needed = sum(min(size, min_kept) for size in sizes.values())
        if round(total, 6) < needed - 0.5:
            with pytest.raises(UsageError, match="too few"):
                exact_counts(found, sizes, min_kept=min_kept)
        elif round(total, 6) > needed + 0.5:
            counts = exact_counts(found, sizes, min_kept=min_kept)
            assert abs(sum(counts.values()) - total) <= 0.501
            assert all(min(min_kept, sizes[name]) <= count <= sizes[name] for name, count in counts.items())
            if min_kept == 0:
                assert all(abs(counts[name] - found[name] * sizes[name]) < 1.001 for name in sizes)

    def test_give_what_is_left_over_to_the_largest_remainders(self):
        assert exact_counts({"a": 0.26, "b": 0.37, "c": 0.57}, dict.fromkeys("abc", 10)) == {"a": 2, "b": 4, "c": 6}

    def test_are_not_misled_by_binary_fractions(self):
        assert exact_counts({"a": 0.1, "b": 0.2}, {"a": 30, "b": 15}) == {"a": 3, "b": 3}
        assert sum(exact_counts({str(i): 0.1 for i in range(25)}, {str(i): 101 for i in range(25)}).values()) == 252

    def test_lift_layers_to_their_minimum_at_the_cost_of_the_others(self):
        found = exact_counts({"tiny": 0.01, "large": 0.1}, {"tiny": 50, "large": 1000}, min_kept=8)
        assert found == {"tiny": 8, "large": 92}

    def test_say_which_density_would_do(self):
        with pytest.raises(UsageError, match=r"10 weights are too few.*at least 0\.02"):
            exact_counts({"a": 0.01, "b": 0.01}, {"a": 500, "b": 500}, min_kept=10)
