"""Column blocks compute what the dense layer with their pattern's mask computes, and are chosen only where quicker."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from efface.errors import UsageError
from efface.parts.sparsity import blocks
from efface.parts.sparsity.blocks import ColumnBlockConv2d, ColumnBlockLinear, choose, convertible, from_dense
from efface.parts.sparsity.project import blocks_of, columns_near, coverage, pattern_mask, project
from efface.parts.timing import Timing

CONVS = [
    pytest.param(nn.Conv2d(6, 10, 1), form, id=f"pointwise {form}") for form in ("groups", "rows", "columns")
] + [
    pytest.param(nn.Conv2d(6, 10, 1, stride=(2, 1), bias=False), form, id=f"strided {form}")
    for form in ("groups", "rows", "columns")
] + [
    pytest.param(nn.Conv2d(6, 10, 3, padding=1, stride=2), "groups", id="3x3"),
    pytest.param(nn.Conv2d(6, 10, (3, 2), dilation=2, padding="same", bias=False), "groups", id="dilated, same"),
    pytest.param(nn.Conv2d(6, 10, 1, padding=1), "groups", id="padded pointwise"),
]  # fmt: skip


def masked(layer, columns):
    """Return the dense layer with the weights outside the pattern at zero."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight *= pattern_mask(columns, tuple(layer.weight.shape))
    return layer


def rebuilt(module):
    """Build a module from its class, its arguments through JSON, and its tensors."""
    new = type(module)(**json.loads(json.dumps(module.args())))
    new.load_state_dict(module.state_dict())
    return new


@settings(max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 5),
    st.lists(st.integers(1, 3), max_size=2),
    st.booleans(),
    st.sampled_from(["rows", "columns"]),
    st.data(),
)
def test_a_linear_layer_in_blocks_is_the_masked_layer(inputs, outputs, block, lead, bias, form, data):
    torch.manual_seed(inputs * 10 + outputs)
    layer, x = nn.Linear(inputs, outputs, bias=bias), torch.randn(*lead, inputs)
    columns = project(layer.weight.detach().square(), data.draw(st.integers(1, inputs)), block)
    new = rebuilt(from_dense(layer, columns, form))
    torch.testing.assert_close(new(x), masked(layer, columns)(x))
    assert new(x).is_contiguous()


