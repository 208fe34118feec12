"""Moves what is computed once for all layers in front of the first layer.

layer 0: x = zeros(1); a = f(x)        head: x = zeros(1)
layer 1: b = f(x)                      layer 0: a = f(x)
                                       layer 1: b = f(x)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from ..graph.aliases import Writes
from ..graph.reading import is_pure


def shared_first(pieces: Sequence[list[Node]], writes: Writes) -> list[list[Node]]:
    """The pieces of a graph, with nodes moved to the end of the first one.

    Moved is what several pieces use and what does not depend on the pieces behind the first, unless it reads or is
    memory that is written to.
    """
    first, *others = pieces
    piece_of = {node: index for index, piece in enumerate(pieces) for node in piece}
    movable: set[Node] = set()
    for node in (node for piece in others for node in piece):
        early = all(piece_of.get(argument, 0) == 0 or argument in movable for argument in node.all_input_nodes)
        if early and is_pure(node) and not any(writes.of(one) for one in (node, *node.all_input_nodes)):
            movable.add(node)
    moved: set[Node] = set()
    pending = [node for node in movable if any(piece_of.get(user) != piece_of[node] for user in node.users)]
    while pending:
        node = pending.pop()
        if node not in moved:
            moved.add(node)
            pending += [argument for argument in node.all_input_nodes if argument in movable]
    return [
        [*first, *(node for piece in others for node in piece if node in moved)],
        *([node for node in piece if node not in moved] for piece in others),
    ]
