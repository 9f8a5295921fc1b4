"""Score erased pictures against the truth: the whole erasing table, for files, folders or arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np

from efface.errors import InputError, UsageError
from efface.io.images import read_picture
from efface.parts.metrics.erasing import (
    GROW,
    grow_mask,
    is_composited,
    keep_err,
    kept_region,
    legacy_row,
    region_row,
    rim,
    split_texts,
    whole_row,
)
from efface.parts.metrics.features import Features, mmd
from efface.parts.metrics.pairs import Files, Item, Source, matched
from efface.parts.metrics.pixels import LEGACY_SIDE, Mask, Pixels, assert_same_size, binary_mask, eight_bits
from efface.parts.metrics.residue import PROTOCOLS, Detector, Residue, found_polygons, house_detector
from efface.parts.metrics.residue import residue as count_residue
from efface.parts.metrics.scores import Row, Scores


@dataclass(frozen=True)
class _Case:
    """One output and what belongs to it, read from the disk."""

    output: Pixels
    truth: Pixels | None
    mask: Mask | None
    source: Pixels | None


def score(
    outputs: Source,
    *,
    truth: Source | None = None,
    masks: Source | None = None,
    inputs: Source | None = None,
    legacy: bool = False,
    residue: bool = False,
    detector: Detector = house_detector,
    features: Features | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Scores:
    """Score ``outputs`` against the clean ``truth``, picture by picture.

    Parameters
    ----------
    outputs, truth, masks, inputs:
        Folders, single files, or lists of arrays of the same order. Files match by their path in the folder without the
        ending, where ``photo_clean`` belongs to ``photo``. ``masks`` add the measures inside and outside, ``inputs``
        with them the rim. Without ``truth``, ``inputs`` are needed: then only text residue and rim are scored.
    legacy:
        Add the whole picture in the forms of published tables, as ``legacy_psnr`` and so on: 8 bits, resized to 512 x
        512, constant area, pictures with an MSE of 0 left out of the means. Where an output differs from its truth in
        size, these are all that there is of the whole picture.
    residue:
        Add what ``detector`` still finds of the texts that it finds on the inputs: of those that are at least half in
        the mask where there is one; how far the others changed becomes ``keep_err``.
    features:
        Add ``feat_kid`` of the two sets on these features, such as
        :func:`efface.parts.metrics.features.random_features`.
    progress:
        Called after each picture with the share of the work that is done, and the name of the picture.

    Raises
    ------
    UsageError
        For arguments that do not go together.
    InputError
        For files without partner, which are listed, and for pictures that cannot be read or differ in size.
    """
    residue = residue or truth is None
    _check_call(truth, inputs, legacy=legacy, residue=residue, features=features)
    matches = matched(outputs, truth=truth, masks=masks, inputs=inputs)
    rows, residues, vectors = [], [], []
    for done, files in enumerate(matches, 1):
        try:
            case = _read(files)
            values = _pair_values(case, legacy=legacy)
            if residue:
                counts, extra = _residue(case, detector)
                residues.append(counts)
                values |= extra
            if features is not None and case.truth is not None:
                vectors.append((features(case.output), features(case.truth)))
            rows.append(Row(files.name, values, skipped=values.get("legacy_mse") == 0, composited=_composited(case)))
        except InputError as error:
            error.where = error.where or files.name
            raise
        if progress is not None:
            progress(done / len(matches), files.name)
    whole_set = _pooled(residues)
    if vectors:
        whole_set["feat_kid"] = mmd(*(np.stack(side) for side in zip(*vectors, strict=True)))
    return Scores(rows, _forms(rows, legacy=legacy, scored=truth is not None, residue=residue), whole_set)


def _check_call(truth: object, inputs: object, *, legacy: bool, residue: bool, features: object) -> None:
    if truth is None and inputs is None:
        fix = "Give the clean pictures (--truth) or the pictures before (--inputs)"
        raise UsageError("there is nothing to score against", fix=fix)
    if truth is None and (legacy or features is not None):
        raise UsageError("legacy forms and feat_kid compare with clean pictures", fix="Give them (--truth)")
    if residue and inputs is None:
        raise UsageError("text residue is counted against the texts of the inputs", fix="Give these too (--inputs)")


def _pair_values(case: _Case, *, legacy: bool) -> dict[str, float]:
    values: dict[str, float] = {}
    if case.truth is not None:
        if not legacy or case.output.shape[:2] == case.truth.shape[:2]:
            values |= whole_row(case.output, case.truth)
        if legacy:
            row = legacy_row(case.output, case.truth)
            values |= {f"legacy_{name.removesuffix('_legacy')}": value for name, value in row.items()}
        if case.mask is not None:
            values |= region_row(case.output, case.truth, case.mask)
    if case.source is not None and case.mask is not None:
        values["rim"] = rim(case.output, case.source, case.mask)
    return values


def _residue(case: _Case, detector: Detector) -> tuple[dict[str, Residue], dict[str, float]]:
    """Return the residue under each protocol, and the values that it adds to the picture's row."""
    assert case.source is not None
    assert_same_size(case.output, case.source, names="output and input")
    if case.truth is not None:
        assert_same_size(case.output, case.truth)
    on_source = texts = found_polygons(case.source, detector)
    extra: dict[str, float] = {}
    if case.mask is not None:
        texts, kept = split_texts(on_source, case.mask)
        extra["keep_err"] = keep_err(case.output, case.source, kept_region(kept, case.mask))
    on_output = found_polygons(case.output, detector)
    on_truth = None if case.truth is None else found_polygons(case.truth, detector)
    counts = {
        protocol: count_residue(texts, output=on_output, source=on_source, truth=on_truth, match=match)
        for protocol, match in PROTOCOLS.items()
    }
    return counts, {**extra, "r_det": counts["icdar15"].r_out}


