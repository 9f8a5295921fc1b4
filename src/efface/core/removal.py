"""Plan the removal of channels, heads and neurons, with proof that it does no more than zeroing them would."""

from __future__ import annotations

from dataclasses import replace

from efface.core.ops.drop import Drop
from efface.parts.graph import ChannelGraph, verified
from efface.parts.graph.planning import Keep
from efface.parts.graph.settings import settings_of
from efface.parts.graph.verify import removed


def plan_removal(graph: ChannelGraph, keep: Keep, *, reexport: bool = True) -> list[Drop]:
    """Return the edits that remove all classes of the named groups but those to ``keep`` (bool, one a class).

    Each group is tried on the network, which is then as it was: a group whose removal does not equal zeroing, or that
    breaks the network, is left out and moves to ``graph.frozen`` with the reason. ``reexport`` also makes sure that the
    smaller network can be exported again, which takes as long as the analysis. The last edit also sets the
    configuration of a network of transformers, where one can say what all of them leave.

    Raises
    ------
    UnknownNameError
        If there is no such group, or it is frozen.
    PlanError
        If a mask has another size than its group, or leaves nothing of it.
    """
    made = verified(graph, keep, reexport=reexport)
    with removed(graph.model, made):
        settings = settings_of(graph.model) if made else []
    if settings:
        made[-1] = replace(made[-1], sizes=(*made[-1].sizes, *settings))
    return [Drop.of(removal) for removal in made]
