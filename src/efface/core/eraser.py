"""Define what takes concepts out of generators: a method that is given a pipeline, and plans edits of its networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakKeyDictionary

from efface.core.method import Method, Work
from efface.core.plan import Plan
from efface.core.trial import trial
from efface.errors import PlanError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from efface.core.ops import Op

DENOISERS = ("unet", "transformer")
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


@dataclass(frozen=True)
class Concepts:
    """What is to go, what takes its place, and what must stay, in words; made by :meth:`of`."""

    remove: tuple[str, ...]
    instead: tuple[str, ...]
    """One for each of ``remove``; an empty text means that nothing takes its place."""
    keep: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        remove: str | Sequence[str],
        instead: str | Sequence[str] | None = None,
        keep: str | Sequence[str] = (),
    ) -> Self:
        """Make sense of one text or several of each; one text ``instead`` stands for every concept.

        Raises :class:`UsageError` if nothing is to go, the numbers of ``remove`` and ``instead`` differ, a concept is
        its own replacement, is named twice, or is to go and to stay.
        """
        gone, kept = _texts(remove), tuple(dict.fromkeys(_texts(keep)))
        if not gone or not all(gone):
            raise UsageError("no concept is named", where="remove", fix="Name what is to go")
        if len({*map(str.casefold, gone)}) < len(gone):
            raise UsageError("a concept is named twice", where="remove", fix="Name each once")
        others = _texts("" if instead is None else instead) or ("",)
        others = others * len(gone) if len(others) == 1 else others
        if len(others) != len(gone):
            what = f"{len(gone)} concepts are to go and {len(others)} take their places"
            raise UsageError(what, where="instead", fix="Give one for all, or one for each in the same order")
        for concept, other in zip(gone, others, strict=True):
            if concept.casefold() == other.casefold():
                raise UsageError(f"{concept!r} would be replaced by itself", where="instead", fix="Give another text")
        if both := [text for text in kept if text.casefold() in map(str.casefold, gone)]:
            what = f"{', '.join(map(repr, both[:3]))} is to go and to stay"
            raise UsageError(what, where="keep", fix="Take it from one of the lists")
        return cls(gone, others, kept)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each concept with what takes its place."""
        return tuple(zip(self.remove, self.instead, strict=True))

    def facts(self) -> dict[str, Any]:
        """Return the concepts as a plan's ``made_by`` holds them."""
        return {"erases": [{"remove": c, "instead": other} for c, other in self.pairs], "keep": list(self.keep)}


@dataclass(frozen=True, kw_only=True)
class Eraser(Method):
    """A method that takes concepts out of a text-to-image pipeline of diffusers."""

    trains: ClassVar[bool] = False
    """Whether it descends a loss; otherwise its edit is solved for."""
    small: ClassVar[dict[str, Any]] = {}
    """Hyper-parameters with which it edits a tiny pipeline in a few seconds, for tests."""

    def plan(self, pipe: Any, concepts: Concepts, work: Work) -> Plan:
        """Return the edits of ``editable(pipe)`` to make; the pipeline itself stays untouched, bit by bit."""
        raise NotImplementedError

    def planned(self, pipe: Any, concepts: Concepts, work: Work, ops: Iterable[Op], **facts: Any) -> Plan:
        """Return the plan of ``ops``, which knows of the pipeline what it edits, and says how it came about.

        ``facts`` are JSON values; ``gate=True`` marks adapters that are to be scaled for each prompt.
        """
        about = {"params": self.params(), "seed": work.seed, **concepts.facts(), **facts}
        return Plan.of(editable(pipe), ops, method=self.name, whole=False, **about)


def editable(pipe: Any) -> nn.Module:
    """Return the networks of ``pipe`` that edits may name, as one module: ``unet.…``, ``text_encoder.…``.

    It is the same object each time, as long as the pipeline has these networks. Raises :class:`UsageError` for what is
    no text-to-image pipeline.
    """
    from torch import nn

    found = {name: getattr(pipe, name, None) for name in (*DENOISERS, *ENCODERS)}
    parts = {name: part for name, part in found.items() if isinstance(part, nn.Module)}
    if not parts.keys() & {*DENOISERS} or not parts.keys() & {*ENCODERS}:
        fix = "Give a text-to-image pipeline of diffusers"
        raise UsageError("has no denoiser, or no text encoder", where=type(pipe).__name__, fix=fix)
    known = _EDITABLE.get(pipe)
    if known is None or dict(known.named_children()) != parts:
        _EDITABLE[pipe] = known = nn.ModuleDict(parts)
    return known


