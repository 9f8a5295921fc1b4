"""Write a network as ONNX, and prove with onnxruntime that the file gives what the network gives."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from efface.errors import EffaceError, InputError
from efface.extras import need
from efface.io.atomic import check_target, output_error
from efface.parts.counting import dense_bytes
from efface.parts.graph.trace import first_line, quiet

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2}
"""Largest difference of outputs, as a share of the largest output, by the number format of the weights."""
ONE_FILE = 1 << 30
"""Bytes of weights above which they lie in a file of their own beside the graph."""
DATA = ".data"


@dataclass(frozen=True)
class Parity:
    """How near an ONNX file comes to its network."""

    path: Path
    batches: tuple[int, ...]
    """Batch sizes that were compared. One, where the batch size is part of the network."""
    difference: float
    """Largest difference of outputs, as a share of the largest output."""


def need_onnx() -> None:
    """Raise :class:`MissingExtraError` unless what writes ONNX is installed."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        need(module, extra="onnx", job="writing ONNX")


def export_onnx(model: nn.Module, args: tuple[Any, ...], path: Path | str, *, overwrite: bool = False) -> Parity:
    """Write ``model``, called with ``args``, to ``path`` for any batch size, and return what the comparison gave.

    The first tensor's first dimension is the batch, in all tensors that have its size there. The file is kept only if
    outputs agree within :data:`TOLERANCE` at that batch size and twice it. More than a gigabyte of weights goes to a
    second file ``path.data``. The model stays as it is.

    Raises
    ------
    MissingExtraError
        If onnx or onnxscript are not installed.
    InputError
        If an operation has no form in ONNX, or the file gives other outputs.
    OutputError
        If the file cannot be written.
    """
    need_onnx()
    path = Path(path)
    targets = path, path.with_name(path.name + DATA)
    for target in targets:
        check_target(target, overwrite=overwrite)
    if (parameter := next(model.parameters(), torch.empty(0))).dtype not in TOLERANCE:
        what = f"weights in {parameter.dtype} have no numbers in onnxruntime to compare with"
        raise InputError(what, where=path, fix="Turn the model to float32 or float16 first")
    with quiet(model):
        runs = [(args, model(*args)), *_doubled(model, args)]
        program = _converted(model, runs[-1][0], free=len(runs) > 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".efface-") as folder:
            new = Path(folder, path.name)
            program.save(new, external_data=dense_bytes(model) > ONE_FILE)
            difference = max(_difference(new, *run) for run in runs)
            if not difference <= TOLERANCE[parameter.dtype]:
                what = f"the ONNX file differs from the network by {difference:.1e} of the largest output"
                raise InputError(what, where=path, fix="It was not kept; please report the network")
            for target in reversed(targets):  # the graph last: it names the other
                if (made := Path(folder, target.name)).exists():
                    os.replace(made, target)
    except OSError as error:
        raise output_error(error, path) from error
    return Parity(path, tuple(_batch(given) for given, _ in runs), difference)


def _doubled(model: nn.Module, args: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the inputs with their batch twice, and what the model gives, unless it takes no other batch size."""
    size = _batch(args)

    def double(value: Any) -> Any:
        batched = isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
        return torch.cat([value, value.flip(0)]) if batched else value

    twice: tuple[Any, ...] = tree_map(double, args)
    with contextlib.suppress(Exception):  # the model is the user's, and may raise anything
        yield twice, model(*twice)


def _batch(args: tuple[Any, ...]) -> int:
    return next((len(value) for value in _tensors(args) if value.ndim), 0)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def _converted(model: nn.Module, args: tuple[Any, ...], *, free: bool) -> Any:
    """Return the program of torch's exporter; ``free``: the batch size may be any."""
    size = _batch(args)

    def dims(value: Any) -> Any:
        batched = free and isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
        return {0: torch.export.Dim.DYNAMIC} if batched else None

    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return torch.onnx.export(model, args, dynamo=True, dynamic_shapes=tree_map(dims, args), verbose=False)
    except Exception as error:  # a model may raise anything
        raise InputError(f"cannot be written as ONNX: {_why(error)}", where=type(model).__name__) from error
    finally:
        log.setLevel(level)


def _why(error: Exception) -> str:
    """Return the innermost reason, which names the operation."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    if match := re.search(r"No ONNX function found for .*op='([^']+)'", str(error)):
        return f"the operation {match[1]} has no form in it"
    return first_line(error)


def _difference(path: Path, args: tuple[Any, ...], outputs: Any) -> float:
    """Return by how much the outputs of the file differ, as a share of the largest, infinity where shapes do."""
    runtime = need("onnxruntime", extra="onnx", job="writing ONNX")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        feeds = {name: value.cpu().numpy() for name, value in zip(names, _tensors(args), strict=True)}
        found = [torch.from_numpy(output).double() for output in session.run(None, feeds)]
    except EffaceError:
        raise
    except Exception as error:  # onnxruntime's errors have no common class
        raise InputError(f"onnxruntime does not take the file: {first_line(error)}", where=path.name) from error
    wanted = [output.detach().cpu().double() for output in _tensors(outputs)]
    if [tuple(output.shape) for output in found] != [tuple(output.shape) for output in wanted]:
        return float("inf")
    largest = max((float(output.abs().max()) for output in wanted if output.numel()), default=0.0)
    away = max((float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True) if a.numel()), default=0.0)
    return away / largest if largest else away
