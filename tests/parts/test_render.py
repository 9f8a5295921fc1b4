"""Fonts are found, words are made up and text is drawn as its style says, to the last pixel."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from efface.parts.text import fonts, words
from efface.parts.text.render import VISIBLE, as_float, draw, make_layer
from efface.parts.text.style import BLACK, WHITE, Style, random_style, rarer
from efface.seeds import numpy_generator

GREY = np.full((96, 160, 3), 0.5, np.float32)
MIDDLE = (80, 48)
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def drawn(style=None, *, lines=("Hxo",), picture=GREY, at=MIDDLE):
    return draw(picture, list(lines), style or Style(), font=None, at=at)


def extent(mask):
    """Return width and height of what is marked."""
    rows, columns = np.nonzero(mask)
    return np.ptp(columns) + 1, np.ptp(rows) + 1


@pytest.fixture
def font_file(tmp_path):
    file = tmp_path / "fonts" / "deep" / "Some.ttf"
    file.parent.mkdir(parents=True)
    built_in = ImageFont.load_default(16).path
    built_in.seek(0)
    file.write_bytes(built_in.read())
    return file


LOOKS = {
    "plain": Style(),
    "see-through": Style(opacity=0.4),
    "outline": Style(outline=2, feather=0.7),
    "everything": Style(
        gradient=RED, opacity=0.8, feather=1, italic=0.3, curve=6, rotation=20, perspective=0.3, spacing=2, outline=2,
        outline_colour=BLUE, shadow=(3, 4), shadow_blur=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("depth", [np.uint8, np.float32])
def test_the_picture_is_the_original_under_the_ink(look, depth):
    original = numpy_generator(1, "ground").integers(0, 256, (96, 160, 3)).astype(np.uint8)
    picture = original if depth == np.uint8 else as_float(original)
    kept = picture.copy()
    out = drawn(LOOKS[look], picture=picture)
    alpha = out.alpha[..., None]
    np.testing.assert_allclose(out.picture, (1 - alpha) * as_float(original) + alpha * out.ink, atol=1e-6)
    np.testing.assert_array_equal(out.picture[out.alpha == 0], as_float(original)[out.alpha == 0])
    np.testing.assert_array_equal(picture, kept)
    assert out.picture.dtype == out.alpha.dtype == np.float32
    assert 0 <= out.alpha.min() <= out.alpha.max() <= 1 + 1e-6


@pytest.mark.parametrize("look", LOOKS)
def test_strokes_and_box_hold_what_changed(look):
    out = drawn(LOOKS[look])
    np.testing.assert_array_equal(out.strokes, np.abs(out.picture - GREY).max(axis=2) > VISIBLE)
    rows, columns = np.nonzero(out.strokes)
    edges, pixels = np.roll(out.box, -1, axis=0) - out.box, np.stack([columns, rows], 1) + 0.5
    away = pixels[:, None] - out.box
    side = edges[:, 0] * away[..., 1] - edges[:, 1] * away[..., 0]
    assert ((side >= -0.01).all(1) | (side <= 0.01).all(1)).all()


def test_an_upright_box_is_tight():
    out = drawn()
    assert tuple(out.box.max(0) - out.box.min(0)) == extent(out.strokes)
    assert set(out.box[:, 0]) == {out.box[:, 0].min(), out.box[:, 0].max()}


def test_a_turned_box_turns_with_the_text():
    sides = np.linalg.norm(np.diff(drawn(Style(rotation=30), lines=["HHHHHH"]).box, axis=0), axis=1)
    level = drawn(lines=["HHHHHH"]).box
    np.testing.assert_allclose(sorted(sides)[-1], np.ptp(level[:, 0]), atol=3)


@pytest.mark.parametrize("at", [(0, 0), (159, 95), (-4, 48), (80, 99)])
def test_what_stands_out_of_the_picture_is_cut_off(at):
    out = drawn(Style(size=40), at=at, lines=["HHHH"])
    assert out.picture.shape == GREY.shape
    assert out.strokes.any()


@pytest.mark.parametrize(
    ("lines", "style", "at"),
    [
        ([], Style(), MIDDLE),
        ([""], Style(), MIDDLE),
        (["   "], Style(), MIDDLE),
        (["Hx"], Style(colour=(0.5, 0.5, 0.5)), MIDDLE),
        (["Hx"], Style(opacity=0.0), MIDDLE),
        (["Hx"], Style(), (-500, 48)),
        (["Hx"], Style(), (80, 900)),
    ],
)
def test_nothing_to_be_seen_is_none(lines, style, at):
    assert drawn(style, lines=lines, at=at) is None


def test_opacity_bounds_the_coverage():
    assert drawn(Style(opacity=0.3, outline=1, shadow=(2, 2))).alpha.max() == pytest.approx(0.3, abs=1e-3)


def test_outline_and_letters_keep_their_colours():
    out = drawn(Style(size=48, colour=RED, outline=3, outline_colour=BLUE), lines=["HI"])
    seen = {tuple(c) for c in np.round(out.picture[out.strokes]).astype(int)}
    assert {(1, 0, 0), (0, 0, 1)} <= seen
    width, height = extent(drawn(Style(size=48), lines=["HI"]).strokes)
    assert extent(out.strokes) == (width + 6, height + 6)


def test_a_gradient_runs_from_head_to_foot():
    out = drawn(Style(size=48, colour=RED, gradient=BLUE, shadow=(9, 9), shadow_alpha=0), lines=["II"])
    rows = np.flatnonzero((out.alpha > 0.9).any(axis=1))
    head, foot = (out.picture[row][out.alpha[row] > 0.99][0] for row in (rows[1], rows[-2]))
    np.testing.assert_allclose(head, RED, atol=0.1)
    np.testing.assert_allclose(foot, BLUE, atol=0.1)


@pytest.mark.parametrize("offset", [(6, 0), (0, 6), (-5, 3)])
def test_a_shadow_falls_where_it_is_sent(offset):
    plain, out = (
        drawn(Style(colour=WHITE)),
        drawn(Style(colour=WHITE, shadow=offset, shadow_colour=BLACK, shadow_alpha=1)),
    )
    dark, moved = (out.picture < 0.01).all(axis=2), np.roll(plain.alpha, offset[::-1], axis=(0, 1))
    assert dark.any()
    assert (moved[dark] > 0.9).all()
    np.testing.assert_allclose(out.picture[plain.alpha > 0.999], 1)


def test_feather_softens_and_keeps_the_amount_of_ink():
    sharp, soft = drawn(), drawn(Style(feather=2))
    assert soft.alpha.max() < sharp.alpha.max()
    assert soft.alpha.sum() == pytest.approx(sharp.alpha.sum(), rel=0.01)


def test_spacing_and_lines_take_room():
    width, height = extent(drawn(lines=["HHHH"]).strokes)
    assert extent(drawn(Style(spacing=5), lines=["HHHH"]).strokes)[0] == pytest.approx(width + 15, abs=2)
    assert extent(drawn(Style(leading=1.5), lines=["HHHH"] * 2).strokes)[1] == pytest.approx(height + 36, abs=1)


@pytest.mark.parametrize("rotation", [90, -90])
def test_a_quarter_turn_swaps_the_sides(rotation):
    width, height = extent(drawn().strokes)
    np.testing.assert_allclose(extent(drawn(Style(rotation=rotation)).strokes), (height, width), atol=3)


def test_positive_angles_turn_anticlockwise():
    alpha = drawn(Style(rotation=25), lines=["HHHHH"]).alpha
    rows, columns = np.nonzero(alpha > 0.5)
    assert np.corrcoef(rows, columns)[0, 1] < -0.5


def test_italic_leans_to_the_right():
    alpha = drawn(Style(italic=0.3, size=48), lines=["I"]).alpha
    rows, columns = np.nonzero(alpha > 0.5)
    assert np.corrcoef(rows, columns)[0, 1] < -0.5


@pytest.mark.parametrize("curve", [12, -12])
def test_a_curve_moves_the_middle(curve):
    alpha = drawn(Style(curve=curve), lines=["HHHHHHH"]).alpha
    columns = np.flatnonzero(alpha.any(axis=0))
    centre = [np.mean(np.flatnonzero(alpha[:, part].max(axis=1) > 0.5)) for part in np.array_split(columns, 5)]
    ends = (centre[0] + centre[-1]) / 2
    assert np.sign(ends - centre[2]) == np.sign(curve)
    assert abs(ends - centre[2]) > 5


@pytest.mark.parametrize("perspective", [0.5, -0.5])
def test_perspective_scales_one_end(perspective):
    alpha = drawn(Style(perspective=perspective), lines=["HHHHH"]).alpha
    columns = np.flatnonzero((alpha > 0.5).any(axis=0))
    left, right = (extent(alpha[:, part] > 0.5)[1] for part in (columns[:8], columns[-8:]))
    assert np.sign(right - left) == np.sign(perspective)


def test_poisson_blending_on_a_flat_ground_is_plain_drawing():
    plain, blended = drawn(Style(outline=2)), drawn(Style(outline=2, poisson=True))
    np.testing.assert_allclose(blended.picture, plain.picture, atol=1e-4)


def test_poisson_blending_keeps_the_texture_under_the_text():
    ground = np.clip(0.5 + 0.1 * numpy_generator(0, "ground").normal(size=GREY.shape), 0, 1).astype(np.float32)
    blended, plain = (drawn(Style(size=48, colour=(0.8,) * 3, poisson=p), picture=ground, lines=["HH"]) for p in (1, 0))
    inside = plain.alpha > 0.99
    assert blended.picture[inside].std() > plain.picture[inside].std() + 0.05
    assert blended.picture[inside].mean() > ground[inside].mean() + 0.1


def test_rarer_texts_glow_are_faint_or_are_soft():
    usual = Style(size=40)
    looks = [rarer(numpy_generator(i, "rare"), usual) for i in range(90)]
    glowing = [s for s in looks if s.shadow == (0, 0) and s.shadow_blur > 1]
    faint = [s for s in looks if s.opacity < 0.4]
    soft = [s for s in looks if s.feather > 0]
    assert min(map(len, (glowing, faint, soft))) > 15
    assert len(glowing) + len(faint) + len(soft) == 90
    assert all(drawn(s) is not None for s in looks)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(8, 64), (8, 8), (3, 200)]))
def test_any_random_style_draws_any_random_text(seed, sizes):
    generator = numpy_generator(seed, "any")
    lines, style = words.lines_of(generator), random_style(generator, GREY, sizes=sizes)
    out = drawn(style, lines=lines)
    if out is not None:
        assert np.isfinite(out.picture).all()
        assert -1e-6 <= out.picture.min() <= out.picture.max() <= 1 + 1e-6
    again = random_style(numpy_generator(seed, "style"), GREY, sizes=sizes)
    assert again == random_style(numpy_generator(seed, "style"), GREY, sizes=sizes)


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [("outline", 0.27, 0.43), ("shadow", 0.22, 0.38), ("gradient", 0.01, 0.12), ("poisson", 0.001, 0.06)],
)
def test_random_styles_are_as_frequent_as_in_the_world(field, low, high):
    styles = [random_style(numpy_generator(i, "frequency"), GREY) for i in range(600)]
    assert low < np.mean([bool(getattr(s, field)) for s in styles]) < high


@pytest.mark.parametrize("ground", [BLACK, WHITE, (0.2, 0.5, 0.3)])
def test_most_random_texts_stand_out(ground):
    picture = np.broadcast_to(np.asarray(ground, np.float32), (96, 160, 3))
    styles = [random_style(numpy_generator(i, "contrast"), picture, sizes=(24, 24)) for i in range(60)]
    texts = [drawn(s, picture=picture) for s in styles]
    contrast = [0 if t is None else np.abs(t.picture - picture).max() for t in texts]
    assert np.mean(np.asarray(contrast) > 0.25) > 0.8


def test_a_style_is_frozen_and_names_its_fields():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Style().size = 3
    with pytest.raises(TypeError, match="colr"):
        Style(colr=RED)


def test_a_layer_is_drawn_once_for_many_places():
    layer = make_layer(["Hx"], Style(), font=None)
    assert layer.ink.shape == (*layer.alpha.shape, 3)
    assert layer.size == layer.alpha.shape[::-1]


def test_fonts_are_found_in_any_depth_and_counted_once(font_file):
    folder = font_file.parent.parent
    (folder / "copy.TTF").write_bytes(font_file.read_bytes())
    (folder / "torn.ttf").write_bytes(font_file.read_bytes()[:500])
    (folder / "empty.otf").touch()
    (folder / "readme.txt").write_text("no font")
    found = fonts.find_fonts([folder])
    assert found == [folder / "copy.TTF"]
    assert list(fonts.families(found)) == ["Aileron"]
    assert draw(GREY, ["Hx"], Style(), font=found[0], at=MIDDLE) is not None


def test_no_fonts_no_failure(tmp_path):
    assert fonts.find_fonts([tmp_path, tmp_path / "missing"]) == []
    assert fonts.split_fonts([]) == ([], [])
    assert fonts.load_font(None, 12.5).size == 12.5


def test_symbols_are_no_text(font_file, monkeypatch):
    fonts._find.cache_clear()
    shapes = fonts._shapes
    monkeypatch.setattr(fonts, "_shapes", lambda font: shapes(font) * (-1 if isinstance(font.path, str | Path) else 1))
    assert fonts.find_fonts([font_file.parent]) == []
    fonts._find.cache_clear()


@pytest.mark.parametrize("holdout", [0.0, 0.3, 1.0])
def test_a_family_is_on_one_side(monkeypatch, tmp_path, holdout):
    paths = [tmp_path / f"{name}-{face}.ttf" for name in "abcdefghijklmnopqrst" for face in ("Bold", "Thin")]
    monkeypatch.setattr(fonts, "family", lambda path: path.name.partition("-")[0])
    train, test = fonts.split_fonts(paths, holdout)
    assert sorted(train + test) == paths
    assert not set(fonts.families(train)) & set(fonts.families(test))
    assert len(test) == {0.0: 0, 1.0: 40}.get(holdout, len(test))
    assert fonts.split_fonts(paths[:6], holdout)[1] == [p for p in test if p in paths[:6]]


@pytest.mark.parametrize("make", [words.word, words.token])
def test_splits_share_no_word(make):
    made = {split: {make(numpy_generator(i, split), split) for i in range(300)} for split in ("train", "test")}
    assert not made["train"] & made["test"]
    for split, texts in made.items():
        assert {words.split_of(text.upper()) for text in texts} == {split}
        assert len(texts) > 100


def test_texts_are_made_of_words_of_their_split():
    for split in ("train", "test"):
        for i in range(200):
            for line in words.lines_of(numpy_generator(i, "lines"), split):
                plain = [w.strip("\"'()!?.,:*-#").lower() for w in line.split()]
                letters = [
                    w
                    for w in plain
                    if w.isalpha() and w.capitalize() not in words._MONTHS and w not in ("am", "pm", "c")
                ]
                assert {words.split_of(w) for w in letters} <= {split}


def test_texts_vary_and_can_be_drawn():
    texts = [words.lines_of(numpy_generator(i, "variety")) for i in range(400)]
    joined = ["\n".join(t) for t in texts]
    assert {len(t) for t in texts} == {1, 2, 3}
    assert all(line.strip() and line.isascii() and line.isprintable() for t in texts for line in t)
    assert set("".join(joined)) - {"\n"} - set(fonts.LETTERS) <= set(' $"#@*')
    for trait in (str.isupper, str.islower, str.istitle, lambda t: any(map(str.isdigit, t)), lambda t: t[-1] in "!?."):
        assert 0.02 < np.mean([trait(t) for t in joined]) < 0.7


def test_the_same_seed_gives_the_same_text():
    assert words.lines_of(numpy_generator(3, "x")) == words.lines_of(numpy_generator(3, "x"))
