"""Plan the removal of channels, heads and neurons, with proof that it does no more than zeroing them would."""

from __future__ import annotations

from efface.core.ops.drop import Drop
from efface.parts.graph import ChannelGraph, verified
from efface.parts.graph.planning import Keep


def plan_removal(graph: ChannelGraph, keep: Keep, *, reexport: bool = True) -> list[Drop]:
    """Return the edits that remove all classes of the named groups but those to ``keep`` (bool, one a class).

    Each group is tried on the network, which is then as it was: a group whose removal does not equal zeroing, or that
    breaks the network, is left out and moves to ``graph.frozen`` with the reason. ``reexport`` also makes sure that the
    smaller network can be exported again, which takes as long as the analysis.

    Raises
    ------
    UnknownNameError
        If there is no such group, or it is frozen.
    PlanError
        If a mask has another size than its group, or leaves nothing of it.
    """
    return [Drop.of(removal) for removal in verified(graph, keep, reexport=reexport)]