@contextlib.contextmanager
def edited(pipe: Any, plans: Sequence[Plan], *, strict: bool = True) -> Iterator[Any]:
    """Let ``plans``, all made on ``pipe`` as it is now, act together for a block; it is then as it was, bit by bit.

    Additions add up, maps follow one another. ``strict=False`` takes a pipeline of the same form with other weights,
    such as a sibling that was tuned further.

    Raises
    ------
    PlanError
        If a plan is for another pipeline, is there twice, or sets a tensor that another one changes as well.
    """
    check_edits(editable(pipe), plans, strict=strict)
    with acts(pipe, plans):
        yield pipe


@contextlib.contextmanager
def acts(pipe: Any, plans: Sequence[Plan]) -> Iterator[None]:
    """Let ``plans``, which :func:`check_edits` has seen, act for a block; the tokenizer knows the words they add."""
    from efface.parts.concepts.vocabulary import taught

    words = [word for plan in plans for word in plan.made_by.get("words", ())]
    with taught(pipe, words), trial([op for plan in plans for op in plan.ops], editable(pipe)):
        yield


def steered(negative: str, plans: Sequence[Plan]) -> str:
    """Return ``negative`` with what ``plans`` that teach words have to be steered away from."""
    own = [plan.made_by.get("negative", "") for plan in plans if plan.made_by.get("strength", 1)]
    return " ".join(filter(None, [negative, *own]))


def check_edits(box: nn.Module, plans: Sequence[Plan], *, strict: bool = True) -> None:
    """Raise :class:`PlanError` unless all ``plans`` are for ``box`` as it is and can act together."""
    owner: dict[str, tuple[Plan, bool]] = {}
    for place, plan in enumerate(plans):
        if any(plan is other or _alike(plan, other) for other in plans[:place]):
            raise PlanError("is given twice", where=plan.name, fix="Give it once, with the strength that you want")
        if strict:
            plan.check(box)
        elif misfits := plan.base.misfits(plan.base.again(box)):
            fix = "Take a pipeline of the same architecture"
            raise PlanError(f"the edit is for another model ({'; '.join(misfits)})", where=plan.name, fix=fix)
        for op in plan.ops:
            sets = op.values().get("form") in ("set", "set-kept")
            for name in op.touches:
                other, other_sets = owner.setdefault(name, (plan, sets))
                if other is not plan and (sets or other_sets):
                    what = f"{other.name} and {plan.name} both decide the values of {name}"
                    raise PlanError(
                        what, where=plan.name, fix="Use one of them, or make one on the result of the other"
                    )


def check_concepts(pipe: Any, concepts: Concepts) -> None:
    """Raise :class:`UsageError` unless ``pipe`` can be told the ``concepts``, and attends to what it is told.

    Refused are a text that tokenises to nothing or to more tokens than fit, a concept with the tokens of what takes its
    place, and a pipeline without cross-attention or with fused projections.
    """
    from efface.parts.concepts.attention import backbone, cross_attention

    cross_attention(backbone(pipe)[1])
    for name in TOKENIZERS:
        if (tokenizer := getattr(pipe, name, None)) is None:
            continue
        ids = {text: _ids(tokenizer, text) for text in (*concepts.remove, *concepts.instead, *concepts.keep)}
        room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
        for text, found in ids.items():
            if text and not found:
                raise UsageError(f"{text!r} is no word for the {name}", where="concepts", fix="Name it in letters")
            if len(found) > room:
                what = f"{text!r} takes {len(found)} tokens, and {room} fit"
                raise UsageError(what, where="concepts", fix="Name it in fewer words")
        for concept, other in concepts.pairs:
            if ids[concept] == ids[other]:
                what = f"{concept!r} and {other!r} are the same tokens"
                raise UsageError(what, where="instead", fix="Put something else in its place")


_EDITABLE: WeakKeyDictionary[Any, nn.Module] = WeakKeyDictionary()


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(text.strip() for text in ((given,) if isinstance(given, str) else given))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)  # it would warn of long ones


def _alike(one: Plan, other: Plan) -> bool:
    return one.after.known and (one.base, one.after) == (other.base, other.after)
