"""Moves what is computed once for all layers in front of the first layer.

layer 0: x = zeros(1); a = f(x)        head: x = zeros(1)
layer 1: b = f(x)                      layer 0: a = f(x)
                                       layer 1: b = f(x)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from torch.fx import Node

from ..graph.aliases import Writes
from ..graph.reading import called_name, read
from .cuts import is_product, may_cross

#: Operations that may draw random numbers. Each draws those behind the ones of the node before it.
_MAY_BE_RANDOM = ("dropout", "sdpa")


def movable(body: Sequence[Node], writes: Writes) -> set[Node]:
    """The nodes of a graph that compute the same where their arguments are known, and can be passed on from there.

    Products are what layers consist of, each of which could be computed in front of itself. Operators of this package
    depend on their arguments alone.
    """
    in_autocast = _in_autocast(body)
    return {node for node in body if node not in in_autocast and _may_move(node, writes)}


def shared_first(pieces: Sequence[list[Node]], may_move: AbstractSet[Node]) -> list[list[Node]]:
    """The pieces of a graph, with nodes moved to the end of the first one.

    Moved is what several pieces use and what is computed, without products, of inputs and the first piece. What a piece
    passes to the next one only is not shared, and may be as large as a weight: it stays, and lives as long as before.

    Args:
        pieces: the pieces, in order.
        may_move: the result of ``movable`` for the graph.
    """
    first, *others = pieces
    piece_of = {node: index for index, piece in enumerate(pieces) for node in piece}
    early: set[Node] = set()
    for node in (node for piece in others for node in piece):
        if node in may_move and all(piece_of.get(one, 0) == 0 or one in early for one in node.all_input_nodes):
            early.add(node)
    moved = _with_what_they_need((node for node in early if _is_shared(node, piece_of)), early)
    return [
        [*first, *(node for piece in others for node in piece if node in moved)],
        *([node for node in piece if node not in moved] for piece in others),
    ]


def probably_shared(first: Sequence[Node], others: Sequence[Node], may_move: AbstractSet[Node]) -> set[Node]:
    """The nodes that ``shared_first`` may be expected to move, wherever a graph is cut.

    Args:
        first: the nodes before the first cut.
        others: the nodes after it.
        may_move: the result of ``movable`` for the graph.
    """
    known, early = set(first), set[Node]()
    for node in others:
        needed = (one for one in node.all_input_nodes if one.op not in ("placeholder", "get_attr"))
        if node in may_move and all(one in known or one in early for one in needed):
            early.add(node)
    return _with_what_they_need((node for node in early if len(node.users) > 2), early)


def _with_what_they_need(nodes: Iterable[Node], among: AbstractSet[Node]) -> set[Node]:
    """Nodes, and those of ``among`` that they are computed from."""
    found: set[Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += [argument for argument in node.all_input_nodes if argument in among]
    return found


def _is_shared(node: Node, piece_of: dict[Node, int]) -> bool:
    """Whether a node is used in another piece, and not in the next one alone."""
    users, piece = {piece_of[user] for user in node.users if user in piece_of}, piece_of[node]
    return bool(users - {piece}) and users != {piece + 1}


def _may_move(node: Node, writes: Writes) -> bool:
    call = read(node)
    return (
        call is not None
        and not call.in_place
        and call.name not in _MAY_BE_RANDOM
        and may_cross(node)
        and not is_product(node)
        and not any(writes.of(one) for one in (node, *node.all_input_nodes))
    )


def _in_autocast(body: Sequence[Node]) -> set[Node]:
    """The nodes that compute in another dtype than they would elsewhere."""
    found, depth = set(), 0
    for node in body:
        depth += {"_enter_autocast": 1, "_exit_autocast": -1}.get(called_name(node), 0)
        if depth:
            found.add(node)
    return found
