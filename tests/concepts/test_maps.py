"""One map of text does what solving every layer would, and keeps what it is told to keep."""

import diffusers
import pytest
import torch
from tiny import tiny
from torch import nn

from efface.errors import UsageError
from efface.parts.concepts.attention import backbone, cross_attention
from efface.parts.concepts.maps import (
    CrossAttnEdit,
    derive,
    drift,
    factor,
    gram,
    residual,
    spectral_norm,
    uce,
    weight_distance,
)

WIDTH = 12
EYE = torch.eye(WIDTH, dtype=torch.float64)


@pytest.fixture
def pipe():
    return tiny()


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def layers():
    return [drawn(size, WIDTH, seed=size) for size in (8, 20, 20)]


def textbook(weight, old, new, keep, kept, ridge):
    """Solve one layer as UCE writes it, row by row."""
    left, right = torch.zeros_like(weight), torch.zeros(WIDTH, WIDTH, dtype=weight.dtype)
    groups = [(old, new, 1 / len(old)), (keep, keep, kept / len(keep))]
    for rows, values, share in groups:
        for c, g in zip(rows, values, strict=True):
            left += share * torch.outer(weight @ g, c)
            right += share * torch.outer(c, c)
    ridge = ridge * right.trace() / WIDTH
    return (left + ridge * weight) @ torch.linalg.inv(right + ridge * EYE)


def test_one_map_equals_solving_each_layer(layers):
    old, new, keep = drawn(5, WIDTH), drawn(5, WIDTH, seed=1), drawn(30, WIDTH, seed=2)
    edit = uce(old, new, keep, kept=0.3, ridge=1e-3)
    for weight in layers:
        torch.testing.assert_close(weight @ edit, textbook(weight, old, new, keep, 0.3, 1e-3), rtol=0, atol=1e-8)


def test_without_rows_to_replace_it_is_the_identity_exactly():
    assert torch.equal(CrossAttnEdit(WIDTH).solve(), EYE)
    assert torch.equal(CrossAttnEdit(WIDTH).keep(drawn(7, WIDTH)).solve(), EYE)
    assert torch.equal(uce(drawn(3, WIDTH), drawn(3, WIDTH), drawn(9, WIDTH)), EYE)


def test_a_small_ridge_reaches_the_rows_and_a_large_one_nothing():
    old, new, keep = drawn(4, WIDTH), drawn(4, WIDTH, seed=1), drawn(5, WIDTH, seed=2)
    edit = uce(old, new, keep, ridge=1e-12)
    torch.testing.assert_close(old @ edit.T, new, rtol=0, atol=1e-6)
    torch.testing.assert_close(keep @ edit.T, keep, rtol=0, atol=1e-6)
    torch.testing.assert_close(uce(old, new, keep, ridge=1e9), EYE, rtol=0, atol=1e-6)


def test_weights_are_of_groups_not_of_rows():
    old, new, keep = drawn(4, WIDTH), drawn(4, WIDTH, seed=1), drawn(20, WIDTH, seed=2)
    torch.testing.assert_close(uce(old, new, keep), uce(old, new, keep.repeat(50, 1)))
    torch.testing.assert_close(uce(old, new, keep), uce(old.repeat(3, 1), new.repeat(3, 1), keep.view(4, 5, WIDTH)))


def test_rows_that_do_not_match_and_a_ridge_of_zero_are_refused():
    with pytest.raises(UsageError, match="5 rows cannot have the values of 4"):
        CrossAttnEdit(WIDTH).replace(drawn(5, WIDTH), drawn(4, WIDTH))
    with pytest.raises(UsageError, match="not above 0"):
        CrossAttnEdit(WIDTH).solve(0)
    with pytest.raises(UsageError, match="no matrices"):
        gram([])


@pytest.mark.parametrize("width", [1, 3, 12])
def test_gram_is_the_sum_of_products(width):
    parts = [drawn(5, width), drawn(9, width, seed=1)]
    torch.testing.assert_close(gram(parts), sum(part.T @ part for part in parts))


def test_derived_rows_make_the_edited_layers_do_what_they_did(layers):
    gram0, rows = gram(layers), drawn(4, WIDTH)
    torch.testing.assert_close(derive(gram0, EYE, rows, 1e-12), rows)
    assert derive(gram0, EYE, rows, 1e9).norm() < 1e-6
    edit = uce(rows, drawn(4, WIDTH, seed=1), drawn(3, WIDTH, seed=2), ridge=1e-3)
    derived = derive(gram0, edit, rows, 1e-9)
    assert residual(gram0, edit, rows, derived) < 1e-3 < drift(gram0, edit, rows)
    for weight in layers:
        torch.testing.assert_close(derived @ (weight @ edit).T, rows @ weight.T, rtol=0, atol=1e-2)


def test_derived_rows_minimise_what_they_should(layers):
    gram0, rows, edit = gram(layers), drawn(1, WIDTH), drawn(WIDTH, WIDTH, seed=3)
    towards, strength = drawn(1, WIDTH, seed=4), 0.05
    lam = strength * gram0.trace() / WIDTH
    found = derive(gram0, edit, rows, strength, towards).requires_grad_()
    loss = sum(((found @ edit.T - rows) @ w.T).square().sum() for w in layers) + lam * (found - towards).square().sum()
    loss.backward()
    assert found.grad.abs().max() < 1e-8 * gram0.trace()


def test_rescaled_rows_have_the_length_of_those_they_bring_back(layers):
    rows = drawn(4, WIDTH)
    derived = derive(gram(layers), EYE, rows, 10.0, rescale=True)
    torch.testing.assert_close(derived.norm(dim=1), rows.norm(dim=1))
    with pytest.raises(UsageError, match="not above 0"):
        derive(gram(layers), EYE, rows, 0.0)


def test_factors_have_the_rank_of_the_edit_and_make_it_again(layers):
    old, new = drawn(3, WIDTH), drawn(3, WIDTH, seed=1)
    edit = uce(old, new, drawn(9, WIDTH, seed=2))
    up, down = factor(edit)
    assert up.shape == (WIDTH, 3)
    torch.testing.assert_close(EYE + up.double() @ down.double(), edit, rtol=0, atol=1e-6)
    assert factor(EYE)[0].shape == (WIDTH, 0)
    assert spectral_norm(EYE) == pytest.approx(1)
    expected = sum((w @ edit - w).square().sum() for w in layers) ** 0.5
    assert weight_distance(gram(layers), edit) == pytest.approx(float(expected))


def test_cross_attention_is_what_reads_the_text(pipe):
    name, net = backbone(pipe)
    layers = cross_attention(net)
    assert name == "unet"
    assert layers.keys() == {n for n, _ in net.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))}
    assert {layer.in_features for layer in layers.values()} == {32}


def test_one_projection_for_all_layers_stands_for_them():
    net = nn.Module()
    net.context_embedder = nn.Linear(8, 4)
    assert cross_attention(net) == {"context_embedder": net.context_embedder}


def test_fused_layers_and_missing_ones_are_refused(pipe):
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(UsageError, match="fused"):
        cross_attention(pipe.unet)
    with pytest.raises(UsageError, match="no cross-attention"):
        cross_attention(diffusers.UNet2DModel(block_out_channels=(8,), down_block_types=("DownBlock2D",),
                                              up_block_types=("UpBlock2D",), norm_num_groups=4))  # fmt: skip
    with pytest.raises(UsageError, match="no denoiser"):
        backbone(object())
