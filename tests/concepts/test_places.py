"""Boxes become cells, words and weights, and words fit into the prompt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny

from efface.errors import UsageError
from efface.parts.concepts.places import Grid, accepted, iou, mirrored, recall, shares, tokens
from efface.parts.concepts.vocabulary import grown

number = st.floats(-0.5, 1.5)
boxes = st.lists(st.tuples(number, number, number, number), max_size=3)
grids = st.builds(Grid, st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        ((0.1, 0.1, 0.2, 0.2), {(0, 0)}),
        ((0.25, 0.5, 0.5, 0.75), {(2, 1)}),  # on the borders of a cell
        ((0.2, 0.1, 0.3, 0.2), {(0, 0), (0, 1)}),
        ((0.9, 0.9, 1.0, 1.0), {(3, 3)}),
        ((0, 0, 1, 1), {(r, c) for r in range(4) for c in range(4)}),
        ((-1, 0.8, 0.1, 3), {(3, 0)}),
        ((1.2, 0, 1.5, 1), set()),
        ((0.5, 0.1, 0.5, 0.9), set()),
        ((0.6, 0.1, 0.4, 0.9), set()),
    ],
)
def test_a_box_touches_cells(box, cells):
    assert set(Grid(4, 4).cells([box])) == cells


def test_cells_with_most_of_the_box_come_first():
    assert Grid(1, 4).cells([(0.2, 0, 0.7, 1)]) == [(0, 1), (0, 2), (0, 0)]
    assert Grid(2, 2).cells([]) == []


@given(st.integers(1, 9), st.sampled_from([1, 2, 4, 8]), boxes)
def test_mirrored_boxes_touch_mirrored_cells(rows, columns, given):
    grid, even = Grid(rows, columns), np.round(np.array(given, float).reshape(-1, 4) * 64) / 64
    there = grid.cells(mirrored(even))
    assert {(row, columns - 1 - column) for row, column in grid.cells(even)} == set(there)


@given(grids, boxes, st.floats(0.1, 10), st.integers(1, 20), st.integers(1, 20))
def test_weights_are_one_on_average(grid, given, alpha, height, width):
    weights = grid.weights(given, (height, width), alpha)
    assert weights.shape == (height, width)
    assert weights.sum() == pytest.approx(height * width, rel=1e-4)
    if alpha != 1 and len(set(weights.ravel().tolist())) == 2:
        assert weights.max() == pytest.approx(weights.min() * max(alpha, 1 / alpha), rel=1e-4)


def test_places_of_the_concept_count_less():
    weights = Grid(4, 4).weights([(0, 0, 0.25, 0.25)], (8, 8), 2.0)
    assert weights[:2, :2] == pytest.approx(64 / (4 + 2 * 60))
    assert weights[2:] == pytest.approx(2 * 64 / (4 + 2 * 60))
    for none_or_all in ([], [(0, 0, 1, 1)]):
        assert (Grid(4, 4).weights(none_or_all, (8, 8), 5.0) == 1).all()
    assert Grid(3, 3).weights([(0, 0, 0.1, 0.1)], (4, 4), 2.0)[:2, :2].max() < 1  # cells cut places in two
    with pytest.raises(UsageError, match="is no weight"):
        Grid().weights([], (8, 8), 0.0)


def test_words_name_the_concept_and_its_cells():
    grid = Grid(1, 2, "QR code")
    assert grid.words == ("<qr-code-0-0>", "<qr-code-0-1>")
    assert Grid(1, 1, "水", fresh=True).words == ("<水>", "<水-0-0>")
    assert Grid(1, 1, "!?").words == ("<concept-0-0>",)
    counts = {(0, 1): 5, (0, 0): 2}
    assert grid.negative(counts, 10) == "QR code <qr-code-0-1> <qr-code-0-0>"
    assert grid.negative(counts, 1, "all") == "QR code <qr-code-0-0>"
    assert grid.negative({}, 10, [(0, 1)]) == "QR code <qr-code-0-1>"
    assert grid.negative(counts, -3) == "QR code"


@given(st.integers(0, 30), st.integers(0, 16), st.sampled_from(["circle", "zqzqzq", "q" * 30]))
def test_a_prompt_always_fits(words, count, name):
    grid, tokenizer = _words(name)
    cells = grid.cells([(0, 0, 1, 1)])[:count]
    ids, dropped = tokens(tokenizer, grid, "red " * words, cells, np.random.default_rng(0))
    assert len(ids) == tokenizer.model_max_length
    assert (ids[0], tokenizer.eos_token_id in ids) == (tokenizer.bos_token_id, True)
    told = [i for i in ids if i >= len(tokenizer) - 16]
    assert len(told) == count - dropped or name == "q" * 30
    assert told == sorted(told)
    if not cells:
        assert ids == tokenizer("red " * words, padding="max_length", truncation=True).input_ids


_KNOWN = {}


def _words(name):
    if name not in _KNOWN:
        grid = Grid(4, 4, name)
        _KNOWN[name] = grid, grown(tiny().tokenizer, grid.words)
    return _KNOWN[name]


def test_every_cell_is_told_in_its_turn():
    grid, tokenizer = _words("circle")
    draws, seen = np.random.default_rng(0), set()
    for _ in range(40):
        ids, dropped = tokens(tokenizer, grid, "a red star on white", grid.cells([(0, 0, 1, 1)]), draws)
        assert dropped == 8
        seen |= {i for i in ids if i >= len(tokenizer) - 16}
    assert len(seen) == 16


def test_detections_become_boxes():
    found = [(0.9, (-3, 2, 10.4, 8)), (0.2, (0, 0, 5, 5)), 0.8]
    assert accepted(found, (20, 30), 0.5).tolist() == [[0, 2, 10, 8], [0, 0, 30, 20]]
    assert accepted([], (20, 30), 0.5).shape == (0, 4)
    assert shares([[0, 2, 15, 40]], (20, 30)).tolist() == [[0, 0.1, 0.5, 1]]


def test_a_detector_is_measured_by_what_it_misses():
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    true = [[(0, 0, 10, 10)], [(0, 0, 4, 4)], []]
    assert recall([[(1, 0, 10, 10)], [], [(0, 0, 9, 9)]], true) == 0.5
    assert recall([[], [], []], [[], [], []]) == 1
