"""Follow the channels of a network through the graph of its operations.

The graph is for analysis only. Every tensor gets a label for each dimension, operation by operation, by the rules of
:mod:`.rules`; what no rule knows is frozen and named, never guessed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from efface.errors import InputError, UsageError
from efface.parts.graph.atoms import Atoms, Dims, Label
from efface.parts.graph.names import ENTRY, INSIDE, sizes_of
from efface.parts.graph.record import Program, record
from efface.parts.graph.remove import tensor_of
from efface.parts.nn.modes import mode

OUTPUT = "part of the output of the network"
UNUSED = "used by nothing"


@dataclass
class Trace:
    """What was found out about the tensors of a network."""

    program: Program
    module: nn.Module
    atoms: Atoms = field(default_factory=Atoms)
    tensors: dict[str, Dims] = field(default_factory=dict)
    """Labels of the parameters and buffers; tied names have the same list."""
    norms: dict[str, Label] = field(default_factory=dict)
    """Label of what a node takes a mean and variance over, by the node's name: its result changes with a removal."""
    sized: list[tuple[str, str, Label]] = field(default_factory=list)
    """Module, attribute and label of a dimension whose size the attribute holds, because the module's kind says so."""
    perhaps: dict[tuple[str, str], list[Label]] = field(default_factory=lambda: defaultdict(list))
    """Labels of dimensions whose size an attribute holds, judging by its name and value."""
    unknown: list[str] = field(default_factory=list)
    """Operations without a rule, and where they are."""
    _holders: dict[tuple[str, Sequence[str]], dict[int, list[str]]] = field(default_factory=dict)
    _modules: dict[str, nn.Module] = field(default_factory=dict)

    def module_at(self, path: str) -> nn.Module:
        """Return the module called ``path``."""
        if not self._modules:
            self._modules.update(self.module.named_modules(remove_duplicate=False))
        return self._modules[path]

    def holders(self, path: str, names: Sequence[str]) -> dict[int, list[str]]:
        """Return which attributes of a module, of those called ``names``, hold a size, by their values."""
        if (path, names) not in self._holders:
            self._holders[path, names] = sizes_of(self.module_at(path), names)
        return self._holders[path, names]


class Call:
    """One operation of the graph: its arguments by name, their labels, and what a rule may say about them."""

    def __init__(self, trace: Trace, node: Node, env: dict[Node, Any], weights: set[Node]) -> None:
        self.trace, self.node, self.atoms, self._env, self._weights = trace, node, trace.atoms, env, weights
        self.args = named(node, node.args, node.kwargs)
        self.op = str(node.target._overloadpacket).removeprefix("aten.")  # type: ignore[union-attr]

    def __getitem__(self, name: str) -> Any:
        return self.args.get(name)

    @property
    def inputs(self) -> list[Node]:
        """Nodes that give the operation its tensors, also those in lists."""
        return [node for node in self.node.all_input_nodes if isinstance(node.meta.get("val"), Tensor)]

    def dims(self, of: str | Node) -> Dims:
        """Return the labels of a tensor argument."""
        return self._env[self.args[of] if isinstance(of, str) else of]

    def shape(self, of: str | Node | None = None) -> list[int]:
        """Return the shape of a tensor argument, or of the result."""
        node = self.node if of is None else self.args[of] if isinstance(of, str) else of
        return [int(n) for n in node.meta["val"].shape]

    def is_weight(self, name: str) -> bool:
        """Say whether an argument is computed from parameters alone."""
        return self.args[name] in self._weights

    def tie(self, a: Label | None, b: Label | None) -> None:
        """Tie two dimensions of one size."""
        self.atoms.tie(a, b, f"{self.where} ties it to a dimension of fixed size")

    def freeze(self, labels: Dims, why: str) -> None:
        """Freeze dimensions, saying that the operation does ``why`` with them."""
        for label in labels:
            self.atoms.freeze(label, f"{self.where} {why}")

    def sized(self, names: Sequence[str], label: Label | None) -> None:
        """Tell that of ``names`` the module has an attribute with the size of a dimension."""
        if label is None:
            return
        path = module_of(self.node)
        held = self.trace.module_at(path).__dict__
        for name in names:
            if held.get(name) in (label.shape[1], (label.shape[1],), [label.shape[1]]):
                self.trace.sized.append((path, name, label))

    @property
    def where(self) -> str:
        """Operation and module, in words."""
        path = module_of(self.node)
        return f"{self.op} in {path}" if path else self.op


def export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ExportedProgram:
    """Export ``model``, without and else with a look at its bytecode (non-strict is many times faster).

    Raises
    ------
    UsageError
        If the model does not take the example.
    InputError
        If it cannot be exported; the message has the operation and the line of the model's code.
    """
    with quiet(model):
        failures = []
        for strict in (False, True):
            try:
                with _silent():
                    return torch.export.export(model, args, dict(kwargs), strict=strict)
            except Exception as error:  # a model may raise anything
                failures.append(error)
        try:
            model(*args, **kwargs)
        except Exception as error:
            what = f"the model does not take the example: {first_line(error)} ({_line_of(error)})"
            fix = "Give inputs of the shapes that it takes"
            raise UsageError(what, where=type(model).__name__, fix=fix) from error
    what = f"the model cannot be exported: {first_line(failures[0])} ({_line_of(failures[0])})"
    fix = "Rewrite that line so that no tensor's value decides what is computed"
    raise InputError(what, where=type(model).__name__, fix=fix) from failures[0]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep torch from printing the graph so far of what it cannot export; the error says what went wrong."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def program_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
    """Return the graph of ``model``: recorded where that works, and else exported, which raises as :func:`export`."""
    try:
        with quiet(model):
            return record(model, args, kwargs)
    except Exception:  # what went wrong is told by torch.export, if it does there as well
        return Program.of(export(model, args, kwargs))


