"""Read and write model folders of transformers and diffusers, from safetensors alone and without the network."""

from __future__ import annotations

import contextlib
import difflib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.core.trained import SHIPPED
from efface.errors import EffaceError, UnknownNameError, UsageError, WeightsError
from efface.extras import need
from efface.io.mapped import dtypes, mapped, shards
from efface.io.weights import CARD, refuse_pickle

if TYPE_CHECKING:
    from torch import nn

CONFIG, INDEX = "config.json", "model_index.json"
TINY, PIPELINE = "tiny", "tiny-text-to-image"
"""Short name of the pipeline that comes with the package, and that of its folder."""
SAFE = {"local_files_only": True, "use_safetensors": True}
Form = tuple["nn.Module", tuple[Any, ...], Callable[[Path, Callable[["nn.Module"], object]], None]]
"""A model, an example of its inputs where one is known, and what writes it back."""


def config_of(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of ``folder``, empty where there is none."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no names")
    except ValueError as error:
        raise WeightsError(f"is not a configuration ({error})", where=path, fix="Download the folder again") from error
    return config


def open_transformers(folder: Path, config: dict[str, Any]) -> Form:
    """Open a folder of transformers with the class that its ``architectures`` name."""
    from efface.parts.graph.sizes import SIZES, sized
    from efface.parts.language.folders import is_shaped, shaped

    library = need("transformers", extra="diffusion", job=f"opening {folder}")
    cls, checkpoint = _class(library, config["architectures"][0]), _checkpoint(folder)
    built = sized(shaped(cls) if is_shaped(config) else cls, config.get(SIZES))
    with _quiet("transformers"), _told(folder):
        model, report = built.from_pretrained(
            folder, dtype="auto", variant=_variant(checkpoint), output_loading_info=True, **SAFE
        )
    model.__class__ = cls
    if missing := sorted(report["missing_keys"]):
        what = f"{len(missing)} weights are missing: {', '.join(missing[:3])}"
        raise WeightsError(what, where=folder, fix="Check `architectures` in its config.json, or download it again")
    return model.eval(), _text_or_picture(model), _writer(model, folder, "transformers")


def open_diffusers(folder: Path, config: dict[str, Any]) -> Form:
    """Open one network of diffusers: a folder with its ``config.json``, such as a pipeline's ``unet``."""
    import torch

    from efface.parts.graph.sizes import SIZES, sized

    library = need("diffusers", extra="diffusion", job=f"opening {folder}")
    cls, checkpoint = _class(library, config["_class_name"]), _checkpoint(folder)
    built = sized(cls, config.get(SIZES))
    formats = dtypes(checkpoint)
    stored = getattr(torch, formats.pop()) if len(formats) == 1 else torch.float32
    with _quiet("diffusers"), _told(folder):
        model = built.from_pretrained(folder, torch_dtype=stored, variant=_variant(checkpoint), **SAFE)
    model.__class__ = cls
    return model.eval(), _noisy_picture(model), _writer(model, folder, "diffusers")


def open_pipeline(spec: str | Path, device: str = "cpu") -> Any:
    """Open a pipeline of diffusers in float32, without a word: a folder, an id of the hub that is in its cache.

    ``tiny`` is the one that comes with the package. Nothing is downloaded and nothing unpickled.

    Raises
    ------
    UsageError
        If ``spec`` is neither a folder nor in the cache.
    WeightsError
        If the folder holds no pipeline, or one that is damaged or pickled.
    """
    import torch

    diffusers = need("diffusers", extra="diffusion", job=f"opening {spec}")
    folder = SHIPPED / PIPELINE if str(spec) == TINY else Path(spec)
    folder = folder if folder.is_dir() else _cached(str(spec))
    if not (folder / INDEX).is_file():
        raise WeightsError(f"holds no pipeline: no {INDEX}", where=folder, fix="Give a pipeline of diffusers")
    with _quiet("diffusers"), _quiet("transformers"), warnings.catch_warnings(), _told(folder):
        warnings.simplefilter("ignore")  # of settings that are old; what goes wrong is raised
        variant = {"variant": "fp16"} if _only_half(folder) else {}
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **variant, **SAFE)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)


def save_pipeline(pipe: Any, folder: Path) -> None:
    """Write ``pipe`` into ``folder`` as diffusers does, without a word."""
    with _quiet("diffusers"), _quiet("transformers"), _told(folder):
        pipe.save_pretrained(folder, safe_serialization=True)


def _cached(spec: str) -> Path:
    """Return the folder of the hub's cache that holds the repository ``spec``."""
    hub = need("huggingface_hub", extra="diffusion", job=f"opening {spec}")
    try:
        return Path(hub.snapshot_download(spec, local_files_only=True))
    except (hub.errors.LocalEntryNotFoundError, hub.errors.HFValidationError, OSError) as error:
        fix = f"Give a folder of diffusers or `{TINY}`, or download it first: hf download NAME"
        raise UsageError("is no folder, and not in the cache of the hub", where=spec, fix=fix) from error


def _only_half(folder: Path) -> bool:
    """Say whether a pipeline is stored in its variant fp16 alone."""
    files = list(folder.glob("*/*.safetensors"))
    return bool(files) and all(".fp16" in file.name for file in files)


