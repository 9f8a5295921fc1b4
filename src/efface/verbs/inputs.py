"""Find inputs that a model takes: those its folder tells, a picture of the task, or some of a given shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import UsageError
from efface.seeds import torch_generator

if TYPE_CHECKING:
    from torch import nn

    from efface.core.models import Opened
    from efface.parts.data.language import Corpus
    from efface.parts.data.tasks import Task

WINDOW = 512
"""Tokens of a text that a model is measured on at once, where it takes as many."""


def require_network(opened: Opened) -> None:
    """Raise :class:`UsageError` if there is no network to run."""
    if opened.form == "safetensors":
        fix = "Give its network too: module:factory --weights FILE"
        raise UsageError("a bare checkpoint holds weights alone and cannot be run", where=opened.name, fix=fix)


def drawn(opened: Opened, task: Task | None, shape: Sequence[int] | None, seed: int) -> tuple[Any, ...]:
    """Return random positional inputs of the shapes that are known, the first of ``shape`` where that is given.

    Without either they are a picture of the task, or what the model's folder tells: perhaps nothing.
    """
    import torch

    known = opened.example if task is None else (torch.zeros(1, *task.shape),)
    like = next((p for p in opened.model.parameters() if p.is_floating_point()), torch.empty(0))
    if shape is not None:
        known = (torch.zeros(*shape, dtype=known[0].dtype if known else like.dtype), *known[1:])
    words = getattr(getattr(opened.model, "config", None), "vocab_size", 2)
    generator = torch_generator(seed, "inputs")

    def fill(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator).to(like.device, value.dtype)
        return torch.randint(words, value.shape, generator=generator).to(like.device)

    return tuple(map(fill, known))


def text(opened: Opened, path: str | Path) -> Corpus:
    """Read a text file, or all of a folder, in the tokens of the tokenizer that lies beside the model."""
    from efface.extras import need
    from efface.parts.data.language import Corpus
    from efface.parts.language.blocks import context_of

    transformers = need("transformers", extra="diffusion", job="reading text")
    if opened.form != "transformers":
        fix = "Give a folder of transformers with its tokenizer, or a corpus: Corpus.of(tokens)"
        raise UsageError("has no tokenizer to read text with", where=opened.name, fix=fix)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(opened.path, local_files_only=True)
    except Exception as error:  # it raises whatever the files of the folder lead to
        what = f"its tokenizer cannot be opened: {str(error).strip().partition(chr(10))[0]}"
        raise UsageError(what, where=opened.path, fix="Put its tokenizer.json there") from error
    return Corpus.read(path, tokenizer, length=min(WINDOW, context_of(opened.model)))


def check_inputs(net: nn.Module, inputs: tuple[Any, ...], *, where: str) -> None:
    """Raise :class:`UsageError` unless ``net`` takes ``inputs``."""
    import torch

    from efface.parts.nn.modes import mode

    try:
        with torch.no_grad(), mode(net, training=False):
            net(*inputs)
    except Exception as error:  # the model is the user's, and may raise anything
        what = f"the model does not take the input: {str(error).partition(chr(10))[0]}"
        fix = "Give the shape that it takes: --input 1x3x224x224"
        if isinstance(error, TypeError) and "required" in str(error):
            fix = "Wrap it in a factory whose network takes one input, or give all of them in Python: example=(x, y)"
        raise UsageError(what, where=where, fix=fix) from error