def _composited(case: _Case) -> bool | None:
    if case.mask is None or case.source is None:
        return None
    return is_composited(case.output, case.source, grow_mask(case.mask, GROW))


def _pooled(residues: list[dict[str, Residue]]) -> dict[str, float]:
    """Return the recalls over the texts of all pictures together, under each protocol."""
    values: dict[str, float] = {}
    for protocol in PROTOCOLS if residues else ():
        total = reduce(add, (counts[protocol] for counts in residues))
        recalls = {"r_out": total.r_out, "r_in": total.r_in, "r_truth": total.r_truth, "erased": total.erased}
        values |= {"texts": total.texts, **{f"{name}_{protocol}": value for name, value in recalls.items()}}
    return values


def _forms(rows: list[Row], *, legacy: bool, scored: bool, residue: bool) -> dict[str, str]:
    forms = {}
    if scored:
        forms["whole picture"] = "correct"
        forms["regions"] = f"correct, mask grown by {GROW} px for psnr_m and psnr_bg"
    if legacy:
        forms["legacy"] = f"8 bits, {LEGACY_SIDE} px square by bicubic resizing, pictures with an MSE of 0 left out"
    known = [row.composited for row in rows if row.composited is not None]
    forms["composited"] = f"{sum(known)} of {len(known)} pictures" if known else "not known (needs masks and inputs)"
    if residue:
        forms["residue"] = "texts as found on the inputs; recalls pooled over all texts"
    return forms


def _read(files: Files) -> _Case:
    return _Case(
        output=_stored(files.output),
        truth=None if files.truth is None else _stored(files.truth),
        mask=None if files.mask is None else binary_mask(_pixels(files.mask)),
        source=None if files.source is None else _stored(files.source),
    )


def _stored(item: Item) -> Pixels:
    """Return a picture as it is, or rounded to 8 bits if it is in floating point."""
    pixels = _pixels(item)
    return eight_bits(pixels) if np.issubdtype(pixels.dtype, np.floating) else pixels


def _pixels(item: Item) -> Pixels:
    return read_picture(item).pixels if isinstance(item, Path) else item
