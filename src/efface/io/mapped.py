"""Read and change the tensors of safetensors files where they lie, without a copy in memory."""

from __future__ import annotations

import json
import math
import mmap
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import WeightsError
from efface.io.atomic import inside
from efface.io.weights import refuse_pickle

if TYPE_CHECKING:
    from torch import Tensor

INDEX = ".safetensors.index.json"
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
"""What safetensors calls the dtypes of torch."""


def shards(path: Path | str) -> list[Path]:
    """Return the files of a checkpoint: ``path`` itself, or those that it names where it is an index of shards.

    Raises :class:`WeightsError` where a file is missing, pickled, or outside the folder of the index.
    """
    path = Path(path)
    names = [path.name]
    if path.suffix == ".json":
        try:
            names = sorted(set(json.loads(path.read_text("utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(f"is no index of shards ({error})", where=path, fix="Download it again") from error
    files = [path.parent / name for name in names]
    for file in files:
        if not file.is_file():
            raise WeightsError("there is no such file", where=file, fix="Name a safetensors file, or its index")
        if len(files) > 1 and not inside(path.parent, file):
            raise WeightsError("lies outside the folder of its index", where=file, fix="Put the file itself there")
        refuse_pickle(file)
    return files


def mapped(files: Sequence[Path], *, write: bool = False) -> dict[str, Tensor]:
    """Return the tensors of safetensors ``files`` as views of the files: a page is read when it is first touched.

    With ``write``, what is written into a tensor is written into its file; without, it stays in memory. Raises
    :class:`WeightsError` where a file is damaged or two of them hold one name.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = _map(file, mmap.ACCESS_WRITE if write else mmap.ACCESS_COPY)
        if twice := sorted(tensors.keys() & found.keys()):
            raise WeightsError(f"{twice[0]} is in another shard too", where=file, fix="Download the checkpoint again")
        tensors |= found
    return tensors


def copy_checkpoint(path: Path | str, folder: Path | str) -> Path:
    """Copy the checkpoint ``path`` into ``folder``, its index included; return its path there."""
    path, folder = Path(path), Path(folder)
    for file in {path, *shards(path)}:
        target = folder / file.relative_to(path.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return folder / path.name


def dtypes(path: Path | str) -> set[str]:
    """Return the number formats of the floating tensors of a checkpoint, as torch calls them."""
    entries = [entry for file in shards(path) for entry in _header(file)[0].values()]
    return {DTYPES[entry["dtype"]] for entry in entries if "F" in entry["dtype"]}


def _map(file: Path, access: int) -> dict[str, Tensor]:
    import torch

    header, start = _header(file)
    with file.open("r+b" if access == mmap.ACCESS_WRITE else "rb") as opened:
        memory = mmap.mmap(opened.fileno(), 0, access=access)
    tensors = {}
    for name, entry in header.items():
        dtype, shape = getattr(torch, DTYPES[entry["dtype"]]), entry["shape"]
        count, offset = math.prod(shape), start + entry["data_offsets"][0]
        flat = (
            torch.frombuffer(memory, dtype=dtype, count=count, offset=offset) if count else torch.empty(0, dtype=dtype)
        )
        tensors[name] = flat.view(shape)
    return tensors


def _header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return what the file says of each tensor, and where its data begins."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:  # proves sizes, offsets and names
            opened.keys()
        with file.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        what = f"is not a whole safetensors file ({str(error).partition(chr(10))[0]})"
        raise WeightsError(what, where=file, fix="Name a safetensors file, or download this one again") from error
    header.pop("__metadata__", None)
    if unknown := sorted({entry["dtype"] for entry in header.values()} - DTYPES.keys()):
        raise WeightsError(f"holds numbers of the format {unknown[0]}", where=file, fix="Save it in another format")
    return header, 8 + length