def follow(model: nn.Module, program: Program) -> Trace:
    """Return the labels of all parameters and buffers of ``model``, having followed them through ``program``."""
    trace = Trace(program, model)
    env, weights = _inputs(trace)
    _run(trace, program.graph, program.root, env, weights)
    return trace


def named(node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an ATen operation by their names, defaults with them."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return defaults | {a.name: given for a, given in zip(schema, args, strict=False)} | dict(kwargs)


def module_of(node: Node) -> str:
    """Return the path of the module whose code the node comes from."""
    return (_stack(node) or [""])[-1]


def _inputs(trace: Trace) -> tuple[dict[Node, Any], set[Node]]:
    """Label what goes into the graph: parameters and buffers with new atoms, all else with nothing."""
    env: dict[Node, Any] = {}
    weights: set[Node] = set()
    tied: dict[int, Dims] = {}
    for node, source in trace.program.sources.items():
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            continue
        env[node] = [None] * value.ndim
        if isinstance(source, str):
            same = id(tensor_of(trace.module, source))
            if same not in tied:
                tied[same] = [trace.atoms.fresh(n) if n > 1 else None for n in value.shape]
            env[node] = trace.tensors[source] = tied[same]
            weights.add(node)
    every = (trace.module.named_parameters, trace.module.named_buffers)
    for name, tensor in (pair for pairs in every for pair in pairs(remove_duplicate=False)):
        if id(tensor) in tied:
            trace.tensors[name] = tied[id(tensor)]
    used = {id(env[node]) for node in weights if node.users}
    for dims in trace.tensors.values():
        for label in dims if id(dims) not in used else ():
            trace.atoms.freeze(label, UNUSED)
    return env, weights


def _run(trace: Trace, graph: Graph, root: nn.Module, env: dict[Node, Any], weights: set[Node]) -> list[Any]:
    """Apply the rule of every node of ``graph`` and return the labels of its results."""
    from efface.parts.graph.rules import infer

    for node in graph.nodes:
        if node.op == "output":
            results = [env.get(n) for n in node.args[0]] if isinstance(node.args[0], (list, tuple)) else []
            if graph is trace.program.graph:
                for dims in results:
                    for label in dims or ():
                        trace.atoms.freeze(label, OUTPUT)
            return results
        if node.op != "call_function":
            continue
        inside = next((a for a in node.args if isinstance(a, Node) and a.op == "get_attr"), None)
        if inside is not None and isinstance(body := getattr(root, str(inside.target)), GraphModule):
            env[node] = _enter(trace, body, node, env)  # a part that is run without gradients, for example
        else:
            env[node] = infer(trace, node, env, weights)
        if node.all_input_nodes and weights.issuperset(node.all_input_nodes):
            weights.add(node)
        _note_sizes(trace, node, env, weights)
    return []


def _enter(trace: Trace, body: GraphModule, node: Node, env: dict[Node, Any]) -> list[Any]:
    given = [a for a in node.args if isinstance(a, Node) and a.op != "get_attr"]
    inner = [n for n in body.graph.nodes if n.op == "placeholder"]
    return _run(trace, body.graph, body, {n: env[g] for n, g in zip(inner, given, strict=True) if g in env}, set())


def _note_sizes(trace: Trace, node: Node, env: dict[Node, Any], weights: set[Node]) -> None:
    """Note which attributes hold the size of a dimension that enters their module, or that its code handles."""
    given = [source for source in node.all_input_nodes if source not in weights]
    stack, others = _stack(node), [(source, _stack(source)) for source in given]
    for path in stack:
        entering = [source for source, other in others if path not in other]
        inside = [node, *given] if path == stack[-1] else []
        for names, sources in ((ENTRY, entering), (INSIDE, inside)):
            known = trace.holders(path, names) if sources else {}
            for source in sources if known else ():
                for label in env.get(source) or () if isinstance(source.meta.get("val"), Tensor) else ():
                    for name in () if label is None else known.get(label.shape[1], ()):
                        trace.perhaps[path, name].append(label)


def _stack(node: Node) -> list[str]:
    """Return the paths of the modules whose code the node comes from, outermost first, the network itself left out."""
    return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Set what makes a graph of plain operations: evaluation, no gradients, no fused encoder, no cache of keys."""
    configs = [getattr(module, "config", None) for module in model.modules()]
    caching = [config for config in configs if getattr(config, "use_cache", None) is True]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for config in caching:
            config.use_cache = False  # type: ignore[union-attr]
        with warnings.catch_warnings(), torch.no_grad(), mode(model, training=False):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for config in caching:
            config.use_cache = True  # type: ignore[union-attr]


def first_line(error: Exception) -> str:
    """Return the first line of a message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _line_of(error: Exception) -> str:
    """Return the last line of code of the model, not of torch, that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    others = ("/torch/", "/efface/parts/graph/", "<")
    mine = [f for f in frames if not any(part in f.filename for part in others)]
    last = (mine or list(frames))[-1]
    return f"{last.filename}:{last.lineno}: {last.line}"
