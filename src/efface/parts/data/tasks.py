"""Give tasks: labelled pictures to train on, to choose on and to test on.

A task is made by the package, comes with scikit-learn, is read from a folder, or is built from one's own arrays. What
is chosen is chosen on the part ``val``, held out from the training examples; ``test`` is for the last word alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from efface.errors import DataError, UsageError
from efface.parts.data.labelled import Labelled, Pictures, arrays, digits, read_folder, split
from efface.parts.data.shapes import CLASSES, shapes
from efface.parts.nn.modes import mode
from efface.seeds import numpy_generator

Part = Literal["train", "val", "test"]

SHAPES = {"side": 32, "train": 6000, "test": 2000}
"""Side of the pictures that the package makes, and how many there are where nothing else is asked for."""
_CHUNK = 500  # pictures that are scored at once


@dataclass(frozen=True, eq=False)
class Examples:
    """Pictures with labels, and a source of batches.

    ``mean`` and ``std`` (c,) are those of the training pictures in [0, 1], by which every batch is standardised; left
    out, they are measured on these pictures. With ``augment`` each picture of a batch is moved by up to an eighth of
    its side, its edges mirrored, and half of them are turned left to right.
    """

    pictures: Pictures
    labels: NDArray[np.int64]
    mean: NDArray[np.float32] | None = None
    std: NDArray[np.float32] | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        if self.mean is None or self.std is None:
            mean, std = _moments(self.pictures)
            object.__setattr__(self, "mean", mean)
            object.__setattr__(self, "std", std)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, seed: int, step: int, count: int) -> dict[str, Tensor]:
        """Return batch ``step`` under ``seed``: ``picture`` (count, c, h, w), standardised, and ``label`` (count,).

        The batches walk through the examples in an order that is drawn anew for each time round, so every example is
        seen once before one is seen twice. Batch and augmentation are pure functions of the three arguments.
        """
        pictures = self.pictures[index := self.order(seed, step * count, count)]
        if self.augment:
            pictures = _augmented(pictures, numpy_generator(seed, step, "augment"))
        return self._standardised(pictures, self.labels[index])

    def take(self, index: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the examples numbered ``index`` as :meth:`batch` does, never augmented."""
        return self._standardised(self.pictures[index], self.labels[index])

    def order(self, seed: int, first: int, count: int) -> NDArray[np.int64]:
        """Return which examples stand at the places ``first`` to ``first + count - 1`` of the walk under ``seed``."""
        parts = []
        while count > 0:
            time, start = divmod(first, len(self))
            parts.append(_permutation(len(self), seed, time)[start : start + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _standardised(self, pictures: NDArray, labels: NDArray[np.int64]) -> dict[str, Tensor]:
        assert self.mean is not None
        assert self.std is not None
        full = _full_scale(pictures)
        mean, scale = (torch.from_numpy(v)[:, None, None] for v in (full * self.mean, 1 / (full * self.std)))
        x = torch.from_numpy(pictures).to(
            torch.float32, memory_format=torch.channels_last
        )  # convolutions are faster so
        return {"picture": x.sub_(mean).mul_(scale), "label": torch.from_numpy(labels)}


@dataclass(frozen=True)
class Score:
    """How well a network does: share of pictures named rightly, in [0, 1], and mean loss (without smoothing)."""

    accuracy: float
    loss: float


@dataclass(frozen=True, eq=False)
class Task:
    """Name what pictures show: three disjoint parts of one set of labelled pictures."""

    name: str
    train: Examples
    val: Examples
    test: Examples
    classes: tuple[str, ...]
    smoothing: float = field(default=0.0, kw_only=True)
    """Share of the target that is spread over all classes in the training loss."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture."""
        c, h, w = self.train.pictures[np.zeros(1, np.int64)].shape[1:]
        return c, h, w

    @classmethod
    def from_arrays(
        cls,
        train: tuple[ArrayLike, ArrayLike],
        test: tuple[ArrayLike, ArrayLike],
        val: tuple[ArrayLike, ArrayLike] | None = None,
        *,
        name: str = "arrays",
        classes: Sequence[str] | None = None,
        augment: bool = False,
        smoothing: float = 0.0,
        seed: int = 0,
    ) -> Task:
        """Build a task from pairs of pictures and labels.

        Pictures are (n, c, h, w) or (n, h, w), uint8 or float in [0, 1]; labels (n,) count from 0. Without ``val`` a
        tenth of the training examples, at most 5 000, is held out. Arrays that do not fit raise :class:`DataError`.
        """
        given = [arrays(*pair, where=f"{name}, {part}") for part, pair in (("train", train), ("test", test))]
        held = split(given[0], seed) if val is None else (given[0], arrays(*val, where=f"{name}, val"))
        known = max(int(part.labels.max()) for part in (*held, given[1])) + 1
        names = tuple(map(str, range(known))) if classes is None else tuple(classes)
        if len(names) < known:
            raise DataError(f"has labels up to {known - 1}, but {len(names)} classes", where=name, fix="Name each one")
        return _task(name, (*held, given[1]), names, augment=augment, smoothing=smoothing)

    def check(self, net: nn.Module) -> None:
        """Raise :class:`UsageError` unless ``net`` takes the pictures, and gives a logit for each class at least."""
        fix = "Give data of the kind that the model was trained on"
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        try:
            with torch.inference_mode(), mode(net, training=False):
                shape = tuple(logits(net, self.test.take(np.arange(2))["picture"].to(device)).shape)
        except Exception as error:  # the model is the user's, and may raise anything
            what = f"the model does not take pictures {self.shape}: {str(error).partition(chr(10))[0]}"
            raise UsageError(what, where=self.name, fix=fix) from error
        if len(shape) != 2 or shape[1] < len(self.classes):
            what = f"the model gives {shape} for two pictures of {len(self.classes)} classes"
            raise UsageError(what, where=self.name, fix=fix)

    def loss(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean cross-entropy of ``net`` on ``batch``, with the task's label smoothing."""
        return F.cross_entropy(self._logits(net, batch), batch["label"], label_smoothing=self.smoothing)

    def score(self, net: nn.Module, split: Part = "test", limit: int | None = None) -> Score:
        """Score ``net`` in evaluation mode on the part ``split``, or on ``limit`` examples drawn from it.

        The examples drawn are always the same ones, and the modes of the network are left as they were.
        """
        examples: Examples = getattr(self, split)
        index = np.arange(len(examples)) if limit is None else examples.order(0, 0, min(limit, len(examples)))
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        right, loss = 0, 0.0
        with torch.inference_mode(), mode(net, training=False):
            for start in range(0, len(index), _CHUNK):
                batch = {k: v.to(device) for k, v in examples.take(index[start : start + _CHUNK]).items()}
                found = self._logits(net, batch)
                right += int((found.argmax(1) == batch["label"]).sum())
                loss += float(F.cross_entropy(found, batch["label"], reduction="sum"))
        return Score(right / len(index), loss / len(index))

    def _logits(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found = logits(net, batch["picture"])
        if found.ndim != 2 or found.shape[1] < len(self.classes):
            what = f"the network gives {tuple(found.shape)}, not logits of {len(self.classes)} classes"
            raise DataError(what, where=self.name, fix="Give a network whose output is (b, classes)")
        return found


def logits(net: nn.Module, pictures: Tensor) -> Tensor:
    """Return what ``net`` makes of ``pictures``, in float32; a transformers output gives its ``logits``."""
    made = net(pictures)
    return getattr(made, "logits", made).float()


@lru_cache(maxsize=4)
def task(
    where: str | Path | None = None,
    *,
    side: int | None = None,
    grey: bool = False,
    limit: int | None = None,
    augment: bool = True,
    seed: int = 0,
) -> Task:
    """Find a task.

    None or ``"shapes"`` is made by the package (ten shapes in noise), ``"digits"`` comes with scikit-learn (8x8, grey),
    anything else is a folder: parquet files in the form of Hugging Face's image data sets, such as CIFAR-10, or one
    folder of pictures per class in ``train`` and ``test``.

    Pictures are brought to ``side`` by area, and to one channel with ``grey``; ``limit`` takes that many training
    examples, spread evenly over the classes. ``seed`` draws what is held out, and the shapes. ``augment`` moves and
    mirrors training pictures, but never digits.

    Raises
    ------
    DataError
        There is no such folder, or it does not hold what is told above; the message says how to get it.
    """
    for name, value in (("side", side), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{value} is not positive", where=name)
    if where is None or where == "shapes":
        whole = shapes(limit or SHAPES["train"], SHAPES["test"], side=side or SHAPES["side"], grey=grey, seed=seed)
        return _task("shapes", whole, CLASSES, augment=augment)
    if where == "digits":
        train, test, names = digits(side, seed)
        augment = False
    else:
        train, test, names = read_folder(Path(where), side=side, grey=grey)
    parts = [part.decoded() for part in (*split(train, seed, limit), test)]
    return _task(Path(where).resolve().name, parts, names, augment=augment)


def _task(
    name: str, parts: Sequence[Labelled], classes: Sequence[str], *, augment: bool, smoothing: float = 0.0
) -> Task:
    shapes = {part.pictures[np.zeros(1, np.int64)].shape[1:] for part in parts}
    if len(shapes) > 1:
        raise DataError(f"parts differ in the shape of their pictures: {sorted(shapes)}", where=name)
    train = Examples(parts[0].pictures, parts[0].labels, augment=augment)
    val, test = (Examples(part.pictures, part.labels, train.mean, train.std) for part in parts[1:])
    return Task(name, train, val, test, tuple(classes), smoothing=smoothing)


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, time: int) -> NDArray[np.int64]:
    order = numpy_generator(seed, "order", time).permutation(count)
    order.setflags(write=False)  # all who ask are given this one
    return order


def _moments(pictures: Pictures, most: int = 5000) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation (c,) in [0, 1] of evenly spread pictures, at most ``most``."""
    some = pictures[np.unique(np.linspace(0, len(pictures) - 1, min(most, len(pictures))).astype(np.int64))]
    full = _full_scale(some)
    mean = np.mean(some, (0, 2, 3), dtype=np.float64) / full
    std = np.std(some, (0, 2, 3), dtype=np.float64) / full
    return np.asarray(mean, np.float32), np.maximum(std, 1 / 255).astype(np.float32)


def _full_scale(pictures: NDArray) -> int:
    return 255 if pictures.dtype == np.uint8 else 1


def _augmented(pictures: NDArray, generator: np.random.Generator) -> NDArray:
    count, _, height, width = pictures.shape
    reach = min(height, width) // 8
    padded = np.pad(pictures, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    down, right = generator.integers(2 * reach + 1, size=(2, count))
    moved = windows[np.arange(count), :, down, right]  # (b, c, h, w)
    turned = generator.random(count) < 0.5
    moved[turned] = moved[turned, :, :, ::-1]
    return moved
