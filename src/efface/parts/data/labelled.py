"""Read labelled pictures: parquet files in Hugging Face's form, a folder per class, scikit-learn's digits, arrays."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from efface.errors import DataError
from efface.extras import need
from efface.parts.data.photos import SUFFIXES
from efface.seeds import numpy_generator

Index = NDArray[np.int64]
Part = tuple[Sequence[Path | bytes], Index, tuple[str, ...]]
"""Files of pictures, their labels, and the names of the classes where they are told."""

HOW = (
    'Give "shapes", "digits" or a folder. It holds either parquet files of a Hugging Face image data set, with train '
    "and test in their names (CIFAR-10: hf download uoft-cs/cifar10 --repo-type dataset --local-dir FOLDER), or a "
    "folder of pictures for each class: train/CLASS/1.png, test/CLASS/1.png"
)
TRAIN, TEST = ("train", "training"), ("test", "val", "valid", "validation", "dev")
"""Words in a path by which a part is known; the first word that is found counts."""
PICTURES, LABELS = ("img", "image"), ("label", "labels", "fine_label")
"""Names of columns."""
IN_MEMORY = 4 << 30
"""Bytes up to which decoded pictures are kept in memory."""
HELD_OUT = 5000
"""Most examples that are held out to choose on; a tenth of fewer."""


class Pictures(Protocol):
    """Pictures in memory or encoded; an index array of n gives (n, c, h, w), uint8 or float in [0, 1]."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Index, /) -> NDArray: ...


