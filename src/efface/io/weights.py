"""Save and load weights as safetensors beside a JSON card; nothing is ever pickled."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import OutputError, WeightsError
from efface.io.atomic import atomic_write, inside

if TYPE_CHECKING:
    import torch

WEIGHTS, CARD = "weights.safetensors", "card.json"
_CHUNK = 1 << 22
_WRAPPERS = ("state_dict", "params_ema", "params", "model")  # the averaged weights before the raw ones


def save_weights(
    folder: Path | str,
    tensors: Mapping[str, torch.Tensor],
    card: Mapping[str, Any],
    *,
    overwrite: bool = False,
    files: tuple[str, str] = (WEIGHTS, CARD),
) -> None:
    """Write ``tensors`` and ``card`` into ``folder`` under the names ``files``, weights.safetensors and card.json.

    The card gets ``files``: the sha256 and size of each file. It is written last, so a folder without a card that fits
    its weights is incomplete, and :func:`load_weights` refuses it.

    Raises
    ------
    WeightsError
        If a tensor holds NaN or infinity.
    OutputError
        If the folder cannot be written, or holds weights already and ``overwrite`` is false.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weights_path, card_path = (Path(folder) / name for name in files)
    _refuse_nonfinite(tensors, Path(folder))
    # The inner file takes its name first: the weights, then the card.
    with (
        atomic_write(card_path, overwrite=overwrite) as card_file,
        atomic_write(weights_path, overwrite=overwrite) as weights_file,
    ):
        try:
            save_file(_separate(tensors), weights_file)
            weights_file.chmod(card_file.stat().st_mode & 0o777)  # safetensors lets the owner alone read
        except SafetensorError as error:
            raise OutputError(f"cannot be written ({error})", where=weights_path, fix="Check the disk") from error
        listed = {files[0]: {"sha256": _sha256(weights_file), "bytes": weights_file.stat().st_size}}
        card_file.write_text(json.dumps({**card, "files": listed}, indent=2, ensure_ascii=False) + "\n", "utf-8")


def load_weights(
    folder: Path | str,
    expect: Mapping[str, tuple[int, ...]] | None = None,
    *,
    files: tuple[str, str] = (WEIGHTS, CARD),
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the card of ``folder``, having checked every byte against the card.

    ``expect`` gives the name and shape of each tensor that the network has; anything else is refused.

    Raises
    ------
    WeightsError
        If the folder is missing, incomplete, damaged, pickled, holds NaN or infinity, or is of another architecture.
    """
    folder = Path(folder)
    card = load_card(folder, files[1])
    path = folder / files[0]
    entry = card["files"].get(files[0])
    if not path.is_file() or entry is None:
        raise WeightsError("the weights are missing", where=path, fix="Save or download the folder again")
    if not inside(folder, path):
        raise WeightsError("is a link out of its folder", where=path, fix="Put the file itself there")
    refuse_pickle(path)
    if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
        raise WeightsError("the file is not the one its card describes", where=path, fix="Save or download it again")
    tensors = _read(path)
    _refuse_nonfinite(tensors, path)
    if expect is not None:
        check_shapes(tensors, expect, where=path)
    return tensors, card


def load_card(folder: Path | str, name: str = CARD) -> dict[str, Any]:
    """Return the card of a weights folder without reading its weights; raise :class:`WeightsError` if there is none."""
    folder, kind = Path(folder), "weights card" if name == CARD else Path(name).stem
    if folder.is_file():
        refuse_pickle(folder)
    if not folder.is_dir():
        what = f"is not a {kind.partition(' ')[0]} folder"
        raise WeightsError(what, where=folder, fix=f"Name a folder with {name}")
    path = folder / name
    if not path.is_file():
        for other in sorted(folder.iterdir()):
            refuse_pickle(other)
        fix = "The saving did not end: save or download the folder again"
        if (folder / "weights" / name).is_file():  # of a training
            fix = f"Did you mean {folder / 'weights'}?"
        raise WeightsError(f"has no {name}, so it is incomplete", where=folder, fix=fix)
    try:
        card = json.loads(path.read_text("utf-8"))
        if not all(isinstance(e["sha256"], str) and isinstance(e["bytes"], int) for e in card["files"].values()):
            raise TypeError("its list of files has another form")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = f"is not a {kind} ({error})"
        raise WeightsError(what, where=path, fix="Save the folder again") from error
    return card


def check_shapes(tensors: Mapping[str, torch.Tensor], expect: Mapping[str, tuple[int, ...]], *, where: object) -> None:
    """Raise :class:`WeightsError` naming the first differences unless ``tensors`` has the shapes of ``expect``."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [
        ("missing", [name for name in expect if name not in found]),
        ("unexpected", [name for name in found if name not in expect]),
        ("of another shape", [
            f"{name} {found[name]} instead of {tuple(shape)}"
            for name, shape in expect.items()
            if name in found and found[name] != tuple(shape)
        ]),
    ]  # fmt: skip
    if problems := [f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in wrong if names]:
        fix = "These are likely the weights of another architecture: check the method and its hyper-parameters"
        raise WeightsError(f"the weights do not fit the network ({'; '.join(problems)})", where=where, fix=fix)


