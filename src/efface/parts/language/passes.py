"""Run a decoder from one of its blocks on, or up to one, with nothing computed twice.

The model itself is called, so embeddings, masks and positions are made as it makes them, whatever its architecture.
Blocks whose outputs are known give those back instead of computing them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efface.parts.language.blocks import blocks_of


class _Reached(Exception):  # noqa: N818, it is no error
    """The block behind the last one that is asked for was called."""


@torch.no_grad()
def block_outputs(model: nn.Module, ids: Tensor) -> tuple[Tensor, list[Any]]:
    """Return the logits (b, t, v) for ``ids`` (b, t), and what every block gives on the way."""
    outputs: list[Any] = []
    blocks = blocks_of(model)[1]
    with _instead([(block, _kept(block.forward, outputs)) for block in blocks]):
        return _run(model, ids).logits, outputs


@torch.no_grad()
def logits_from(model: nn.Module, ids: Tensor, outputs: Sequence[Any], start: int) -> Tensor:
    """Return the logits (b, t, v), computed from block ``start`` on; those before it give back their ``outputs``."""
    blocks = blocks_of(model)[1]
    with _instead([(block, _given(output)) for block, output in zip(blocks[:start], outputs, strict=False)]):
        logits: Tensor = _run(model, ids).logits
        return logits


@torch.no_grad()
def block_by_block(
    model: nn.Module,
    rows: Sequence[Tensor],
    watch: Callable[[int, nn.Module], contextlib.AbstractContextManager[Any]],
    device: str = "cpu",
) -> None:
    """Run one block after the other on all ``rows``, a sequence of (b, t) tokens.

    Each runs within ``watch(number, block)``, which may hook it, and sees the inputs that it has in an ordinary pass of
    the model. Only the block that runs has to be on ``device``; of all outputs only those of one block are kept, where
    the model is.
    """
    blocks = blocks_of(model)[1]
    before: list[Any] = [None] * len(rows)
    for number, block in enumerate(blocks):
        home = next(block.parameters(), torch.empty(0)).device
        block.to(device)
        try:
            with watch(number, block):
                for i, ids in enumerate(rows):
                    output: list[Any] = []
                    known = [(earlier, _given(before[i])) for earlier in blocks[:number]]
                    ours = (block, _kept(_moved(block.forward, device), output))
                    behind = [(later, _stop) for later in blocks[number + 1 : number + 2]]
                    with _instead([*known, ours, *behind]), contextlib.suppress(_Reached):
                        _run(model, ids.to(home))
                    before[i] = _to(output[0], home)
        finally:
            block.to(home)


def hidden(output: Any) -> Tensor:
    """Return the hidden states (b, t, d) in what a block gives, which may be a tuple."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _run(model: Any, ids: Tensor) -> Any:
    return model(ids, use_cache=False)


@contextlib.contextmanager
def _instead(forwards: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Let modules run other functions for the length of a block."""
    try:
        for module, forward in forwards:
            module.forward = forward  # type: ignore[method-assign]
        yield
    finally:
        for module, _ in forwards:
            vars(module).pop("forward", None)


def _given(output: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: output


def _stop(*args: Any, **kwargs: Any) -> Any:
    raise _Reached


def _kept(forward: Callable[..., Any], outputs: list[Any]) -> Callable[..., Any]:
    def kept(*args: Any, **kwargs: Any) -> Any:
        outputs.append(forward(*args, **kwargs))
        return outputs[-1]

    return kept


def _moved(forward: Callable[..., Any], device: str) -> Callable[..., Any]:
    return lambda *args, **kwargs: forward(*_to(args, device), **_to(kwargs, device))


def _to(value: Any, device: Any) -> Any:
    """Move all tensors in ``value`` to ``device``."""
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_to(item, device) for item in value)
    return value.to(device) if isinstance(value, Tensor) else value
