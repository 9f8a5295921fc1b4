"""Hold edits of a model as a thing that can be shown, costed, applied, undone, combined, saved and replayed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from efface.core.fingerprint import UNKNOWN, Fingerprint, Imprint, saved_tensors
from efface.core.ops import Op, TensorOp, Undo, tensor_at
from efface.core.trial import apart, perform, take_back, told, trial
from efface.errors import PlanError
from efface.io.weights import finite
from efface.parts.counting import positional

if TYPE_CHECKING:
    from efface.core.cost import Cost
    from efface.core.diff import Diff


@dataclass(frozen=True, eq=False)
class Plan:
    """Ordered edits of the named tensors and modules of one model; made by :meth:`of` or read by :meth:`load`.

    A plan knows the model it is for and the model that it makes of it, down to the sha256 of every weight. What undoes
    it is kept in memory beside the model it was applied to, for as long as that lives, and is not saved.
    """

    ops: tuple[Op, ...]
    base: Fingerprint
    after: Fingerprint
    made_by: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, ops: Iterable[Op], *, method: str = "", whole: bool = True, **facts: Any) -> Plan:
        """Make the plan of ``ops`` on ``model``, which is afterwards as it was, bit by bit.

        Edits of tensors alone are only looked at, one by one; others are made for a moment. ``method`` and ``facts``
        (JSON values) say how the plan came about. Unless ``whole``, the plan knows of the model only what it edits:
        what is not may then be another's, and costs no time.

        Raises
        ------
        PlanError
            If an edit does not fit the model, or the model holds NaN, or infinity among its parameters.
        """
        ops = tuple(ops)
        base = Fingerprint.of(model, None if whole else [name for op in ops for name in op.touches])
        for name, tensor in saved_tensors(model):
            if name not in base.tensors or finite(tensor):
                continue
            if isinstance(tensor, nn.Parameter) or tensor.float().isnan().any():  # buffers of masks may be infinite
                raise PlanError("the weights hold NaN or infinity", where=name, fix="Take an earlier checkpoint")
        _refuse_aliases(ops, base)
        if (alone := apart(ops, model)) is None:
            with trial(ops, model):
                after = base.again(model)
        else:
            changed = {name: _imprint_after(op, tensor_at(model, name)) for name, op in alone.items()}
            after = base.with_tensors(changed)
        return cls(ops, base, after, {"method": method, **facts})

    def __repr__(self) -> str:
        return f"Plan({self.name}, {len(self.ops)} edits)"

    def __add__(self, other: Plan) -> Plan:
        """Return the plan that does this and then ``other``.

        ``other`` was made on the model as this plan leaves it, or on the same model as this one and touches nothing
        that this one touches. Anything else is a :class:`PlanError`.
        """
        base = self.base
        if not (base.whole and other.base.whole) and not self.after.conflicts(other.base):
            base, after = other.base.joined(base), self.after.joined(other.after)
        elif not self.after.differences(other.base):
            after = other.after
        elif not self.base.differences(other.base):
            if both := sorted(self._touched() & other._touched()):
                what = f"both plans were made on the same weights and both change {', '.join(both[:3])}"
                raise PlanError(what, where=self.name, fix="Make the second on the model that the first was applied to")
            after = self.after.patched(other.base, other.after)
        else:
            differences = "; ".join(self.after.differences(other.base))
            made = f"the second plan, {other.name}, was made neither on the model that the first, {self.name}, makes"
            what = f"{made} nor on the one that the first was made on ({differences})"
            raise PlanError(what, fix="Make it on the model that the first plan was applied to")
        made_by = {"method": f"{self.name} + {other.name}", "parts": [self.made_by, other.made_by]}
        return Plan((*self.ops, *other.ops), base, after, made_by)

    @property
    def name(self) -> str:
        """Name of the method that made the plan."""
        return str(self.made_by.get("method") or "the plan")

    def apply(self, model: nn.Module, *, strict: bool = True) -> nn.Module:
        """Edit ``model`` in place, all or nothing, and return it.

        ``strict=False`` takes other weights of the same form, as lottery tickets want it.

        Raises
        ------
        PlanError
            If the plan is for another model or other weights, is applied already, or an edit fails: the model is then
            as it was. Also if ``strict`` is false and an edit adds to the weights that it was made for.
        """
        applied = _APPLIED.get(model, [])
        if any(self._same(entry.plan) for entry in applied):
            raise PlanError("is applied to this model already", where=self.name, fix="Undo it first")
        self.check(model, strict=strict)
        undos = perform(self.ops, model)
        try:
            entry = _Applied(self, undos, self.base.again(model))
        except BaseException:
            take_back(undos, model)
            raise
        _APPLIED[model] = [*applied, entry]
        return model

    def undo(self, model: nn.Module) -> nn.Module:
        """Put back, bit by bit, what :meth:`apply` took from ``model``, and return it.

        Raises
        ------
        PlanError
            If the plan is not applied to this very model, another was applied after it, or the weights have changed
            since: the model is then left as it is.
        """
        applied = _APPLIED.get(model, [])
        if not any(self._same(entry.plan) for entry in applied):
            fix = "Undo works on the model that was given to apply, in the same process"
            raise PlanError("is not applied to this model", where=self.name, fix=fix)
        last = applied[-1]
        if not self._same(last.plan):
            raise PlanError("another plan was applied after it", where=self.name, fix=f"Undo {last.plan.name} first")
        if changed := last.after.differences(self.base.again(model)):
            what = f"the model was changed after the plan was applied ({'; '.join(changed)})"
            raise PlanError(what, where=self.name, fix="Load the original weights instead")
        take_back(last.undos, model)
        _APPLIED[model] = applied[:-1]
        return model

    def check(self, model: nn.Module, *, strict: bool = True) -> None:
        """Raise :class:`PlanError` unless the plan is for ``model``, and if ``strict`` for its very weights."""
        found = self.base.again(model)
        if misfits := self.base.misfits(found):
            fix = "Build the model as it was when the plan was made"
            raise PlanError(f"the plan is for another model ({'; '.join(misfits)})", where=self.name, fix=fix)
        if not strict:
            for op in self.ops:
                if op.relative:
                    what = "the plan adds to the weights it was made for, and makes no sense on others"
                    raise PlanError(what, where=op.target, fix="Load those weights")
            return
        if others := self.base.other_weights(found):
            if self.after.known and not self.after.differences(found):
                raise PlanError("is applied to these weights already", where=self.name, fix="Load the original weights")
            fix = "Load the weights that the plan was made on, or take any of the same shapes with strict=False"
            raise PlanError(f"the model has other weights ({'; '.join(others)})", where=self.name, fix=fix)

    def masks(self) -> dict[str, Tensor]:
        """Return which weights live (bool, true = lives) for each parameter or buffer that the plan holds at zero."""
        alive: dict[str, Tensor | None] = {}
        for op in self.ops:
            for name in [name for name in alive if name.startswith(f"{op.target}.")]:
                del alive[name]  # in a module that went
            alive = {name: mask if mask is None else op.follow(name, mask) for name, mask in alive.items()}
            name = self.base.tied.get(op.target, op.target)
            alive[name] = op.alive(alive.get(name))
        return {name: mask for name, mask in alive.items() if mask is not None}

    def scaled(self, strength: float) -> Plan:
        """Return the plan at ``strength``: 1 is the whole of it, 0 leaves the model as it is, 2 is twice as much.

        Raises :class:`PlanError` if ``strength`` is no such number, or an edit comes in no strengths, as masks do.
        """
        if not 0 <= strength < float("inf"):
            raise PlanError(f"{strength} is no strength", where=self.name, fix="Give 0 or more; 1 is the plan itself")
        if strength == 1:
            return self
        ops = tuple(op.scaled(strength) for op in self.ops)
        changed = (name for name in self.base.touched(self.after) if name in self.base.tensors)
        after = self.base.with_tensors({name: self.base.tensors[name]._replace(sha256=UNKNOWN) for name in changed})
        return Plan(ops, self.base, after, {**self.made_by, "strength": self.made_by.get("strength", 1.0) * strength})

    def diff(self, model: nn.Module, *, strict: bool = True) -> Diff:
        """Return a row for each edit of what it would take from ``model``, which stays as it is."""
        from efface.core.diff import Diff

        self.check(model, strict=strict)
        rows = []
        if apart(self.ops, model) is None:
            with trial(self.ops, model, before=lambda op: rows.append(op.row(model))):
                pass
        else:
            for op in self.ops:
                with told(op):
                    rows.append(op.row(model))
        return Diff(self.name, tuple(rows))

    def cost(self, model: nn.Module, example: Tensor | Sequence[Any] = ()) -> Cost:
        """Return parameters, bytes and, for the positional inputs ``example`` or the only one, FLOPs before and after.

        Raises :class:`UsageError` if ``example`` is neither a tensor nor a tuple or list.
        """
        from efface.core.cost import cost

        return cost(self, model, positional(example))

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write ``plan.json`` and ``plan.safetensors`` into ``folder``; masks take 1 bit a weight.

        Raises :class:`OutputError` if that cannot be written, or a plan is there and ``overwrite`` is false.
        """
        from efface.core.planfile import save

        save(self, folder, overwrite=overwrite)

    @classmethod
    def load(cls, folder: Path | str) -> Plan:
        """Read what :meth:`save` wrote: ``folder``, its ``plan.json``, or what ``efface shrink`` wrote with it inside.

        Raises :class:`UsageError` if there is no such folder, and :class:`PlanError` or :class:`WeightsError` for what
        is incomplete, damaged, no plan, or of a newer version.
        """
        from efface.core.planfile import load

        return load(folder)

    def _same(self, other: Plan) -> bool:
        return self is other or (self.after.known and (self.base, self.after) == (other.base, other.after))

    def _touched(self) -> set[str]:
        """Return the names that the plan changes or names, with all that lies in a module that it names."""
        names = {*self.base.tensors, *self.after.tensors, *self.base.tied, *self.after.tied}
        targets = {target for op in self.ops for target in op.touches}
        aimed = {name for name in names for target in targets if f"{name}.".startswith(f"{target}.")}
        return self.base.touched(self.after) | aimed | targets


@dataclass(frozen=True, eq=False)
class _Applied:
    """A plan as it was applied to a model, and what the model was then."""

    plan: Plan
    undos: list[Undo]
    after: Fingerprint


_APPLIED: WeakKeyDictionary[nn.Module, list[_Applied]] = WeakKeyDictionary()
"""Plans that are applied, by model, in order."""


def applied(model: nn.Module) -> tuple[Plan, ...]:
    """Return the plans that are applied to ``model``, in order."""
    return tuple(entry.plan for entry in _APPLIED.get(model, []))


def _imprint_after(op: TensorOp, tensor: Tensor) -> Imprint:
    with told(op):
        return Imprint.of(op.becomes(tensor))


def _refuse_aliases(ops: Iterable[Op], base: Fingerprint) -> None:
    """Raise :class:`PlanError` if two edits aim at one tied parameter under different names."""
    aimed: dict[str, str] = {}
    for op in ops:
        first = base.tied.get(op.target, op.target)
        if aimed.setdefault(first, op.target) != op.target:
            what = f"{aimed[first]} and {op.target} are one tied parameter, and both are edited"
            raise PlanError(what, where=op.target, fix="Edit it under one of its names")