def convert_checkpoint(path: Path | str) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint made by other software, as safetensors or as a file of ``torch.save``.

    Common wrappings (``state_dict``, ``model``, ``params``, ``params_ema``) and ``module.`` before every name are taken
    off. Nothing in the file is executed: whatever is more than tensors and plain values is refused.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, holds anything but named tensors, or holds NaN or infinity.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise WeightsError("there is no such file", where=path, fix="Name a checkpoint file")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch wonders aloud about foreign pickles
            content = torch.load(path, map_location="cpu", weights_only=True) if is_pickle(path) else _read(path)
    except pickle.UnpicklingError as error:
        fix = "Ask for a file that holds only the state_dict, or one in safetensors form"
        raise WeightsError("holds more than tensors, and loading it could run code", where=path, fix=fix) from error
    except WeightsError:
        raise
    except Exception as error:  # a damaged file can make the reader raise nearly anything
        raise WeightsError(f"is damaged ({_first_line(error)})", where=path, fix="Download it again") from error
    tensors = _unwrap(content, path)
    _refuse_nonfinite(tensors, path)
    return tensors


def is_pickle(path: Path) -> bool:
    """Say whether a file is pickled or a ``torch.save`` archive, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(9)
    safetensors = head[4:] == b"\0\0\0\0{"  # the size of its header could begin like a pickle
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return head.startswith(b"PK\x03\x04") or (pickled and not safetensors)


def refuse_pickle(path: Path) -> None:
    """Raise :class:`WeightsError` if the file at ``path`` is pickled, and say how to convert it."""
    if path.is_file() and is_pickle(path):
        fix = f"Convert it: efface convert {path} --method NAME -o FOLDER"
        raise WeightsError("is pickled, and pickles can run code", where=path, fix=fix)


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        fix = "Name a safetensors file, or download this one again"
        raise WeightsError(f"is not a whole safetensors file ({_first_line(error)})", where=path, fix=fix) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _unwrap(content: object, path: Path) -> dict[str, torch.Tensor]:
    import torch

    while isinstance(content, Mapping) and (wrapper := next((w for w in _WRAPPERS if _is_dict(content, w)), None)):
        content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError("holds no named tensors", where=path, fix="Name a file with the network's state_dict")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            fix = "Name a file with the network's state_dict alone"
            raise WeightsError(f"the entry {name!r} is not a named tensor", where=path, fix=fix)
    while all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return dict(content)


def _is_dict(content: Mapping[Any, Any], name: str) -> bool:
    return isinstance(content.get(name), Mapping)


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give each tensor its own contiguous memory on the CPU, as the file form wants (tied weights share theirs)."""
    separate: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        own = own.clone() if own.untyped_storage().data_ptr() in seen else own
        seen.add(own.untyped_storage().data_ptr())
        separate[name] = own
    return separate


def finite(tensor: torch.Tensor) -> bool:
    """Say whether ``tensor`` holds neither NaN nor infinity, without a copy of it; on ``meta`` it holds nothing."""
    import torch

    if not tensor.is_floating_point() or tensor.is_meta:
        return True
    for part in tensor.detach().reshape(-1).split(_CHUNK):
        if len(part):
            low, high = torch.aminmax(part.float() if part.element_size() == 1 else part)
            if not (low.isfinite() and high.isfinite()):  # NaN is both, if there is any
                return False
    return True


def _refuse_nonfinite(tensors: Mapping[str, torch.Tensor], where: Path) -> None:
    for name, tensor in tensors.items():
        if not finite(tensor):
            fix = "The training likely diverged: take an earlier checkpoint"
            raise WeightsError(f"the tensor {name} holds NaN or infinity", where=where, fix=fix)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
