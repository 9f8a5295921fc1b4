"""See a network as segments between splits and joins, and say which of them can go together.

A *segment* is a run of operations with one way in and one way out; a *join* adds or concatenates several. A segment
that leads into joins alone can be erased: what it gave is zero, or no channels. What then has no input left, and what
nobody reads any more, goes with it. A sub-network is legal where the outputs still depend on the inputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.fx import Node

from efface.parts.graph.groups import ChannelGraph

ADDS, CONCATENATES = ("add",), ("cat", "concat", "concatenate")


@dataclass(frozen=True)
class Segment:
    """A run of operations, a join, or an input of the network."""

    name: str
    inputs: tuple[int, ...] = ()
    """Segments that it reads, which come before it; none for an input of the network."""
    join: bool = False
    """Whether it goes on with those of its inputs that are left; else it needs all of them."""
    removable: bool = False
    """Whether it can be erased by itself."""
    parameters: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()


def settle(segments: Sequence[Segment], outputs: Sequence[int], erased: set[int]) -> set[int] | None:
    """Return ``erased`` with all that goes along, or None where the outputs would not depend on the inputs any more.

    Dead is what is erased, a join whose inputs are all dead, and anything else with a dead input; what is alive but
    leads to no output dangles, and goes too.
    """
    alive: list[bool] = []
    for number, segment in enumerate(segments):
        inputs = [alive[i] for i in segment.inputs]
        alive.append(number not in erased and (not inputs or (any if segment.join else all)(inputs)))
    if not all(alive[number] for number in outputs):
        return None
    useful, queue = set[int](), list(outputs)
    while queue:
        number = queue.pop()
        if number not in useful:
            useful.add(number)
            queue += [i for i in segments[number].inputs if alive[i]]
    return set(range(len(segments))) - useful


def hierarchical(
    segments: Sequence[Segment],
    outputs: Sequence[int],
    order: Sequence[int],
    enough: Callable[[set[int]], bool],
    legal: Callable[[set[int]], bool] = lambda gone: True,
) -> set[int]:
    """Return what goes: segments in ``order`` are erased one by one, as far as the rest is legal, until ``enough``.

    The walk of H2SPG (Chen et al., arXiv:2312.09411). Where the order ends first, the result is the most that it gives.
    """
    gone = settle(segments, outputs, set()) or set()
    for number in order:
        if enough(gone):
            break
        if number not in gone and segments[number].removable:
            more = settle(segments, outputs, gone | {number})
            gone = more if more is not None and legal(more) else gone
    return gone


class Operators:
    """The operations of an exported network as segments, and the modules that they make up."""

    def __init__(self, graph: ChannelGraph) -> None:
        weights = dict(graph.model.named_parameters(remove_duplicate=False))
        self._names = {
            n: name for n, name in graph.program.sources.items() if isinstance(name, str) and name in weights
        }
        self.acts = _activations(graph)
        """Nodes that depend on the input of the network."""
        self.place: dict[Node, int] = {}
        """Number of the segment of each of them."""
        self.inside: dict[str, set[Node]] = defaultdict(set)
        """Nodes by the path of every module whose code they come from."""
        for node in self.acts:
            for path in paths(node):
                self.inside[path].add(node)
        runs, inputs, results = self._runs()
        owners = defaultdict[int, set[int]](set)
        found = [self._parameters(run) for run in runs]
        for number, names in enumerate(found):
            for name in names:
                owners[id(weights[name])].add(number)
        self.outputs = tuple(sorted(results))
        self.segments = []
        for number, run in enumerate(runs):
            own = bool(found[number]) and all(len(owners[id(weights[name])]) == 1 for name in found[number])
            readers = self.readers(run[-1])
            ends = bool(readers) and all(kind(node) for node in readers) and not kind(run[0]) and number not in results
            name = next((path for node in run for path in paths(node) if self.inside[path] <= set(run)), run[0].name)
            join = bool(kind(run[0])) and len(inputs[number]) > 1
            self.segments.append(Segment(name, inputs[number], join, own and ends, found[number], tuple(run)))

    def readers(self, node: Node) -> list[Node]:
        """Return the operations that read what ``node`` gives."""
        return [user for user in node.users if user in self.acts]

    def units(self, nodes: set[Node]) -> dict[str, set[Node]]:
        """Return the largest modules that consist of ``nodes`` alone."""
        found: dict[str, set[Node]] = {}
        for node in self.acts:
            path = next((path for path in paths(node) if self.inside[path] <= nodes), None) if node in nodes else None
            if path is not None:
                found[path] = self.inside[path]
        return found

    def _runs(self) -> tuple[list[list[Node]], list[tuple[int, ...]], set[int]]:
        """Return the nodes and inputs of each segment, and the segments that are outputs."""
        runs: list[list[Node]] = []
        inputs: list[tuple[int, ...]] = []
        results = set[int]()
        for node in self.acts:
            sources = [source for source in node.all_input_nodes if source in self.acts]
            last = sources[0] if len(sources) == 1 else None
            alone = (
                last is not None and len(last.users) == 1 and last.op != "placeholder" and not _is_join(last, self.acts)
            )
            if alone and last is not None:
                self.place[node] = self.place[last]
                runs[self.place[node]].append(node)
            else:
                self.place[node] = len(runs)
                runs.append([node])
                inputs.append(tuple(dict.fromkeys(self.place[source] for source in sources)))
            if any(user.op == "output" for user in node.users):
                results.add(self.place[node])
        return runs, inputs, results

    def _parameters(self, run: Sequence[Node]) -> tuple[str, ...]:
        """Return the parameters that go into the nodes, also by way of operations on parameters alone."""
        names, queue, seen = dict[str, None](), [n for node in run for n in node.all_input_nodes], set[Node]()
        while queue:
            node = queue.pop(0)
            if node not in self.acts and node not in seen:
                seen.add(node)
                queue += node.all_input_nodes
                if node in self._names:
                    names[self._names[node]] = None
        return tuple(names)


def paths(node: Node) -> list[str]:
    """Return the paths of the modules whose code ``node`` comes from, outermost first, the network itself left out."""
    return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]


def kind(node: Node) -> str:
    """Return ``add`` or ``concat`` for an operation that may join segments, else nothing."""
    op = str(getattr(node.target, "_overloadpacket", "")).removeprefix("aten.").rstrip("_")
    return "add" if op in ADDS else "concat" if op in CONCATENATES else ""


def _is_join(node: Node, acts: dict[Node, None]) -> bool:
    return bool(kind(node)) and sum(source in acts for source in node.all_input_nodes) > 1


def _activations(graph: ChannelGraph) -> dict[Node, None]:
    """Return the nodes that depend on the input of the network, in order."""
    found: dict[Node, None] = {node: None for node, source in graph.program.sources.items() if isinstance(source, int)}
    for node in graph.program.graph.nodes:
        if node.op == "call_function" and any(source in found for source in node.all_input_nodes):
            found[node] = None
    return found
