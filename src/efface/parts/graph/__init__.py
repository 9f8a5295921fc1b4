"""Find which channels of a network go together, and take them out."""

from __future__ import annotations

from efface.parts.graph.groups import ChannelGraph, Group, Member, channel_graph
from efface.parts.graph.planning import keep_best, removals
from efface.parts.graph.remove import Removal, remove
from efface.parts.graph.verify import verified

__all__ = [
    "ChannelGraph",
    "Group",
    "Member",
    "Removal",
    "channel_graph",
    "keep_best",
    "removals",
    "remove",
    "verified"
]  # fmt: skip