def _writer(model: Any, folder: Path, library: str) -> Callable[[Path, Any], None]:
    from efface.parts.language.folders import note_shape

    checkpoint = _checkpoint(folder)
    size = {"max_shard_size": _shard_size(checkpoint)} if checkpoint.suffix == ".json" else {}

    def write(new: Path, edit: Callable[[nn.Module], object]) -> None:
        edit(model)
        note_shape(model)
        with _quiet(library):
            _note_sizes(model)
            model.save_pretrained(new, variant=_variant(checkpoint), **size)
        for file in folder.iterdir():  # tokenisers and the like, but neither weights nor what has just been written
            weights = ".index" in file.suffixes or file.suffix in (".safetensors", ".bin", ".h5", ".msgpack")
            if file.is_file() and not weights and file.name != CARD and not (new / file.name).exists():
                shutil.copyfile(file, new / file.name)

    return write


def sizes_left(model: Any) -> dict[str, dict[str, Any]]:
    """Return which sizes of ``model`` are others than its configuration says, empty where none are."""
    import torch

    from efface.parts.graph.sizes import SIZES, differences
    from efface.parts.language.folders import is_shaped, shaped

    config = model.config
    with torch.device("meta"):
        if hasattr(model, "register_to_config"):  # diffusers
            built = type(model).from_config({name: value for name, value in config.items() if name != SIZES})
        else:
            built = (shaped(type(model)) if is_shaped(config.to_dict()) else type(model))(config)
    return differences(model, built)


def _note_sizes(model: Any) -> None:
    """Write into the configuration of ``model`` which sizes are others than it says, if any are."""
    from efface.parts.graph.sizes import SIZES

    config, found = model.config, sizes_left(model)
    if hasattr(model, "register_to_config"):
        if found or SIZES in config:
            model.register_to_config(**{SIZES: found})
    elif found:
        setattr(config, SIZES, found)
    elif hasattr(config, SIZES):
        delattr(config, SIZES)


def _checkpoint(folder: Path) -> Path:
    """Return the safetensors file of ``folder``, or the index of its shards."""
    found = sorted(folder.glob("*.safetensors.index*.json")) or sorted(folder.glob("*.safetensors"))
    if found:
        return min(found, key=lambda file: len(file.name))  # variants have longer names
    for file in sorted(folder.iterdir()):
        refuse_pickle(file)
    raise WeightsError("holds no .safetensors file", where=folder, fix="Download it with its weights")


def _shard_size(checkpoint: Path) -> int:
    """Return how many bytes of tensors a file may hold, so that a sharded checkpoint is sharded again."""
    return max(sum(tensor.nbytes for tensor in mapped([file]).values()) for file in shards(checkpoint))


def _variant(checkpoint: Path) -> str | None:
    """Return the ``fp16`` of ``diffusion_pytorch_model.fp16.safetensors``."""
    words = checkpoint.name.split(".")
    words = [word for word in words[1:] if word not in ("safetensors", "index", "json")]
    return words[0].partition("-")[0] if words else None


def _class(library: Any, name: str) -> Any:
    cls = getattr(library, name, None)
    if not hasattr(cls, "from_pretrained"):
        close = difflib.get_close_matches(name, [n for n in dir(library) if n[:1].isupper()])  # of some thousands
        raise UnknownNameError(f"class of {library.__name__} {library.__version__}", name, close)
    return cls


def _text_or_picture(model: Any) -> tuple[Any, ...]:
    """Return eight tokens or one grey picture for a model of transformers, or nothing where it takes something else."""
    import torch

    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        return ()
    if model.main_input_name == "input_ids":
        return (torch.ones(1, 8, dtype=torch.long),)
    if model.main_input_name == "pixel_values" and isinstance(getattr(config, "image_size", None), int):
        return (torch.zeros(1, config.num_channels, config.image_size, config.image_size, dtype=model.dtype),)
    return ()


def _noisy_picture(model: Any) -> tuple[Any, ...]:
    """Return picture, time and context for a U-Net or autoencoder of diffusers, or nothing for other networks."""
    import torch

    config, side = model.config, model.config.get("sample_size")
    if not isinstance(side, int):
        return ()
    picture = torch.zeros(1, config.get("in_channels", 3), side, side, dtype=model.dtype)
    width, kind = config.get("cross_attention_dim"), type(model).__name__
    if kind == "UNet2DConditionModel" and isinstance(width, int) and not config.get("addition_embed_type"):
        return picture, 0, torch.zeros(1, 8, width, dtype=model.dtype)
    return (picture, 0) if kind == "UNet2DModel" else (picture,) if kind == "AutoencoderKL" else ()


@contextlib.contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Keep the library from printing; what goes wrong is raised."""
    logging = need(f"{library}.utils.logging", extra="diffusion", job=f"using {library}")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turn whatever a library raises about a damaged folder into one line."""
    try:
        yield
    except EffaceError:
        raise
    except Exception as error:
        what = f"cannot be opened ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
        raise WeightsError(what, where=folder, fix="Check its config.json, or download the folder again") from error
