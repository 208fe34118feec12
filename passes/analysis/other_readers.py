"""Finds attentions that read keys or values together with others than those that they are cached with.

more = stack([cat([values, v1], 2), cat([values, v2], 2)])
out = einsum(weights, more)                                  an attention that is not recognized reads `values`
"""

from __future__ import annotations

from collections.abc import Collection

from torch.fx import Node

from ..attention.views import split_factor
from ..context import AttentionMatch, CacheUse
from ..graph.operations import VIEWS, Kind
from ..graph.reading import kinds, op_name

#: Kinds of operations that give elements of their input.
_CARRIES = VIEWS | Kind.CASTS | Kind.REPEATS | Kind.SELECTS | Kind.PIECES

OTHER_PAIR = "another attention reads its keys with other values, or its values with other keys"


def is_carried_to(node: Node, ends: Collection[Node]) -> bool:
    """Whether one of ``ends`` reads ``node``, or a tensor that is put together from it and others."""
    seen, pending = {node}, [node]
    while pending and ends:
        for user in pending.pop().users:
            if user in ends:
                return True
            carries = kinds(user) & _CARRIES or op_name(user) in ("cat", "stack") or split_factor(user) is not None
            if user not in seen and carries:
                seen.add(user)
                pending.append(user)
    return False


def share_one(pair: tuple[Node, Node], other: tuple[Node, Node]) -> bool:
    """Whether two pairs of keys and values have one of the two in common, and not both."""
    return bool({*pair} & {*other}) and pair != other


def shared_in_part(uses: dict[AttentionMatch, tuple[CacheUse, CacheUse]]) -> list[AttentionMatch]:
    """The attentions whose keys another one reads with other values, or whose values with other keys."""
    pairs = {match: (key.node, value.node) for match, (key, value) in uses.items()}
    return [match for match, pair in pairs.items() if any(share_one(pair, other) for other in pairs.values())]