@pytest.mark.parametrize(("layer", "form"), CONVS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_in_blocks_is_the_masked_one(layer, form, layout):
    x = torch.randn(2, 6, 7, 5).contiguous(memory_format=layout)
    columns = project(layer.weight.detach().square(), kept=3, block=4)
    assert columns.shape == (3, 3)
    new = rebuilt(from_dense(layer, columns, form))
    torch.testing.assert_close(new(x), masked(layer, columns)(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["rows", "columns"])
def test_blocks_train_as_the_masked_layer_does(form):
    layer, x = nn.Linear(6, 5), torch.randn(4, 6)
    columns = project(layer.weight.detach().square(), kept=2, block=3)
    dense, new = masked(layer, columns), from_dense(layer, columns, form)
    for module in (dense, new):
        module(x).square().sum().backward()
    with torch.no_grad():
        layer.weight.copy_(dense.weight.grad)
        layer.bias.copy_(dense.bias.grad)
    wanted = from_dense(layer, columns, form)
    rows = (lambda weight: weight.transpose(1, 2)) if form == "rows" else (lambda weight: weight)
    torch.testing.assert_close(rows(new.weight.grad).flatten(0, 1)[:5], rows(wanted.weight).flatten(0, 1)[:5])
    torch.testing.assert_close(new.bias.grad[:5], wanted.bias[:5])


@pytest.mark.parametrize(
    ("layer", "form"), [(nn.Linear(6, 5), "rows"), (nn.Linear(6, 5), "columns"), *[param.values for param in CONVS[:3]]]
)
def test_blocks_are_exported_with_plain_operators_and_any_batch(layer, form):
    new = from_dense(layer, project(layer.weight.detach().square(), 2, 3), form).eval()
    x = torch.randn(3, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 4, 4)
    program = torch.export.export(new, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    called = {str(node.target).split(".")[1] for node in program.graph.nodes if "aten" in str(node.target)}
    assert called <= {
        "reshape", "view", "flatten", "unflatten", "t", "transpose", "permute", "contiguous", "slice", "index_select",
        "bmm", "matmul", "add_", "conv2d", "sym_size", "unsqueeze", "_assert_scalar",
    }  # fmt: skip
    more = torch.cat([x, x])
    torch.testing.assert_close(program.module()(more), new(more))


def test_blocks_keep_number_format_mode_and_what_is_frozen():
    layer = nn.Linear(6, 4).to(torch.bfloat16).eval().requires_grad_(False)
    new = from_dense(layer, project(layer.weight.float().square(), 3, 2))
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
    assert new.columns.dtype == torch.int64
    assert not new.training
    assert not any(p.requires_grad for p in new.parameters())
    assert set(new.state_dict()) == {"weight", "bias", "columns"}


@given(st.integers(1, 7), st.integers(1, 6), st.integers(1, 4), st.integers(0, 9))
def test_projection_keeps_the_best_columns_of_each_block(rows, inputs, block, seed):
    scores = torch.rand(rows, inputs, 2, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    kept = 1 + seed % inputs
    columns = project(scores, kept, block)
    count, size = blocks_of(rows, block)
    assert columns.shape == (count, kept)
    assert size <= block
    for part, chosen in zip(scores.split(size), columns.tolist(), strict=True):
        sums = part.sum((0, 2), dtype=torch.float64).tolist()
        best = sorted(range(inputs), key=lambda c: (-sums[c], c))[:kept]
        assert chosen == sorted(best)


def test_a_mask_that_is_made_of_column_blocks_is_kept_whole():
    columns = torch.tensor([[0, 2], [1, 3], [2, 4]])
    mask = pattern_mask(columns, (7, 5, 3, 3))
    assert mask.shape == (7, 5, 3, 3)
    assert torch.equal(project(mask.float(), 2, 3), columns)
    assert coverage(mask, columns) == 1
    assert coverage(mask, columns[[1, 0, 2]]) == 9 / 63
    assert coverage(torch.zeros_like(mask), columns) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: project(torch.ones(4, 4), 0), "0 of 4 columns"),
        (lambda: project(torch.ones(4, 4), 5), "5 of 4 columns"),
        (lambda: project(torch.full((4, 4), torch.nan), 1), "NaN"),
        (lambda: project(-torch.ones(4, 4), 1), "negative"),
        (lambda: project(torch.ones(4, 4), 1, block=0), "block of 0"),
        (lambda: ColumnBlockLinear(4, 4, blocks=5, kept=1), "5 blocks of 4 outputs"),
        (lambda: ColumnBlockLinear(4, 4, blocks=1, kept=5), "5 of 4 inputs"),
        (lambda: ColumnBlockLinear(4, 4, blocks=1, kept=1, form="groups"), "'groups' is no form"),
        (lambda: ColumnBlockConv2d(4, 4, (3, 3), blocks=1, kept=1, form="rows"), "Take one of groups"),
        (lambda: from_dense(nn.Conv2d(4, 4, 1, groups=2), torch.zeros(1, 1)), "Conv2d has no form"),
        (lambda: from_dense(nn.LSTM(4, 4), torch.zeros(1, 1)), "LSTM has no form"),
    ],
)
def test_what_makes_no_blocks_is_refused(call, says):
    with pytest.raises(UsageError, match=says):
        call()


def test_only_plain_layers_are_convertible():
    class Own(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layers = [nn.Linear(2, 2), nn.Conv2d(2, 2, 1), Own(2, 2), nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")]
    assert [convertible(layer) for layer in layers] == [True, True, False, False]


@pytest.mark.parametrize(
    ("seconds", "form"),
    [
        ({"dense": 2.0, "rows": 1.0, "columns": 1.5}, "rows"),
        ({"dense": 2.0, "rows": 1.5, "columns": 1.0}, "columns"),
        ({"dense": 1.0, "rows": 2.0, "columns": 1.5}, "dense"),
        ({"dense": 1.0, "rows": 0.99, "columns": 1.5}, "dense"),
    ],
)
def test_the_quickest_form_is_chosen_and_dense_stays_without_a_clear_gain(monkeypatch, seconds, form):
    def timed(calls, **_):
        for call in calls.values():
            call()
        return {name: Timing(seconds[name], seconds[name], seconds[name], 5) for name in calls}

    monkeypatch.setattr(blocks, "interleave", timed)
    layer = nn.Linear(6, 4)
    choice = choose(layer, torch.randn(2, 6), project(layer.weight.detach().square(), 3))
    assert choice.form == form
    assert (choice.module is None) == (form == "dense")
    assert choice.speedup == seconds["dense"] / seconds[form]
    assert layer.training


@pytest.mark.parametrize(
    ("columns", "share", "kept"),
    [(1024, 0.1, 96), (1024, 0.25, 256), (64, 1.0, 64), (72, 1.0, 72), (40, 0.3, 16), (20, 0.2, 4), (9, 0.01, 1)],
)
def test_as_many_columns_are_kept_as_products_are_quick_with(columns, share, kept):
    assert columns_near(columns, share) == kept
