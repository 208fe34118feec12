"""Moves what is computed once for all layers in front of the first layer.

layer 0: x = zeros(1); a = f(x)        head: x = zeros(1)
layer 1: b = f(x)                      layer 0: a = f(x)
                                       layer 1: b = f(x)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from ..graph.aliases import Writes
from ..graph.reading import called_name, read
from .cuts import is_product, may_cross

#: Operations that may draw random numbers. Each draws those behind the ones of the node before it.
_MAY_BE_RANDOM = ("dropout", "sdpa")


def shared_first(pieces: Sequence[list[Node]], writes: Writes) -> list[list[Node]]:
    """The pieces of a graph, with nodes moved to the end of the first one.

    Moved is what several pieces use and what is computed, without products, of inputs and the first piece. What a piece
    passes to the next one only is not shared, and may be as large as a weight: it stays, and lives as long as before.
    """
    first, *others = pieces
    piece_of = {node: index for index, piece in enumerate(pieces) for node in piece}
    movable: set[Node] = set()
    in_autocast = _in_autocast(others)
    for node in (node for piece in others for node in piece):
        early = all(piece_of.get(argument, 0) == 0 or argument in movable for argument in node.all_input_nodes)
        if early and node not in in_autocast and _may_move(node, writes):
            movable.add(node)
    moved: set[Node] = set()
    pending = [node for node in movable if _is_shared(node, piece_of)]
    while pending:
        node = pending.pop()
        if node not in moved:
            moved.add(node)
            pending += [argument for argument in node.all_input_nodes if argument in movable]
    return [
        [*first, *(node for piece in others for node in piece if node in moved)],
        *([node for node in piece if node not in moved] for piece in others),
    ]


def _is_shared(node: Node, piece_of: dict[Node, int]) -> bool:
    """Whether a node is used in another piece, and not in the next one alone."""
    users, piece = {piece_of[user] for user in node.users if user in piece_of}, piece_of[node]
    return bool(users - {piece}) and users != {piece + 1}


def _may_move(node: Node, writes: Writes) -> bool:
    """Whether a node computes the same where its arguments are known, and can be passed on from there.

    Products are what layers consist of, each of which could be computed in front of itself. Operators of this package
    depend on their arguments alone.
    """
    call = read(node)
    return (
        call is not None
        and not call.in_place
        and call.name not in _MAY_BE_RANDOM
        and may_cross(node)
        and not is_product(node)
        and not any(writes.of(one) for one in (node, *node.all_input_nodes))
    )


def _in_autocast(pieces: Sequence[list[Node]]) -> set[Node]:
    """The nodes that compute in another dtype than they would elsewhere."""
    found, depth = set(), 0
    for node in (node for piece in pieces for node in piece):
        depth += {"_enter_autocast": 1, "_exit_autocast": -1}.get(called_name(node), 0)
        if depth:
            found.add(node)
    return found
