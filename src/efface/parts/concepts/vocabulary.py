"""Teach a pipeline's tokenizer words, and make it forget them again.

The tokenizer that is given stays as it is: the pipeline gets a copy that knows more.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from efface.errors import UsageError


def grown(tokenizer: Any, words: Sequence[str]) -> Any:
    """Return a copy of ``tokenizer`` in which each of ``words`` is one token, numbered on from its last.

    Raises :class:`UsageError` if it knows one of them already.
    """
    if known := [word for word in words if word in tokenizer.get_vocab()]:
        fix = "Start from the original pipeline, or name the concept differently"
        raise UsageError(f"knows {', '.join(known[:3])} already", where=type(tokenizer).__name__, fix=fix)
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(list(words))
    return larger


def teach(pipe: Any, words: Sequence[str]) -> None:
    """Give ``pipe`` a tokenizer that knows ``words`` as well."""
    if words:
        before, pipe.tokenizer = pipe.tokenizer, grown(pipe.tokenizer, words)
        _BEFORE[pipe.tokenizer] = before


def unteach(pipe: Any) -> None:
    """Give ``pipe`` the tokenizer back that it had before it was last taught."""
    pipe.tokenizer = _BEFORE[pipe.tokenizer]


@contextlib.contextmanager
def taught(pipe: Any, words: Sequence[str]) -> Iterator[None]:
    """Let the tokenizer of ``pipe`` know ``words`` for the length of a block."""
    teach(pipe, words)
    try:
        yield
    finally:
        if words:
            unteach(pipe)


_BEFORE: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""The tokenizer that a taught one was made of."""