@dataclass(frozen=True, eq=False)
class Encoded:
    """Pictures as paths or as the bytes of files, decoded in threads when they are asked for.

    With ``side`` the largest square in the middle of each is brought to that size by area.
    """

    files: Sequence[Path | bytes]
    side: int | None
    grey: bool
    where: Path

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Index) -> NDArray:
        heaps = np.array_split(index, len(index) // 32 or 1)  # handing each over by itself costs more than decoding it
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            pictures = [x for heap in threads.map(lambda heap: [self._decode(i) for i in heap], heaps) for x in heap]
        if len({picture.shape for picture in pictures}) > 1:
            raise DataError("pictures differ in size", where=self.where, fix="Give the side to bring them to")
        return np.stack(pictures)  # (n, c, h, w)

    def _decode(self, number: int) -> NDArray:
        file = self.files[number]
        name = f"{self.where}, picture {number}" if isinstance(file, bytes) else file
        data = np.frombuffer(file if isinstance(file, bytes) else file.read_bytes(), np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if self.grey else cv2.IMREAD_COLOR) if data.size else None
        if picture is None:
            raise DataError("cannot be decoded", where=name, fix="Remove or replace it")
        if self.side is not None:
            picture = _square(picture, self.side)
        return picture[None] if self.grey else picture[:, :, ::-1].transpose(2, 0, 1)  # BGR to RGB


@dataclass(frozen=True, eq=False)
class Labelled:
    """Pictures and their labels (n,), which count from 0."""

    pictures: Pictures
    labels: Index

    def pick(self, index: Index) -> Labelled:
        """Return the examples numbered ``index``; none is decoded."""
        if isinstance(self.pictures, Encoded):
            files = [self.pictures.files[i] for i in index]
            chosen: Pictures = Encoded(files, self.pictures.side, self.pictures.grey, self.pictures.where)
        else:
            chosen = self.pictures[index]
        return Labelled(chosen, self.labels[index])

    def decoded(self) -> Labelled:
        """Return the same examples with their pictures in memory, unless they take more than :data:`IN_MEMORY`."""
        every = np.arange(len(self.labels))
        if isinstance(self.pictures, np.ndarray) or self.pictures[every[:1]].nbytes * len(every) > IN_MEMORY:
            return self
        return Labelled(self.pictures[every], self.labels)


def split(whole: Labelled, seed: int, limit: int | None = None) -> tuple[Labelled, Labelled]:
    """Return the examples to train on, at most ``limit``, and a tenth as many, at most 5 000, to choose on.

    Both are spread as evenly over the classes as their numbers allow.
    """
    order = balanced(whole.labels, seed)
    held = max(1, min(HELD_OUT, len(order) // 10, limit // 10 if limit else len(order)))
    if len(order) <= held:
        raise DataError("holds too few examples", where=f"{len(order)} in all", fix="Add some")
    return whole.pick(order[held:][:limit]), whole.pick(order[:held])


def balanced(labels: Index, seed: int) -> Index:
    """Return a random order of the examples in which the first n, for any n, are spread evenly over the classes."""
    order = numpy_generator(seed, "split").permutation(len(labels))
    sorted_ = np.argsort(labels[order], kind="stable")
    counts = np.bincount(labels)
    rank = np.empty(len(labels), np.int64)  # of each example among those of its class
    rank[sorted_] = np.concatenate([np.arange(count) for count in counts])
    return order[np.argsort(rank, kind="stable")]


def arrays(pictures: ArrayLike, labels: ArrayLike, where: str) -> Labelled:
    """Check pictures (n, c, h, w) or (n, h, w) and labels (n,), and return them as :class:`Labelled`."""
    x, y = np.asarray(pictures), np.asarray(labels)
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim != 4 or y.shape != x.shape[:1] or 0 in x.shape:
        fix = "Give pictures (n, c, h, w) or (n, h, w) and labels (n,)"
        raise DataError(f"pictures {x.shape} and labels {y.shape} do not fit", where=where, fix=fix)
    if x.dtype != np.uint8:
        x = x.astype(np.float32)
        if not (x.min() >= 0 and x.max() <= 1):
            raise DataError("pictures are outside [0, 1]", where=where, fix="Scale them, or give uint8")
    if y.dtype.kind not in "iu" or y.min() < 0:
        raise DataError("labels are not whole numbers from 0 on", where=where, fix="Take out what has no label")
    return Labelled(x, y.astype(np.int64))


def digits(side: int | None, seed: int) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """Return scikit-learn's 1 797 digits, grey and 8x8: four fifths to train on, one to test on, and their names."""
    given = need("sklearn.datasets", extra="data", job="the task digits").load_digits()
    pictures = np.round(given.images * (255 / 16)).astype(np.uint8)  # (n, 8, 8)
    if side is not None:
        pictures = np.stack([_square(picture, side) for picture in pictures])
    whole = Labelled(pictures[:, None], given.target.astype(np.int64))
    order = balanced(whole.labels, seed)
    tests = len(order) // 5
    return whole.pick(order[tests:]), whole.pick(order[:tests]), tuple(map(str, given.target_names))


def read_folder(folder: Path, *, side: int | None, grey: bool) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """Return what ``folder`` holds to train on and to test on, and the names of the classes.

    Raises
    ------
    DataError
        There is no such folder, or it is not of one of the two forms; the message describes them.
    """
    if not folder.is_dir():
        raise DataError("there is no such folder", where=folder, fix=HOW)
    files = sorted(folder.rglob("*.parquet"))
    if files:
        parts = [_parquet([f for f in files if _part(f.relative_to(folder)) == p], folder) for p in (TRAIN, TEST)]
    else:
        parts = [_classes(folder, words) for words in (TRAIN, TEST)]
    known = 1 + max(int(labels.max()) for _, labels, _ in parts)
    names = parts[0][2] or tuple(map(str, range(known)))
    if parts[1][2] not in ((), names) or len(names) < known:
        raise DataError("train and test differ in their classes", where=folder, fix="Give both the same ones")
    train, test = (Labelled(Encoded(paths, side, grey, folder), labels) for paths, labels, _ in parts)
    return train, test, names


def _part(path: Path) -> tuple[str, ...] | None:
    words = re.split(r"[-_./]", path.with_suffix("").as_posix().lower())
    return next((kind for kind in (TRAIN, TEST) for word in kind if word in words), None)


def _parquet(files: list[Path], folder: Path) -> Part:
    need("pyarrow", extra="data", job="reading parquet files")
    from pyarrow import ArrowException, compute, parquet

    if not files:
        raise DataError("holds no parquet file of both train and test", where=folder, fix=HOW)
    try:
        schema = parquet.read_schema(files[0])
        picture = next(name for name in PICTURES if name in schema.names)
        label = next(name for name in LABELS if name in schema.names)
        tables = [parquet.read_table(file, columns=[picture, label]) for file in files]
        found = [
            data
            for table in tables
            for chunk in table[picture].chunks
            for data in compute.struct_field(chunk, "bytes").to_pylist()
        ]
        labels = np.concatenate([table[label].to_numpy() for table in tables])
    except (ArrowException, OSError, StopIteration, KeyError) as error:
        what = f"has no columns of pictures and labels as they should be ({type(error).__name__}: {error})"
        raise DataError(what, where=files[0], fix=HOW) from error
    if labels.dtype.kind not in "iu" or labels.min() < 0 or None in found:
        raise DataError("some pictures have no label, or are not in the file", where=files[0], fix=HOW)
    return found, labels.astype(np.int64), _names(schema.metadata, label)


def _names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    try:
        values: Any = json.loads((metadata or {})[b"huggingface"])
        return tuple(values["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _classes(folder: Path, words: Sequence[str]) -> Part:
    inside = next((folder / word for word in words if (folder / word).is_dir()), None)
    if inside is None:
        raise DataError(f"holds no parquet file and no folder {words[0]}", where=folder, fix=HOW)
    names = sorted(path.name for path in inside.iterdir() if path.is_dir())
    files = [sorted(p for p in (inside / n).iterdir() if p.suffix.lower() in SUFFIXES) for n in names]
    if not names or not all(files):
        raise DataError("holds no folder of pictures per class, or an empty one", where=inside, fix=HOW)
    labels = np.repeat(np.arange(len(names)), [len(group) for group in files])
    return [path for group in files for path in group], labels, tuple(names)


def _square(picture: NDArray, side: int) -> NDArray:
    """Bring the largest square in the middle of (h, w) or (h, w, c) to ``side``, by area."""
    height, width = picture.shape[:2]
    room = min(height, width)
    top, left = (height - room) // 2, (width - room) // 2
    return cv2.resize(picture[top : top + room, left : left + room], (side, side), interpolation=cv2.INTER_AREA)
