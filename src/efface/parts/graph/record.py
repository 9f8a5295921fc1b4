"""Record the operations of a network as a graph, in one call on tensors without content.

What torch.export makes is kept where this fails; but for analysis, most of its work (functions instead of modules,
guards, checks, signatures) is not needed, and without it the graph is there in a tenth of the time. Operations are
noted as the network calls them (``linear``, ``layer_norm``, ``scaled_dot_product_attention``), before torch takes them
apart, which is the same level as that of an exported program.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._export.utils import _compiling_state_context
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.func import functional_call
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_flatten, tree_unflatten

Key = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]
Stack = dict[str, tuple[str, type[nn.Module]]]
"""Paths and kinds of the modules whose code is running, outermost first, as torch.export notes them."""


@dataclass(frozen=True)
class Program:
    """A network as a graph of ATen operations, each with its result's shape and the modules that it comes from."""

    graph: Graph
    sources: Mapping[Node, str | int | Tensor]
    """What goes in at each placeholder: a parameter or buffer by name, a leaf of the inputs by number, a constant."""
    root: nn.Module = field(default_factory=nn.Module)
    """Holds the graphs of parts that are called as a whole."""

    @classmethod
    def of(cls, exported: ExportedProgram) -> Program:
        """Take what torch.export made."""
        sources: dict[Node, str | int | Tensor] = {}
        leaves = 0
        places = [node for node in exported.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(places, exported.graph_signature.input_specs, strict=True):
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                sources[node] = str(spec.target)
            elif spec.kind == InputKind.USER_INPUT:
                sources[node], leaves = leaves, leaves + 1
            else:
                sources[node] = exported.constants[str(spec.target)]
        return cls(exported.graph, sources, exported.graph_module)


def record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
    """Return the graph of ``model`` on its inputs; raises whatever the model or torch does where that is impossible."""
    fake, taken = FakeTensorMode(allow_non_fake_inputs=True), _Recorder()
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    with _unchanged(model), fake:
        state = {name: taken.enter(fake.from_tensor(tensor), name) for name, tensor in named}
        leaves, form = tree_flatten((args, dict(kwargs)))
        empty = [
            taken.enter(fake.from_tensor(leaf), place) if isinstance(leaf, Tensor) else leaf
            for place, leaf in enumerate(leaves)
        ]
        args, kwargs = tree_unflatten(empty, form)
        with _compiling_state_context(), _noting_modules(model, taken.stacks), enable_python_dispatcher(), taken:
            outputs = functional_call(model, state, args, dict(kwargs))
    return taken.finished(outputs)


class _Recorder(ProxyTorchDispatchMode):
    """Sees every operation before it is taken apart, as torch's own tracer does, and makes a node of it."""

    def __init__(self) -> None:
        super().__init__(None, "fake", pre_dispatch=True)  # type: ignore[arg-type]  # a tracer, which is not asked
        self.stacks: list[Stack] = [{}]
        """Of the modules that are running, the innermost last."""
        self._graph = Graph()
        self._last: Node | None = None
        self._sources: dict[Node, str | int | Tensor] = {}
        self._nodes: dict[Key, Node] = {}
        self._seen: list[Tensor] = []
        """All tensors, so that no memory is given out twice."""

    def enter(self, tensor: Tensor, source: str | int | Tensor) -> Tensor:
        """Let ``tensor`` go into the graph, if it has not yet, and return it."""
        if _key(tensor) not in self._nodes:
            with self._graph.inserting_after(self._last):
                node = self._last = self._graph.placeholder(f"p{len(self._sources)}")
            self._sources[node] = source
            self._note(tensor, node)
        return tensor

    def finished(self, outputs: Any) -> Program:
        """Return the graph with its outputs."""
        leaves = tree_flatten(outputs)[0]
        if odd := [leaf for leaf in leaves if not isinstance(leaf, (Tensor, int, float, str, type(None)))]:
            raise RuntimeError(f"the network returns a {type(odd[0]).__name__}, whose tensors are not known")
        self._graph.output([self._named(leaf) for leaf in leaves])
        return Program(self._graph, self._sources)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Find the result's shape and add a node."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not isinstance(func, OpOverload) or func.namespace == "prim":
            return result
        if torch.Tag.inplace_view in func.tags and func is not torch.ops.aten.detach_.default:
            raise RuntimeError(f"{func} changes the shape of a tensor that is in the graph")
        given = self._named(args), {name: self._named(value) for name, value in kwargs.items()}
        node = self._graph.create_node("call_function", func, *given, name=f"n{len(self._graph.nodes)}")
        node.meta = {"nn_module_stack": self.stacks[-1], "stack_trace": _place()}
        if isinstance(result, Tensor):
            self._note(result, node)
        elif isinstance(result, (list, tuple)):
            node.meta["val"] = result
            for number, part in enumerate(result):
                if isinstance(part, Tensor):
                    one = self._graph.call_function(operator.getitem, (node, number))
                    one.meta = dict(node.meta)
                    self._note(part, one)
        return result

    def _named(self, value: Any) -> Any:
        """Return ``value`` with nodes in the place of tensors."""
        if isinstance(value, Tensor):
            key = _key(value)
            if key not in self._nodes:
                if isinstance(value, (FakeTensor, nn.Parameter)):
                    raise RuntimeError("a tensor comes into the network behind its back")
                self.enter(value, value)
            return self._nodes[key]
        return type(value)(map(self._named, value)) if type(value) in (list, tuple) else value

    def _note(self, tensor: Tensor, node: Node) -> None:
        node.meta["val"] = tensor
        self._nodes[_key(tensor)] = node
        self._seen.append(tensor)


@contextlib.contextmanager
def _noting_modules(model: nn.Module, stacks: list[Stack]) -> Iterator[None]:
    """Push what is running on ``stacks`` at every call of a module."""
    paths = {id(module): path for path, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        path = paths.get(id(module))
        stacks.append(stacks[-1] if path is None else {**stacks[-1], str(id(module)): (path, type(module))})

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stacks.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put back what the code of a module keeps in its attributes while it runs: here, tensors without content."""
    kept = [[(held, dict(held)) for held in (m.__dict__, m._parameters, m._buffers)] for m in model.modules()]
    try:
        yield
    finally:
        for held, before in (pair for pairs in kept for pair in pairs):
            if held.keys() != before.keys() or any(held[name] is not value for name, value in before.items()):
                held.clear()
                held.update(before)


def _key(tensor: Tensor) -> Key:
    """Return what tells tensors apart: memory and form. Torch hands the same one out as several objects."""
    memory = tensor.untyped_storage()._cdata
    return memory, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _place() -> str:
    """Return the line of code that called an operation, the innermost that is not torch's."""
    frame = sys._getframe(2)
    while frame.f_back is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return f'File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_name}'
